"""Times of a block's stages: CUDA events that are read once the device has passed them, never waited for."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the smallest value that ``share`` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


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
    """Milliseconds of one block: ``stages`` by name, and ``total``, their sum."""

    index: int
    frames: int
    total: float
    stages: dict[str, float] = field(default_factory=dict)


class BlockTimer:
    """Collects the stages of each block; keeps the times of the last ``keep`` finished blocks.

    ``named`` shows the stages in torch.profiler's traces too.
    """

    def __init__(self, device: torch.device, keep: int = 1000, named: bool = False):
        self._device, self._named = device, named
        self._history: deque[BlockTimes] = deque(maxlen=keep)
        self._running: deque[tuple[int, int, list]] = deque()
        self._stages: list[tuple[str, object, object]] = []
        self.count = 0
        self._lock = threading.Lock()  # blocks are collected by whoever asks, also while the next one is made

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is enqueued inside, under ``name``."""
        start = self._mark()
        with torch.profiler.record_function(f"longlive::{name}") if self._named else contextlib.nullcontext():
            yield
        self._stages.append((name, start, self._mark()))

    def block_done(self, frames: int) -> None:
        """The stages since the last call were one block of ``frames`` pixel frames."""
        with self._lock:
            if self._stages:  # none where another thread has cleared them meanwhile
                self._running.append((self.count, frames, self._stages))
            self._stages, self.count = [], self.count + 1
        self.collect()

    def discard(self) -> None:
        """Forget the stages of a block that failed."""
        self._stages = []

    def collect(self) -> list[BlockTimes]:
        """The last blocks that the device has finished, oldest first; does not wait, for the device or for a block."""
        with self._lock:
            while self._running and self._running[0][2][-1][2].query():
                index, frames, stages = self._running.popleft()
                times: dict[str, float] = {}
                for name, start, end in stages:
                    times[name] = times.get(name, 0.0) + start.elapsed_time(end)
                self._history.append(BlockTimes(index, frames, sum(times.values()), times))
            return list(self._history)

    def clear(self) -> None:
        """Start counting anew, for example after a warm-up."""
        with self._lock:
            self._history.clear()
            self._running.clear()
            self._stages, self.count = [], 0

    def _mark(self):
        if self._device.type != "cuda":
            return _HostMark()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
