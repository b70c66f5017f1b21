"""How many streams fit on the device: what it has shown it can do, against what is asked of it. Arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

from ...config import OptimizationConfig
from ...video_time import TRAINED_FPS

FULL = 0.95  # share of the device's time that streams may take at the rate that each is promised
PROMISED_FPS = TRAINED_FPS  # frames a second, of each stream
NEWEST = 0.1  # weight of a block's time in what its kind of stream is taken to cost


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
        self._seconds: dict[Kind, float] = {}

    def note(self, kind: Kind, seconds: float) -> None:
        """A block was made that took so many seconds a frame."""
        known = self._seconds.get(kind, seconds)
        self._seconds[kind] = (1 - NEWEST) * known + NEWEST * seconds

    def of(self, kind: Kind) -> float | None:
        """Seconds a frame: as measured, or in proportion to the most similar kind that was; None before any was."""
        if kind in self._seconds or not self._seconds:
            return self._seconds.get(kind)

        def distance(other: Kind) -> tuple[bool, bool, float]:
            return (
                other.precision != kind.precision,
                other.window != kind.window,
                abs(math.log(other.work / kind.work)),
            )

        nearest = min(self._seconds, key=distance)
        return self._seconds[nearest] * kind.work / nearest.work


class Admission:
    """Whether one more stream may be opened. sessions: at most so many, or ``auto``: as many as the device can make at
    16 frames a second."""

    def __init__(self, sessions: int | Literal["auto"]):
        self._sessions = sessions

    def fits(self, others: Iterable[float | None], one: float | None) -> bool:
        """Whether it may, beside the others that are open.

        others, one: seconds a frame of theirs and of its own; None where that is not known yet: then it waits until
        the others have been measured.
        """
        others = list(others)
        if isinstance(self._sessions, int):
            return len(others) < self._sessions
        if not others:
            return True
        return load([*others, one]) <= FULL

    def may_change(self, others: Iterable[float | None], before: float | None, after: float | None) -> bool:
        """Whether an open stream may become one that takes so many seconds a frame."""
        if self._sessions != "auto" or after is None or (before is not None and after <= before):
            return True
        others = list(others)
        return not others or load([*others, after]) <= FULL


def load(seconds: Iterable[float | None]) -> float:
    """The share of the device's time that streams take at the promised rate, by the seconds of a frame of each;
    infinite where one is not known."""
    return PROMISED_FPS * math.fsum(math.inf if one is None else one for one in seconds)
