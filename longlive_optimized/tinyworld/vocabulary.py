"""The world's words as a tokenizer: one piece a word, in the form of umT5's; any other text has ids too.

The file is what the text room reads. ``ids`` gives the same numbers for captions with no library, for training.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .world import words

_SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2 as in umT5
_BEGIN = "\u2581"  # the mark of a word's beginning
_MARKS = ",."
EOS = 1
LONGEST = 24  # ids that a caption may have


@cache
def pieces() -> tuple[str, ...]:
    """Every piece, in the order of ids: words, and what spells others: marks, letters, digits, bytes."""
    single = [*_MARKS, _BEGIN, *string.ascii_lowercase, *string.digits]
    return (*_SPECIAL, *(_BEGIN + word for word in words()), *single, *(f"<0x{byte:02X}>" for byte in range(256)))


def ids(caption: str) -> list[int]:
    """Ids of a caption of this world, ``</s>`` at the end; KeyError for any other text's words."""
    spaced = "".join(f" {c}" if c in _MARKS else c for c in caption)
    return [_index()[word if word in _MARKS else _BEGIN + word] for word in spaced.split()] + [EOS]


@cache
def _index() -> dict[str, int]:
    return {piece: i for i, piece in enumerate(pieces())}


def batch_of_ids(captions: Sequence[str], length: int | None = None) -> Tensor:
    """Ids of several captions, int64 [n, L], padded with 0 to ``length``, or to the longest."""
    rows = [ids(caption) for caption in captions]
    length = length or max(map(len, rows))
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def write_tokenizer(folder: Path, text_len: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` (AutoTokenizer reads them) into a new folder."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    # A word costs 1, as any single piece does; a byte costs more than any spelling without it.
    costs = [0.0 if piece in _SPECIAL else -20.0 if piece.startswith("<0x") else -1.0 for piece in pieces()]
    vocabulary = list(zip(pieces(), costs, strict=True))
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL])
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = dict(zip(("pad_token", "eos_token", "unk_token"), _SPECIAL, strict=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": text_len, **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
