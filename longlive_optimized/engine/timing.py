"""Times of a block's stages: CUDA events that are read once the device has passed them, never waited for."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch


class _HostMark:
    """time.perf_counter with an event's interface: on the CPU work is done when the call returns."""

    def __init__(self) -> None:
        self.at = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: _HostMark) -> float:
        return (end.at - self.at) * 1e3


@dataclass
class BlockTimes:
    """Milliseconds of one block: ``stages`` by name, ``total`` from the first one's start to the last one's end."""

    index: int
    frames: int
    total: float
    stages: dict[str, float] = field(default_factory=dict)


class BlockTimer:
    """Collects the stages of each block; ``history`` holds the last ``keep`` finished blocks."""

    def __init__(self, device: torch.device, keep: int = 1000):
        self._device = device
        self.history: deque[BlockTimes] = deque(maxlen=keep)
        self._running: deque[tuple[int, int, list]] = deque()
        self._stages: list[tuple[str, object, object]] = []
        self._count = 0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is enqueued inside, under ``name``."""
        start = self._mark()
        yield
        self._stages.append((name, start, self._mark()))

    def block_done(self, frames: int) -> None:
        """The stages since the last call were one block of ``frames`` pixel frames."""
        self._running.append((self._count, frames, self._stages))
        self._stages, self._count = [], self._count + 1
        self.collect()

    def discard(self) -> None:
        """Forget the stages of a block that failed."""
        self._stages = []

    def collect(self) -> None:
        """Move blocks that the device has finished to ``history``."""
        while self._running and self._running[0][2][-1][2].query():
            index, frames, stages = self._running.popleft()
            times: dict[str, float] = {}
            for name, start, end in stages:
                times[name] = times.get(name, 0.0) + start.elapsed_time(end)
            total = stages[0][1].elapsed_time(stages[-1][2])
            self.history.append(BlockTimes(index, frames, total, times))

    def clear(self) -> None:
        """Start counting anew, for example after a warm-up."""
        self.history.clear()
        self._running.clear()
        self._stages, self._count = [], 0

    def _mark(self):
        if self._device.type != "cuda":
            return _HostMark()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
