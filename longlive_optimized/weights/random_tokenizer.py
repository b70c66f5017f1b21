"""A small tokenizer in the form of umT5's, made from this package's own phrases, for checkpoints made at random.

The vocabulary is counted rather than trained: the library's trainer gives another one at each run.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

_SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2 as in umT5
_LONGEST, _PIECES = 10, 1200


def write_tokenizer(folder: Path) -> int:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` (AutoTokenizer reads them); return the number of ids.

    Every text has ids: what the pieces do not cover goes byte by byte.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = _vocabulary(Path(__file__).with_name("corpus.txt").read_text(encoding="utf-8"))
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    roles = dict(zip(("pad_token", "eos_token", "unk_token"), _SPECIAL, strict=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return tokenizer.get_vocab_size()


def _vocabulary(text: str) -> list[tuple[str, float]]:
    """Pieces with their log probabilities: every character, and the substrings of words that shorten the text most."""
    counts: Counter[str] = Counter()
    for word in text.split():
        word = "\u2581" + word  # the mark of a word's beginning
        counts.update(word[i:j] for i in range(len(word)) for j in range(i + 1, min(i + _LONGEST, len(word)) + 1))
    by_saving = sorted(counts, key=lambda piece: (-counts[piece] * (len(piece) - 1), piece))
    pieces = sorted(piece for piece in counts if len(piece) == 1) + [p for p in by_saving if len(p) > 1][:_PIECES]
    total = sum(counts[piece] for piece in pieces)
    # Rounded, so that no machine's logarithm makes another file.
    scored = [(piece, round(math.log(counts[piece] / total), 4)) for piece in pieces]
    lowest = min(score for _, score in scored) - 10
    return [(name, 0.0) for name in _SPECIAL] + [(f"<0x{byte:02X}>", lowest) for byte in range(256)] + scored
