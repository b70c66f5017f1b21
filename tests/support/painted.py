"""A pipeline whose every frame says which it is."""

from __future__ import annotations

import dataclasses
import time
import types
import zlib
from collections.abc import Callable

import numpy as np
import torch

from longlive_optimized.config import PRESETS
from longlive_optimized.demo.scope_integration import LatencyStats, ScopeOptimizationConfig, create_latency_overlay

BITS = 16
CELL = 16  # pixels: survives the encoder


class PaintedPipeline:
    """Frames that carry their number in black and white cells and their prompt in a grey level; a block takes
    ``block_seconds``.

    calls: what was called, the first prompt left out. painted: when each frame was made (time.monotonic).
    blocks: when each block began, and its first frame's number. sources: what each was to be made from. fail:
    called before each block, and may raise. control: whether it has VACE's module.
    """

    fallback_blocks = 0
    replaying = None
    recorder = types.SimpleNamespace(story=lambda: None)

    def __init__(self, config: ScopeOptimizationConfig, block_seconds: float = 0.0, control: bool = False):
        self.config, self.block_seconds = config, block_seconds
        self.engine = painted_engine(control)
        self.overlay = create_latency_overlay()
        self.preset, self.prompt = "balanced", None
        self.calls: list[str] = []
        self.painted: list[float] = []
        self.blocks: list[tuple[float, int]] = []
        self.sources: list[dict] = []
        self.fail: Callable[[], None] = lambda: None

    def next_block(self, **source) -> torch.Tensor:
        prompt = self.prompt
        self.blocks.append((time.monotonic(), len(self.painted)))
        self.sources.append(source)
        self.fail()
        time.sleep(self.block_seconds)
        count = 9 if not self.painted else 12
        first = len(self.painted)
        block = torch.stack([self._paint(first + i, prompt) for i in range(count)])
        self.painted += [time.monotonic()] * count
        return block

    def switch_prompt(self, prompt: str, **how) -> None:
        if self.prompt is not None:
            self.calls.append("switch_prompt")
        self.prompt = prompt

    def configure(self, **changes) -> None:
        self.calls.append("configure")
        self.config = self.config.changed(**changes)

        def fits(name: str) -> bool:
            return all(getattr(self.config, field) == value for field, value in self.config.preset_fields(name).items())

        self.preset = next(filter(fits, PRESETS), "custom")

    def reset(self, seed: int | None = None) -> None:
        self.calls.append("reset")
        if seed is not None:
            self.config = dataclasses.replace(self.config, seed=seed)

    def end_replay(self) -> None:
        pass

    def get_latency_stats(self) -> dict:
        counts = {"frame_count": len(self.painted), "fallback_blocks": self.fallback_blocks}
        return vars(LatencyStats(block_ms=self.block_seconds * 1e3, preset=self.preset, **counts))

    def _paint(self, number: int, prompt: str) -> torch.Tensor:
        return torch.from_numpy(numbered(number, *self.config.size, level(prompt)))


def numbered(number: int, height: int, width: int, grey: int) -> np.ndarray:
    """A picture [H, W, 3] that says its number, on grey."""
    picture = np.full((height, width, 3), grey, np.uint8)
    for bit in range(BITS):
        row, column = divmod(bit, 8)
        picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = 255 * (number >> bit & 1)
    return picture


def level(prompt: str) -> int:
    """The grey level that stands for a prompt."""
    return 40 + zlib.crc32(prompt.encode()) % 8 * 24


def read_number(picture: np.ndarray) -> int:
    """The number painted in a frame [H, W, 3] that has been through an encoder."""
    cells = [
        picture[r * CELL + 4 : (r + 1) * CELL - 4, c * CELL + 4 : (c + 1) * CELL - 4]
        for r in range(2)
        for c in range(8)
    ]
    return sum((cell.mean() > 128) << bit for bit, cell in enumerate(cells))


def read_level(picture: np.ndarray) -> int:
    """The nearest of the levels that stand for prompts."""
    return round((picture[2 * CELL + 4 :].mean() - 40) / 24) * 24 + 40


class PaintedSource:
    """Streams that are painted; opened: all that were, in their order."""

    def __init__(self, config: ScopeOptimizationConfig, block_seconds: float = 0.0, control: bool = False):
        self.config, self.block_seconds, self.engine = config, block_seconds, painted_engine(control)
        self.opened: list[PaintedPipeline] = []

    def open(self, config: ScopeOptimizationConfig) -> PaintedPipeline:
        pipeline = PaintedPipeline(config, self.block_seconds, self.engine.control is not None)
        pipeline.engine = self.engine
        self.opened.append(pipeline)
        return pipeline


def painted_engine(control: bool) -> types.SimpleNamespace:
    """What is asked of an engine."""
    plan = types.SimpleNamespace(as_json=lambda: {"peak_gib": 0.5, "available_gib": None, "costs": []})
    cpu = torch.device("cpu")
    devices = types.SimpleNamespace(model=cpu, all=(cpu,), async_vae=False)
    control = object() if control else None
    return types.SimpleNamespace(device=cpu, devices=devices, memory_plan=plan, control=control, loras=(), merges=0)


def painted(block_seconds: float = 0.0, control: bool = False, **fields) -> Callable:
    """A loader of a PaintedSource of a small picture."""
    config = ScopeOptimizationConfig.preset_balanced(**{"height": 64, "width": 128, **fields})
    return lambda progress: PaintedSource(config, block_seconds, control)
