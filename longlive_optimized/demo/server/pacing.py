"""When a frame is shown, and when the next block must begin: arithmetic on seconds, without clocks or threads."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

from ...video_time import BLOCK_PIXEL_FRAMES

SLACK = 1.02  # an engine too slow for its world is shown a little slower still, so that frames gather against jitter
EARLY = 1.1  # a block begins this much earlier than the slowest of the last ones would ask for ...
MARGIN = 0.03  # ... and so many seconds
RECENT = 8  # blocks that count
SETTLED = 4  # blocks, of which the last is the first to count: before, kernels compile and the window is not full


def retry_delay(failures: int, first: float, longest: float) -> float:
    """Seconds until the next try after so many failures in a row: doubled each time."""
    return min(first * 2.0 ** min(failures - 1, 64), longest)  # more would be no float


class Pace:
    """Follows how long a stream's blocks take.

    A block begins as late as it can and still be ready in time, so that it knows the newest prompt; never while more
    than a block of frames waits to be shown, or two where another stream is about to take long.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._frames: deque[float] = deque(maxlen=RECENT)  # seconds per frame
        self._blocks = 0

    @property
    def frame_seconds(self) -> float | None:
        """Seconds that a frame takes to make: the median of the last blocks, so that one that stalls does not count.
        None before the first. The first blocks count until there are later ones."""
        return statistics.median_low(self._frames) if self._frames else None

    @property
    def settled(self) -> bool:
        """Whether a block was made that tells what later ones take."""
        return self._blocks >= SETTLED

    @property
    def longest(self) -> float | None:
        """Seconds of the longest of the last blocks; None before the first."""
        return max(self._recent, default=None)

    def block_took(self, seconds: float, frames: int, every: float | None = None) -> float:
        """Note a block: all its time, until its frames could be shown; ``every`` is the longer of its two halves, where
        one is made beside the other of the block before. Returns the seconds that each of its frames took."""
        each = (seconds if every is None else every) / frames
        self._recent.append(seconds)
        self._blocks += 1
        if self._blocks == SETTLED:
            self._frames.clear()
        self._frames.append(each)
        return each

    def interval(self, fps: float, share: float = math.inf) -> float:
        """Seconds from one shown frame to the next: at ``fps`` a second, or what the engine can keep up.

        share: the frames a second that it can keep up of each of several streams, as ``shared_fps`` tells.
        """
        return max(1 / fps, 1 / share, SLACK * (self.frame_seconds or 0.0))

    def is_time(
        self,
        waiting: int,
        fps: float,
        coming: int = 0,
        ahead: float = 0.0,
        share: float = math.inf,
        most: int = BLOCK_PIXEL_FRAMES,
    ) -> bool:
        """Whether the next block should begin, now that ``waiting`` frames have not been taken to be shown, and
        ``coming`` more are being decoded.

        ahead: seconds of other streams' blocks that may be made before it. most: frames that may wait then.
        """
        if waiting > most or not self._recent:
            return waiting <= most
        return (waiting + coming) * self.interval(fps, share) <= EARLY * (max(self._recent) + ahead) + MARGIN


def shared_fps(streams: Iterable[tuple[float, float]]) -> float:
    """Frames a second that streams on one engine can have, each no more than it wants: the highest rate that it can
    keep up of all that want as much (max-min fairness).

    streams: of each, the seconds that a frame takes to make, and how many a second it wants.
    """
    wanted = sorted(((seconds, fps) for seconds, fps in streams), key=lambda stream: stream[1])
    left, seconds_left = 1 / SLACK, math.fsum(seconds for seconds, _ in wanted)
    for seconds, fps in wanted:
        if seconds_left * fps >= left:
            return left / seconds_left
        left -= seconds * fps
        seconds_left -= seconds
    return math.inf


class FrameClock:
    """Even due times. What is late by less than an interval is made up for; a longer stall moves all later frames."""

    def __init__(self) -> None:
        self._due = float("-inf")

    def next(self, now: float, interval: float) -> float:
        """When the next frame is due, never before ``now``."""
        self._due = max(self._due + interval, now)
        return self._due
