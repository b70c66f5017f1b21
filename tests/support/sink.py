"""Whoever watches a stream, without WebRTC: takes each frame when it is due, and drops it."""

from __future__ import annotations

import itertools
import threading
import time
import zlib
from collections.abc import Callable

import numpy as np

from longlive_optimized.demo.server.feed import Feed
from longlive_optimized.demo.server.pacing import FrameClock

LOOK_SECONDS = 0.002  # between two looks for a frame that is late


class Sink:
    """Shows a feed's frames to nobody, at its pace, in a thread of its own.

    shown: when each frame was due (time.monotonic). prints: a checksum of each. see: called with each frame.
    """

    def __init__(self, feed: Feed, see: Callable[[np.ndarray], None] = lambda frame: None):
        self._feed, self._see = feed, see
        self.shown: list[float] = []
        self.prints: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sink:
        self._feed.set_watched(True)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._ended.set()
        self._thread.join(20)
        self._feed.set_watched(False)

    def wait(self, frames: int, seconds: float = 60) -> None:
        """Until so many frames were shown."""
        end = time.monotonic() + seconds
        while len(self.shown) < frames:
            assert time.monotonic() < end, f"{len(self.shown)} of {frames} frames after {seconds} s"
            time.sleep(LOOK_SECONDS)

    def intervals(self, since: float = float("-inf")) -> list[float]:
        """Seconds between frames that were shown since then."""
        shown = [at for at in self.shown if at >= since]
        return [b - a for a, b in itertools.pairwise(shown)]

    def _run(self) -> None:
        clock = FrameClock()
        while not self._ended.is_set():
            frame = self._feed.take()
            if frame is None:
                time.sleep(LOOK_SECONDS)
                continue
            due = clock.next(time.monotonic(), self._feed.interval)
            time.sleep(max(0.0, due - time.monotonic()))
            self._see(frame)
            self.prints.append(fingerprint(frame))
            self.shown.append(due)


def fingerprint(frame: np.ndarray) -> int:
    """A checksum of a frame's bits."""
    return zlib.crc32(np.ascontiguousarray(frame))
