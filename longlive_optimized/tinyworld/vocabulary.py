"""The world's words as a tokenizer, in the form of umT5's: one piece a word.

A word is read by the longest known one that it begins with: ``circles`` is ``circle`` and ``<unk>``. A word that begins
with none is ``<unk>``. The file is what the text room reads; ``ids`` gives the same numbers with no library, for
training.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..weights.locate import locate
from .world import WHOLE, Known, known_by, words

_SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2
_BEGIN = "\u2581"  # the mark of a word's beginning
_MARKS = ",."
EOS = 1
UNKNOWN = 2
LONGEST = 40  # ids that a text of the training may have


@cache
def pieces() -> tuple[str, ...]:
    """Every piece, in the order of ids: words and marks."""
    return (*_SPECIAL, *(_BEGIN + word for word in words()), *_MARKS)


def ids(text: str) -> list[int]:
    """Ids of a text, ``</s>`` at the end."""
    return [*itertools.chain.from_iterable(map(_ids_of_word, text.lower().split())), EOS]


@cache
def _ids_of_word(word: str) -> list[int]:
    lengths = range(len(word), 0, -1)
    known = next((n for n in lengths if _BEGIN + word[:n] in _index()), 0)
    found = [_index()[_BEGIN + word[:known]] if known else UNKNOWN]
    for is_mark, run in itertools.groupby(word[known:], _MARKS.__contains__):
        found += [_index()[mark] for mark in run] if is_mark else [UNKNOWN]
    # The tokenizer makes one <unk> of neighbours within a word.
    return found[1:] if found[:2] == [UNKNOWN] * 2 else found


def known_words(text: str) -> list[str]:
    """The words that a text is read as; what is unknown is left out."""
    return [pieces()[i].removeprefix(_BEGIN) for i in ids(text) if i > UNKNOWN]


@cache
def _index() -> dict[str, int]:
    return {piece: i for i, piece in enumerate(pieces())}


def known_to(model: str | Path) -> Known:
    """The part of the world whose words the tokenizer of a model has, of a folder or 'tiny'; the whole where it has
    none of them."""
    raw = json.loads((locate(model).tokenizer / "tokenizer.json").read_text())
    known = known_by({piece.removeprefix(_BEGIN) for piece, _ in raw["model"]["vocab"]})
    return known if all(known) else WHOLE


def batch_of_ids(captions: Sequence[str], length: int | None = None) -> Tensor:
    """Ids of several captions, int64 [n, L], padded with 0 to ``length``, or to the longest."""
    rows = [ids(caption) for caption in captions]
    length = length or max(map(len, rows))
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def write_tokenizer(folder: Path, text_len: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` (AutoTokenizer reads them) into a new folder."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    costs = [0.0 if piece in _SPECIAL else -1.0 for piece in pieces()]
    vocabulary = list(zip(pieces(), costs, strict=True))
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=UNKNOWN, byte_fallback=False))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL])
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = dict(zip(("pad_token", "eos_token", "unk_token"), _SPECIAL, strict=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": text_len, **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
