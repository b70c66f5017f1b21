"""Networks that are loaded side by side: what one waits for, the disk or a copy, does not hold up the other."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from .devices import Devices

Progress = Callable[[str, int, int], None]
T = TypeVar("T", covariant=True)


class Loader(Protocol[T]):
    """Loads something, and calls ``progress`` as (bytes done, bytes in all) for each piece."""

    def __call__(self, *, progress: Callable[[int, int], None]) -> T: ...


class Loading:
    """Loaders in this thread and in another; ``progress``, if any, is called as (what, done, total) by one at a time.

    A context: left by an error, it stops what the other thread still loads, at its next piece.
    """

    def __init__(self, devices: Devices, progress: Progress | None):
        self._devices, self._progress = devices, progress
        self._pool, self._lock, self._stopped = ThreadPoolExecutor(1, "longlive-load"), threading.Lock(), False

    def __enter__(self) -> Loading:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._stopped = kind is not None
        self._pool.shutdown()

    def here(self, what: str, loader: Loader[T]) -> T:
        """What ``loader`` loads."""
        with self._devices.own_modes():
            return loader(progress=functools.partial(self._advance, what))

    def beside(self, what: str, loader: Loader[T]) -> Future[T]:
        """The same, in the other thread."""
        return self._pool.submit(self.here, what, loader)

    def _advance(self, what: str, done: int, total: int) -> None:
        with self._lock:
            if self._stopped:
                raise RuntimeError(f"loading of the {what} was given up")
            if self._progress:
                self._progress(what, done, total)
