"""Prompt to token ids.

``tokenizer.json`` is taken as it stands: transformers' T5 classes rebuild the pipeline from the vocabulary in some
versions (no byte fallback, another pre-tokenizer) and would give other ids for the same folder.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path

from ..json_file import json_object, read_bounded
from .clean import clean
from .plain_tokenizer import check_tokenizer

PAD, EOS = 0, 1
_LARGEST = 1 << 26  # bytes of a tokenizer.json: umT5's has a quarter of that

_log = logging.getLogger(__name__)


class Tokenizer:
    """The umT5 tokenizer of a local folder: cleaned text, ``</s>`` at the end, at most ``text_len`` ids.

    Raises FileNotFoundError without ``tokenizer.json``, ValueError naming the file and the field where that is not a
    tokenizer like umT5's, one that appends ``</s>`` with id 1. ``vocabulary``: every id is smaller.
    """

    def __init__(self, folder: str | Path, text_len: int = 512):
        from tokenizers import Tokenizer as Backend

        self._path, self.text_len = Path(folder) / "tokenizer.json", text_len
        if not self._path.is_file():
            raise FileNotFoundError(f"tokenizer: {self._path} does not exist")
        text = read_bounded(self._path, _LARGEST)
        with _errors(f"tokenizer: {self._path} cannot be read"):
            self.vocabulary = check_tokenizer(json_object(text, self._path))
            self._backend = Backend.from_str(text)
        self._backend.no_padding()
        self._backend.no_truncation()
        if self._backend.num_special_tokens_to_add(False) != 1 or self._encode("a")[-1:] != [EOS]:
            raise ValueError(f"tokenizer: {self._path} must append </s> with id {EOS}, as umT5's does")

    def __call__(self, prompt: str) -> list[int]:
        """Ids of a prompt, 2 <= L <= text_len, the last one ``</s>``; TypeError, ValueError as ``clean``.

        What is beyond ``text_len`` is left out, and the log says once how much.
        """
        text = clean(prompt)
        ids = self._encode(text)
        left_out = len(ids) - self.text_len
        if left_out <= 0:
            return ids
        _warn_once(f"the prompt has {len(ids)} tokens: the last {left_out} are left out ({text:.40}...)")
        return [*ids[: self.text_len - 1], EOS]

    def _encode(self, text: str) -> list[int]:
        with _errors(f"tokenizer: {self._path} has no ids for {text!r:.40}"):
            return self._backend.encode(text).ids


@contextlib.contextmanager
def _errors(text: str) -> Iterator[None]:
    """What the library raises, bare Exception and panics that are not even that, becomes a ValueError."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{text}: {error}") from error


@functools.lru_cache(maxsize=256)
def _warn_once(text: str) -> None:
    _log.warning(text)
