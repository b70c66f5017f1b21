"""What a tokenizer.json may hold, checked before the library makes anything of it.

The library trusts the file: a pattern may take for ever, a replacement may multiply the text, a broken character map
or a number of any size ends in a panic. All that umT5's tokenizer is made of is let through, and what is like it.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..json_file import whole_number

_NORMALIZERS = {
    "Sequence",
    "Precompiled",
    "Replace",
    "Strip",
    "Lowercase",
    "Nmt",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Prepend",
}
_PRE_TOKENIZERS = {"Sequence", "Metaspace", "WhitespaceSplit", "Whitespace"}
_MOST_PIECES, _LONGEST = 1 << 20, 256  # the library's tree of pieces is as deep as the longest, and recursive
_MOST_GROWTH = 64  # how many times longer all replacements together may make a text
# One repeated character or class: no more can be asked of without backtracking.
_PATTERN = re.compile(r"(?:\\[sntr]|[^\\()\[\]|*+?{}.]){1,4}(?:[*+?]|\{\d{0,2},?\d{0,2}\})?")


def check_tokenizer(raw: Mapping[str, Any]) -> int:
    """The number of ids of the tokenizer ``raw``; ValueError naming the field that is not plain or out of range."""
    growth = 1
    for where, part in _parts(raw.get("normalizer"), "normalizer", "normalizers", _NORMALIZERS):
        growth *= _check_normalizer(part, where)
    if growth > _MOST_GROWTH:
        raise ValueError(f"normalizer may make a text {growth} times as long, at most {_MOST_GROWTH} is accepted")
    for where, part in _parts(raw.get("pre_tokenizer"), "pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS):
        if part["type"] == "Metaspace":
            _text(part.get("replacement"), 1, f"{where}.replacement")
    processor = raw.get("post_processor")
    if not isinstance(processor, dict) or processor.get("type") != "TemplateProcessing":
        raise ValueError("post_processor must be a TemplateProcessing that appends </s>")
    return _check_ids(raw)


def _check_ids(raw: Mapping[str, Any]) -> int:
    model = _object(raw.get("model"), "model")
    if model.get("type") != "Unigram":
        raise ValueError(f"model.type must be Unigram, as umT5's, got {model.get('type')!r:.40}")
    pieces = _list(model.get("vocab"), "model.vocab", _MOST_PIECES)
    for i, piece in enumerate(pieces):
        # One chain of comparisons a piece: there are 256000.
        if type(piece) is not list or len(piece) != 2 or not _is_piece(piece[0]) or not _is_score(piece[1]):
            raise ValueError(f"model.vocab[{i}] must be a text of at most {_LONGEST} characters and a finite number")
    whole_number(model.get("unk_id"), 0, len(pieces) - 1, "model.unk_id")
    added = _list(raw.get("added_tokens"), "added_tokens", _MOST_PIECES)
    most = len(pieces) + len(added)
    ids = []
    for i, token in enumerate(added):
        _text(_object(token, f"added_tokens[{i}]").get("content"), _LONGEST, f"added_tokens[{i}].content")
        ids.append(whole_number(token.get("id"), 0, most - 1, f"added_tokens[{i}].id"))
    vocabulary = max([len(pieces), *(id + 1 for id in ids)])
    for name, special in _object(raw["post_processor"].get("special_tokens"), "post_processor.special_tokens").items():
        where = f"post_processor.special_tokens[{name!r:.40}].ids"
        for id in _list(_object(special, where).get("ids"), where, 8):
            whole_number(id, 0, vocabulary - 1, where)
    return vocabulary


def _is_piece(value: object) -> bool:
    return type(value) is str and len(value) <= _LONGEST


def _is_score(value: object) -> bool:
    return type(value) in (float, int) and math.isfinite(value)  # type: ignore[arg-type]


def _check_normalizer(part: Mapping[str, Any], where: str) -> int:
    """How many times longer it may make a text."""
    kind = part["type"]
    if kind == "Precompiled":
        _check_character_map(part.get("precompiled_charsmap"), f"{where}.precompiled_charsmap")
    if kind == "Prepend":
        return 1 + len(_text(part.get("prepend"), 8, f"{where}.prepend"))
    if kind != "Replace":
        return 1
    pattern = _object(part.get("pattern"), f"{where}.pattern")
    regex = pattern.get("Regex")
    if regex is not None and (not isinstance(regex, str) or not _PATTERN.fullmatch(regex)):
        raise ValueError(f"{where}.pattern must be a repeated character or a plain text, got {regex!r:.40}")
    if regex is None and not _text(pattern.get("String"), 64, f"{where}.pattern"):
        raise ValueError(f"{where}.pattern must not be empty")
    return max(1, len(_text(part.get("content"), 8, f"{where}.content")))


def _check_character_map(value: object, where: str) -> None:
    """A double-array trie of which no text can lead a reader astray, and the texts that its leaves point to."""
    try:
        data = base64.b64decode(value, validate=True)  # type: ignore[arg-type]
        size = int.from_bytes(data[:4], "little")
        units = np.frombuffer(data[4 : 4 + size], "<u4").astype(np.int64)
        texts = data[4 + size :]
        texts.decode("utf-8")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is damaged: {error}") from error
    inner = units >> 31 == 0
    targets = np.arange(len(units)) ^ (units >> 10 << ((units & 1 << 9) >> 6))
    with_leaf = inner & (units >> 8 & 1 == 1)
    if not inner[:1].any() or size != 4 * len(units) or (targets[inner] | 255).max(initial=0) >= len(units):
        raise ValueError(f"{where} is damaged: its trie leads outside")
    leaves, starts = units[targets[with_leaf]], np.frombuffer(texts, np.uint8) & 0xC0 != 0x80
    places = leaves & (1 << 31) - 1
    if (leaves >> 31 == 0).any() or places.max(initial=-1) >= len(starts) or not starts[places].all():
        raise ValueError(f"{where} is damaged: its leaves point to no text")


def _parts(value: object, where: str, inside: str, known: set[str], depth: int = 3) -> Iterator[tuple[str, Mapping]]:
    """A step of the pipeline, or those of a sequence, each with where it stands; the sequence itself is left out."""
    if value is None:
        return
    part = _object(value, where)
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in known or not depth:
        raise ValueError(f"{where}.type must be one of {', '.join(sorted(known))}, got {kind!r:.40}")
    if kind != "Sequence":
        yield where, part
        return
    for i, step in enumerate(_list(part.get(inside), f"{where}.{inside}", 16)):
        yield from _parts(step, f"{where}.{inside}[{i}]", inside, known, depth - 1)


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, got a {type(value).__name__}")
    return value


def _list(value: object, where: str, most: int) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{where} must be a list of at most {most} entries")
    return value


def _text(value: object, most: int, where: str) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{where} must be a text of at most {most} characters, got {value!r:.40}")
    return value
