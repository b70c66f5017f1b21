"""Times of a block's stages: CUDA events that are read once the device has passed them, never waited for."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from .places import Place


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


class _Stage(NamedTuple):
    """The marks are events of ``place``'s device: times between those of two devices cannot be told."""

    name: str
    place: Place
    start: Any
    end: Any


@dataclass
class BlockTimes:
    """Milliseconds of one block.

    stages: by name; what another device computes for the transformer, a prompt's embedding or encoded pictures, is what
    the transformer waits for it. total: their sum, from the block's beginning to its frames. interval: from block to
    block, where one follows the other at once: what the busier device takes, since the VAE decodes beside the next
    block if it has a device of its own; else ``total``.
    """

    index: int
    frames: int
    total: float
    interval: float
    stages: dict[str, float] = field(default_factory=dict)


class BlockTimer:
    """Collects the stages of each block; keeps the times of the last ``keep`` finished blocks.

    place: where stages run, unless they name another. ``named`` shows them in torch.profiler's traces too.
    """

    def __init__(self, place: Place, keep: int = 1000, named: bool = False):
        self._place, self._named = place, named
        self._history: deque[BlockTimes] = deque(maxlen=keep)
        self._running: deque[tuple[int, int, list[_Stage]]] = deque()
        self._stages: list[_Stage] = []
        self.count = 0
        self._lock = threading.Lock()  # blocks are collected by whoever asks, also while the next one is made

    @contextlib.contextmanager
    def stage(self, name: str, place: Place | None = None) -> Iterator[None]:
        """Time what is enqueued inside at ``place``, under ``name``."""
        place = place or self._place
        start = _mark(place)
        with torch.profiler.record_function(f"longlive::{name}") if self._named else contextlib.nullcontext():
            yield
        self._stages.append(_Stage(name, place, start, _mark(place)))

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
            while self._running and all(stage.end.query() for stage in reversed(self._running[0][2])):
                index, frames, stages = self._running.popleft()
                times: dict[str, float] = defaultdict(float)
                places: dict[Place, float] = defaultdict(float)
                for stage in stages:
                    milliseconds = stage.start.elapsed_time(stage.end)
                    times[stage.name] += milliseconds
                    places[stage.place] += milliseconds
                total = sum(times.values())
                interval = max(places.values()) if len(places) > 1 else total
                self._history.append(BlockTimes(index, frames, total, interval, dict(times)))
            return list(self._history)

    def clear(self) -> None:
        """Start counting anew, for example after a warm-up."""
        with self._lock:
            self._history.clear()
            self._running.clear()
            self._stages, self.count = [], 0


def _mark(place: Place) -> _HostMark | torch.cuda.Event:
    if place.device.type != "cuda":
        return _HostMark()
    event = torch.cuda.Event(enable_timing=True)
    event.record(place.cuda_stream)
    return event
