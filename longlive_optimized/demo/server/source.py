"""Where streams come from: one engine."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Protocol

import torch

from ...config import OptimizationConfig
from ...engine.engine import LongLiveEngine
from ...engine.loading import Progress
from ...engine.ranks import Ranks
from ...engine.snapshot import Snapshot
from ...weights.user_lora import UserLora
from ..scope_integration import OptimizedScopePipeline, ScopeOptimizationConfig


class Source(Protocol):
    """A loaded model. config: of streams that wish for nothing else, with a size."""

    engine: LongLiveEngine
    config: ScopeOptimizationConfig

    def open(self, config: ScopeOptimizationConfig, snapshot: Snapshot | None = None) -> OptimizedScopePipeline:
        """A stream of its own; with ``snapshot`` it goes on where another one was."""
        ...


class EngineSource:
    """A LongLiveEngine; arguments and errors are its own. Of ``loras`` it keeps what other scales are merged from."""

    def __init__(
        self,
        model_path: str | PathLike,
        config: ScopeOptimizationConfig,
        device: str | torch.device | None = None,
        progress: Progress | None = None,
        vae_device: str | torch.device | None = None,
        text_device: str | torch.device | None = None,
        ranks: Ranks | None = None,
        loras: Sequence[UserLora] = (),
    ):
        own = OptimizationConfig.of(config)
        self.engine = LongLiveEngine(
            model_path, own, device, progress, loras, vae_device=vae_device, text_device=text_device, ranks=ranks
        )
        if loras:
            self.engine.keep_loras(loras)
        self.config = config.sized(self.engine.config.size)

    def open(self, config: ScopeOptimizationConfig, snapshot: Snapshot | None = None) -> OptimizedScopePipeline:
        """A pipeline that is warmed up only if asked: others would stand still meanwhile."""
        return OptimizedScopePipeline.on(self.engine, config, warm=True, snapshot=snapshot)
