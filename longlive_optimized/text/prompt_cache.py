"""Embeddings of the prompts last used, by cleaned text."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

from .clean import clean


class PromptCache:
    """``encode([prompt])[0]``, computed once for the ``size`` most recently used texts; size 0 computes every time.

    Safe to use from several threads: one prompt is encoded at a time, and a hit never waits for that. What ``get``
    returns is shared, so it must not be written to. ``hits`` and ``misses`` count the calls.
    """

    def __init__(self, encode: Callable[[list[str]], Tensor], size: int):
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"size must be a whole number >= 0, got {size!r}")
        self._encode, self.size = encode, size
        self.hits = self.misses = 0
        self._entries: OrderedDict[str, Tensor] = OrderedDict()
        self._lock, self._encoding = threading.Lock(), threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, prompt: str) -> Tensor:
        """Embedding [text_len, text_dim] of one prompt; TypeError, ValueError as ``clean``."""
        text = clean(prompt)
        if (found := self._look_up(text)) is not None:
            return found
        with self._encoding:
            # Another thread may have encoded this very text while this one waited.
            if (found := self._look_up(text)) is not None:
                return found
            embedding = self._encode([prompt])[0]
            self._store(text, embedding)
            return embedding

    def clear(self) -> None:
        """Forget every embedding; the counters stay."""
        with self._lock:
            self._entries.clear()

    def _look_up(self, text: str) -> Tensor | None:
        with self._lock:
            if (found := self._entries.get(text)) is not None:
                self._entries.move_to_end(text)
                self.hits += 1
            return found

    def _store(self, text: str, embedding: Tensor) -> None:
        with self._lock:
            self.misses += 1
            self._entries[text] = embedding
            while len(self._entries) > self.size:
                self._entries.popitem(last=False)
