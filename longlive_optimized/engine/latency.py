"""Latency as a viewer sees it: per pixel frame, over a window of frames."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .timing import percentile

if TYPE_CHECKING:
    from .engine import LongLiveEngine
    from .stream import Stream

WINDOW = 1000  # pixel frames that mean, percentile, extremes and rate are taken over


@dataclass
class LatencyStats:
    """A snapshot. ``*_ms`` are milliseconds per pixel frame (block time / frames of that block), ``fps`` pixel frames
    per second; all are zero before the first frame, and warm-up is not counted. A block's time is
    ``BlockTimes.interval``: with the VAE on a GPU of its own, what the busier one takes.

    p99_ms is the nearest-rank percentile. mean, p99, max, min and fps cover the last 1000 frames, frame_count all since
    the last reset. block_ms is the last block's time, prompt_switch_ms the last switch's: from the call to its first
    new frame. async_vae_active: the VAE and the transformer are on different GPUs. prompt_cache_hits and
    prompt_cache_misses are the engine's, since it was made, for all its streams. preset is the one in force, ``custom``
    where the config is none of them. precision is ``Stream.precision``. fallback_blocks were made again without 8 bits,
    which had given something that is not finite; of the stream since its last reset. vae_precision is what the VAE's
    convolutions run in; vae_saturated of its values were too large for int8 and cut off, since the engine was made: a
    few in a million are expected (docs/int8.md). text_precision is what the text encoder's weights are held in,
    text_residence where: ``gpu``, ``parked`` or ``cpu``. memory_fallback says what was given up because memory ran out,
    and what that costs; it is empty if nothing was.
    """

    current_ms: float = 0.0
    mean_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    min_ms: float = 0.0
    fps: float = 0.0
    frame_count: int = 0
    cuda_graphs_active: bool = False
    static_kv_active: bool = False
    async_vae_active: bool = False
    prompt_cache_hits: int = 0
    prompt_cache_misses: int = 0
    block_ms: float = 0.0
    prompt_switch_ms: float = 0.0
    torch_compile_active: bool = False
    precision: str = "bf16"
    dropped_frames: int = 0
    preset: str = "custom"
    fallback_blocks: int = 0
    vae_precision: str = "bf16"
    vae_saturated: int = 0
    text_precision: str = "bf16"
    text_residence: str = "gpu"
    memory_fallback: str = ""


class LatencyTracker:
    """Collects block times."""

    def __init__(self, window: int = WINDOW):
        self._frames: deque[float] = deque(maxlen=window)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._frames.clear()
        self._block_ms = self._switch_ms = 0.0

    def add_block(self, milliseconds: float, frames: int) -> None:
        """Count ``frames`` pixel frames that took ``milliseconds`` together."""
        self._frames.extend([milliseconds / frames] * frames)
        self._block_ms = milliseconds

    def add_switch(self, milliseconds: float) -> None:
        """Note how long the last prompt switch took."""
        self._switch_ms = milliseconds

    def figures(self) -> dict[str, float]:
        """The fields of LatencyStats that are measured."""
        figures = {"block_ms": self._block_ms, "prompt_switch_ms": self._switch_ms}
        if not self._frames:
            return figures
        mean = math.fsum(self._frames) / len(self._frames)
        return figures | {
            "current_ms": self._frames[-1],
            "mean_ms": mean,
            "p99_ms": percentile(self._frames, 0.99),
            "max_ms": max(self._frames),
            "min_ms": min(self._frames),
            "fps": 1e3 / mean if mean > 0 else 0.0,
        }


class LatencyMeter:
    """A stream's latency, the engine's own unless another is given.

    Read from its block times, without waiting for the device or for a block under way. May be asked and told from
    different threads.
    """

    def __init__(self, engine: LongLiveEngine, stream: Stream | None = None):
        self._engine, self._stream = engine, stream or engine.stream
        self._tracker, self._lock = LatencyTracker(), threading.Lock()
        self._last, self._switch = -1, None

    def reset(self) -> None:
        """Start anew, the stream's times included."""
        with self._lock:
            self._stream.timer.clear()
            self._tracker.reset()
            self._last, self._switch = -1, None

    def block_was_switch(self, waited_ms: float) -> None:
        """The last block made was the first of a new prompt, whose caller had waited so long for its start."""
        with self._lock:
            under_way = self._stream.undecoded > 0  # counted when it is given whole
            self._switch = self._stream.timer.count - (not under_way), waited_ms

    def stats(self, **others) -> LatencyStats:
        """All that is known; ``others`` are fields that the engine does not know."""
        engine, codec = self._engine, self._stream.networks.codec
        return LatencyStats(
            **self._figures()
            | {
                "cuda_graphs_active": self._stream.cuda_graphs_active,
                "static_kv_active": True,
                "async_vae_active": engine.devices.async_vae,
                "prompt_cache_hits": engine.prompts.hits,
                "prompt_cache_misses": engine.prompts.misses,
                "torch_compile_active": engine.config.use_torch_compile,
                "precision": self._stream.precision,
                "fallback_blocks": self._stream.fallback_blocks,
                "vae_precision": codec.precision,
                "vae_saturated": codec.saturated,
                "text_precision": engine.text.precision,
                "text_residence": engine.text.residence,
                "memory_fallback": engine.memory_fallback,
            }
            | others
        )

    def _figures(self) -> dict:
        with self._lock:
            times = self._stream.timer.collect()
            for block in times:
                if block.index > self._last:
                    self._last = block.index
                    self._tracker.add_block(block.interval, block.frames)
                if self._switch and block.index == self._switch[0]:
                    to_first_pixel = block.total - block.stages.get("decode_rest", 0)
                    self._tracker.add_switch(self._switch[1] + to_first_pixel)
                    self._switch = None
            return self._tracker.figures()
