"""How many streams fit on the device: what it has shown it can do, against what is asked of it. Arithmetic alone."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from typing import Literal, NamedTuple

from ...config import OptimizationConfig

FULL = 0.95  # share of the device's time that streams may take, each at its own speed
LAST = 9  # blocks of a kind of stream that tell what it costs


class Kind(NamedTuple):
    """What a stream's cost depends on. passes: of a block, its context pass included."""

    pixels: int
    passes: int
    window: int
    precision: str

    @classmethod
    def of(cls, config: OptimizationConfig) -> Kind:
        """The kind of a stream with this config, which has a size."""
        height, width = config.size
        return cls(height * width, len(config.denoising_steps) + 1, config.local_attn_size, config.precision)

    @property
    def work(self) -> int:
        """A block's work, in a unit of its own: in proportion to pixels and passes."""
        return self.pixels * self.passes


class Costs:
    """Seconds that a frame takes to make, for each kind of stream, as measured on this device."""

    def __init__(self) -> None:
        self._blocks: dict[Kind, deque[float]] = {}

    def note(self, kind: Kind, seconds: float) -> None:
        """A block was made that took so many seconds a frame."""
        self._blocks.setdefault(kind, deque(maxlen=LAST)).append(seconds)

    def of(self, kind: Kind) -> float | None:
        """Seconds a frame: the median of the last blocks, so that those in which kernels compile, graphs are captured
        or the device stalls do not count; in proportion to the most similar kind that was measured where this one was
        not; None before any was."""
        if blocks := self._blocks.get(kind):
            return statistics.median_low(blocks)
        if not self._blocks:
            return None

        def distance(other: Kind) -> tuple[bool, bool, float]:
            return (
                other.precision != kind.precision,
                other.window != kind.window,
                abs(math.log(other.work / kind.work)),
            )

        nearest = min(self._blocks, key=distance)
        return statistics.median_low(self._blocks[nearest]) * kind.work / nearest.work


class Admission:
    """Whether one more stream may be opened. sessions: at most so many, or ``auto``: as many as the device can make,
    each at its own speed. What a stream takes of the device's time is a share of it, as ``share`` tells."""

    def __init__(self, sessions: int | Literal["auto"]):
        self._sessions = sessions

    def fits(self, others: Iterable[float | None], one: float | None) -> bool:
        """Whether it may, beside the others that are open.

        others, one: shares of theirs and its own; None where that is not known yet: then it waits until the others have
        been measured.
        """
        others = list(others)
        if isinstance(self._sessions, int):
            return len(others) < self._sessions
        if not others:
            return True
        return load([*others, one]) <= FULL

    def may_change(self, others: Iterable[float | None], before: float | None, after: float | None) -> bool:
        """Whether an open stream may become one that takes such a share."""
        if self._sessions != "auto" or after is None or (before is not None and after <= before):
            return True
        others = list(others)
        return not others or load([*others, after]) <= FULL


def share(seconds: float | None, fps: float) -> float | None:
    """The share of the device's time that a stream takes, of which so many frames a second are made that take so many
    seconds each; None where that is not known."""
    return None if seconds is None else seconds * fps


def load(shares: Iterable[float | None]) -> float:
    """The share of the device's time that streams take together; infinite where one is not known."""
    return math.fsum(math.inf if one is None else one for one in shares)
