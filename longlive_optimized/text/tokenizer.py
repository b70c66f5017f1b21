"""Prompt to token ids.

``tokenizer.json`` is taken as it stands: transformers' T5 classes rebuild the pipeline from the vocabulary in some
versions (no byte fallback, another pre-tokenizer) and would give other ids for the same folder.
"""

from __future__ import annotations

from pathlib import Path

from .clean import clean

PAD, EOS = 0, 1


class Tokenizer:
    """The umT5 tokenizer of a local folder: cleaned text, ``</s>`` at the end, at most ``text_len`` ids.

    Raises FileNotFoundError without ``tokenizer.json``, ValueError where that is not a tokenizer that appends ``</s>``
    with id 1.
    """

    def __init__(self, folder: str | Path, text_len: int = 512):
        from tokenizers import Tokenizer as Backend

        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"tokenizer: {path} does not exist")
        try:
            self._backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"tokenizer: {path} cannot be read: {error}") from error
        if self._backend.encode("a").ids[-1:] != [EOS]:
            raise ValueError(f"tokenizer: {path} must append </s> with id {EOS}, as umT5's does")
        self._backend.no_padding()
        self._backend.enable_truncation(text_len)
        self.text_len = text_len

    @property
    def vocabulary(self) -> int:
        """Number of ids, special tokens included."""
        return self._backend.get_vocab_size()

    def __call__(self, prompt: str) -> list[int]:
        """Ids of a prompt, 2 <= L <= text_len, the last one ``</s>``; TypeError, ValueError as ``clean``."""
        return self._backend.encode(clean(prompt)).ids
