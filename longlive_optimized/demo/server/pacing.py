"""When a frame is shown, and when the next block must begin: arithmetic on seconds, without clocks or threads."""

from __future__ import annotations

from collections import deque

from ...video_time import BLOCK_PIXEL_FRAMES

SLACK = 1.02  # an engine slower than the target is shown a little slower still, so that frames gather against jitter
EARLY = 1.1  # a block begins this much earlier than the slowest of the last ones would ask for ...
MARGIN = 0.03  # ... and so many seconds


class Pace:
    """Follows how long blocks take.

    A block begins as late as it can and still be ready in time, so that it knows the newest prompt; never while more
    than a block of frames waits to be shown.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=8)
        self._frame: float | None = None  # seconds per frame, smoothed

    def block_took(self, seconds: float, frames: int, every: float | None = None) -> None:
        """Note a block: all its time, until its frames could be shown; ``every`` is the longer of its two halves, where
        one is made beside the other of the block before."""
        self._recent.append(seconds)
        frame = (seconds if every is None else every) / frames
        self._frame = frame if self._frame is None else 0.8 * self._frame + 0.2 * frame

    def interval(self, fps: float) -> float:
        """Seconds from one shown frame to the next: the target's, or what the engine can keep up."""
        return max(1 / fps, SLACK * (self._frame or 0.0))

    def is_time(self, waiting: int, fps: float, coming: int = 0) -> bool:
        """Whether the next block should begin, now that ``waiting`` frames have not been taken to be shown, and
        ``coming`` more are being decoded."""
        if waiting > BLOCK_PIXEL_FRAMES or not self._recent:
            return waiting <= BLOCK_PIXEL_FRAMES
        return (waiting + coming) * self.interval(fps) <= EARLY * max(self._recent) + MARGIN


class FrameClock:
    """Even due times. What is late by less than an interval is made up for; a longer stall moves all later frames."""

    def __init__(self) -> None:
        self._due = float("-inf")

    def next(self, now: float, interval: float) -> float:
        """When the next frame is due, never before ``now``."""
        self._due = max(self._due + interval, now)
        return self._due
