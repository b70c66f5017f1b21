"""What someone who streams may choose, beside the engine's switches."""

from __future__ import annotations

from typing import Annotated, Unpack

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from ...config import OptimizationConfig
from ...keywords import ConfigFields, Position


@dataclass(config=ConfigDict(extra="forbid", strict=True), kw_only=True, frozen=True)
class ScopeOptimizationConfig(OptimizationConfig):
    """OptimizationConfig, and how frames are handed out; presets by name or as ``preset_realtime()`` and so on.

    Raises pydantic's ValidationError, a ValueError, naming the field and what was wanted.

    enable_latency_overlay, overlay_position, overlay_opacity: the panel that ``pipeline.overlay`` draws.
    target_fps: pixel frames per second at which the caller means to show them.
    max_queue_depth: overdue frames that may wait; a caller that falls further behind is lagging.
    drop_frames_on_lag: a lagging caller skips frames, never the newest one; otherwise every frame is handed out.
    prompt_debounce_ms: prompts that come quicker than this after one another are held until the last of them has stood
        so long; the first takes effect at once.
    smooth_prompt_transition, transition_frames: reach a new prompt over so many pixel frames, in whole blocks.
    """

    enable_latency_overlay: bool = True
    overlay_position: Position = "top-right"
    overlay_opacity: Annotated[float, Field(ge=0, le=1)] = 0.8
    target_fps: Annotated[int, Field(ge=1, le=1000)] = 25
    max_queue_depth: Annotated[int, Field(ge=1)] = 3
    drop_frames_on_lag: bool = True
    prompt_debounce_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 100
    smooth_prompt_transition: bool = False
    transition_frames: Annotated[int, Field(ge=1, le=1_000_000)] = 5

    @classmethod
    def preset_realtime(cls, **changes: Unpack[ConfigFields]) -> ScopeOptimizationConfig:
        """Three steps, window 9; frames are dropped on lag."""
        return cls.preset("realtime", **changes)

    @classmethod
    def preset_quality_stream(cls, **changes: Unpack[ConfigFields]) -> ScopeOptimizationConfig:
        """Four steps, window 12, every frame, at 20 frames a second."""
        return cls.preset("quality_stream", **changes)

    @classmethod
    def preset_quality(cls, **changes: Unpack[ConfigFields]) -> ScopeOptimizationConfig:
        """Another name of quality_stream."""
        return cls.preset("quality", **changes)

    @classmethod
    def preset_balanced(cls, **changes: Unpack[ConfigFields]) -> ScopeOptimizationConfig:
        """Four steps, window 12, every frame."""
        return cls.preset("balanced", **changes)

    @classmethod
    def preset_speed(cls, **changes: Unpack[ConfigFields]) -> ScopeOptimizationConfig:
        """Four steps, window 12, int8 linears; frames are dropped on lag."""
        return cls.preset("speed", **changes)

    @classmethod
    def preset_turbo(cls, **changes: Unpack[ConfigFields]) -> ScopeOptimizationConfig:
        """Three steps, window 9, int8 linears; frames are dropped on lag."""
        return cls.preset("turbo", **changes)

    @classmethod
    def preset_ultra(cls, **changes: Unpack[ConfigFields]) -> ScopeOptimizationConfig:
        """Two steps, window 9, int8 linears: a draft; frames are dropped on lag."""
        return cls.preset("ultra", **changes)
