"""CUDA graphs of an engine's passes: captured when first run, replayed ever after."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Hashable
from functools import cached_property

import torch

log = logging.getLogger(__name__)


class GraphSwitch:
    """Whether the caches that are made with it capture graphs: one for each stream.

    device: a CPU has no graphs. loaded: a set of what has run on the device, which switches may share. possible: what
    runs may be captured.
    """

    def __init__(self, device: torch.device, loaded: set[Hashable] | None = None, possible: bool = True):
        self.device, self.loaded = device, set() if loaded is None else loaded
        self.on = self._possible = possible and device.type == "cuda"
        self.caches: weakref.WeakSet[GraphCache] = weakref.WeakSet()

    def turn(self, on: bool) -> None:
        """Capture from here on, where that is possible; or drop all graphs and run what comes as it is."""
        self.on = on and self._possible
        if not self.on:
            self.drop()

    def drop(self) -> None:
        """Forget all graphs, whose addresses are no longer good; what comes is captured anew."""
        for cache in self.caches:
            cache.drop()


class GraphCache:
    """Runs work that only reads and writes fixed buffers: at first as it is, from then on by replaying its graph.

    Its graphs share one memory pool, so they must not run at once and must leave their results in buffers of the
    caller's. A capture that fails is logged; everything runs eagerly from then on, as where ``switch`` is off.
    device: where the work runs, as the current device; None is the switch's.
    """

    def __init__(self, switch: GraphSwitch, device: torch.device | None = None):
        self._switch, self._device = switch, device or switch.device
        switch.caches.add(self)
        self.drop()

    def drop(self) -> None:
        """Forget all graphs, and that a capture failed."""
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool = None
        self.capture_seconds, self.capture_bytes = 0.0, 0
        self.failed = False

    @property
    def captured(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    def run(self, key: Hashable, work: Callable[[], None], kernels: Hashable = None) -> None:
        """Do ``work``; work whose shapes, addresses or host values differ needs another ``key``.

        ``kernels``: a key for the set of kernels launched. If work with the same ``kernels`` has run before, the eager
        warm-up call is skipped and the graph is captured at once. If that capture fails, as it may in a thread that
        has not loaded the kernels, the work runs eagerly.
        """
        if self.failed or not self._switch.on:
            work()
            return
        if key not in self._graphs and kernels in self._switch.loaded:
            self._capture(key, work)
        if graph := self._graphs.get(key):
            graph.replay()
            return
        work()  # compiles kernels and makes the libraries' plans, which a capture must not
        if kernels is not None:
            self._switch.loaded.add(kernels)
        error = self._capture(key, work)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()  # a graph's pool cannot have the blocks that the allocator keeps for others
            error = self._capture(key, work)
        if error:
            self.drop()
            self.failed = True
            log.warning("CUDA graphs are off, capturing %.60s failed: %s", key, error)

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self._device)

    def _capture(self, key: Hashable, work: Callable[[], None]) -> RuntimeError | None:
        started, before, graph = time.perf_counter(), self._reserved(), torch.cuda.CUDAGraph()
        try:
            self._record(graph, work)
        except RuntimeError as error:
            if not self._graphs:
                self._pool = None  # one that only a failed capture has used is refused
            return error.with_traceback(None)  # which would hold the memory that was short
        self._graphs[key] = graph
        self.capture_seconds += time.perf_counter() - started
        self.capture_bytes += max(0, self._reserved() - before)
        return None

    def _reserved(self) -> int:
        return torch.cuda.memory_reserved(self._device)

    def _record(self, graph: torch.cuda.CUDAGraph, work: Callable[[], None]) -> None:
        """Not by ``torch.cuda.graph``, which first waits for the device: this goes on while the device is busy, so
        that a stream whose preset has changed does not stand still for it."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
