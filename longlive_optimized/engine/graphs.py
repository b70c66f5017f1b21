"""CUDA graphs of an engine's passes: captured when first run, replayed ever after."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable

import torch

log = logging.getLogger(__name__)


class GraphCache:
    """Runs work that only reads and writes fixed buffers: at first as it is, from then on by replaying its graph.

    Its graphs share one memory pool, so they must not run at once and must leave their results in buffers of the
    caller's. A capture that fails is logged; everything runs eagerly from then on. ``loaded`` is a set of what has run
    on the device, which caches may share.
    """

    def __init__(self, device: torch.device, loaded: set[Hashable] | None = None):
        self._loaded = set() if loaded is None else loaded
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
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
        if key not in self._graphs and not self.failed and kernels in self._loaded:
            self._capture(key, work)
        if graph := self._graphs.get(key):
            graph.replay()
            return
        work()  # compiles kernels and makes the libraries' plans, which a capture must not
        if kernels is not None:
            self._loaded.add(kernels)
        if self.failed:
            return
        error = self._capture(key, work)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()  # a graph's pool cannot have the blocks that the allocator keeps for others
            error = self._capture(key, work)
        if error:
            self.failed = True
            self._graphs.clear()
            log.warning("CUDA graphs are off, capturing %s failed: %s", key, error)

    def _capture(self, key: Hashable, work: Callable[[], None]) -> RuntimeError | None:
        started, before, graph = time.perf_counter(), torch.cuda.memory_reserved(), torch.cuda.CUDAGraph()
        try:
            self._record(graph, work)
        except RuntimeError as error:
            if not self._graphs:
                self._pool = torch.cuda.graph_pool_handle()  # one that only a failed capture has used is refused
            return error.with_traceback(None)  # which would hold the memory that was short
        self._graphs[key] = graph
        self.capture_seconds += time.perf_counter() - started
        self.capture_bytes += max(0, torch.cuda.memory_reserved() - before)
        return None

    def _record(self, graph: torch.cuda.CUDAGraph, work: Callable[[], None]) -> None:
        """Not by ``torch.cuda.graph``, which first waits for the device: this goes on while the device is busy, so
        that a stream whose preset has changed does not stand still for it."""
        with torch.cuda.stream(self._stream):
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()


class Eager:
    """Stands in for GraphCache where there are no graphs."""

    captured, capture_seconds, capture_bytes, failed = 0, 0.0, 0, False

    def run(self, key: Hashable, work: Callable[[], None], kernels: Hashable = None) -> None:
        """Do ``work``."""
        work()


class GraphCaches:
    """Makes the graph caches of one engine's streams, which share what has run on the device.

    compiled: the layers are compiled by torch.compile, which makes graphs of its own or none.
    """

    def __init__(self, device: torch.device, compiled: bool):
        self._device, self._compiled = device, compiled
        self._loaded: set[Hashable] = set()

    def __call__(self, wanted: bool) -> GraphCache | Eager:
        """A new cache; one that runs everything eagerly where graphs are not wanted or not to be had."""
        if not wanted:
            return Eager()
        if self._device.type != "cuda" or self._compiled:
            log.info("no CUDA graphs: %s", "torch.compile is used" if self._compiled else "no GPU")
            return Eager()
        return GraphCache(self._device, self._loaded)
