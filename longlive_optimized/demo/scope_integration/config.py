"""What someone who streams may choose, beside the engine's switches."""

from __future__ import annotations

from typing import Annotated, Self, Unpack

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from ...config import OptimizationConfig
from ...keywords import ConfigFields, Interpolation, Position
from ...video_time import TRAINED_FPS

USUAL_FPS = 30  # pictures a second with interpolation, where no other rate is wished for

Speed = Annotated[float, Field(ge=0.25, le=4)]
ShownFps = Annotated[int, Field(ge=24, le=60)]


@dataclass(config=ConfigDict(extra="forbid", strict=True), kw_only=True, frozen=True)
class ScopeOptimizationConfig(OptimizationConfig):
    """OptimizationConfig, and how frames are handed out; presets by name or as ``preset_realtime()`` and so on.

    Raises pydantic's ValidationError, a ValueError, naming the field and what was wanted.

    enable_latency_overlay, overlay_position, overlay_opacity: the panel that ``pipeline.overlay`` draws.
    playback_speed: how fast the world goes where this package keeps the time, in the server and in PipelineVideoTrack:
        16 model frames a second, times this, whatever the preset.
    interpolation: what is shown between two model frames there; ``blend`` mixes the two, ``none`` shows nothing.
    shown_fps: pictures a second with interpolation, 30 where it is None. Without interpolation it must be None: each
        model frame is then one picture.
    target_fps: pixel frames a second at which the caller's own loop means to take them from generate_frame, by which it
        is told whether it lags. It sets no pace.
    max_queue_depth: overdue frames that may wait; a caller that falls further behind is lagging.
    drop_frames_on_lag: a lagging caller skips frames, never the newest one; otherwise every frame is handed out.
    prompt_debounce_ms: prompts that come quicker than this after one another are held until the last of them has stood
        so long; the first takes effect at once.
    smooth_prompt_transition, transition_frames: reach a new prompt over so many pixel frames, in whole blocks.
    """

    enable_latency_overlay: bool = True
    overlay_position: Position = "top-right"
    overlay_opacity: Annotated[float, Field(ge=0, le=1)] = 0.8
    playback_speed: Speed = 1.0
    interpolation: Interpolation = "none"
    shown_fps: ShownFps | None = None
    target_fps: Annotated[int, Field(ge=1, le=1000)] = 25
    max_queue_depth: Annotated[int, Field(ge=1)] = 3
    drop_frames_on_lag: bool = True
    prompt_debounce_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 100
    smooth_prompt_transition: bool = False
    transition_frames: Annotated[int, Field(ge=1, le=1_000_000)] = 5

    @model_validator(mode="after")
    def _only_interpolation_has_a_rate(self):
        if self.shown_fps is not None and self.interpolation == "none":
            raise ValueError(
                f"shown_fps must be None or interpolation must be blend, got {self.shown_fps} and none: without "
                f"interpolation each model frame is one picture, {TRAINED_FPS} x playback_speed a second"
            )
        return self

    @property
    def model_fps(self) -> float:
        """Model frames a second where this package keeps the time."""
        return TRAINED_FPS * self.playback_speed

    @property
    def picture_fps(self) -> float | None:
        """Pictures a second with interpolation; None without, where each model frame is one."""
        return None if self.interpolation == "none" else self.shown_fps or USUAL_FPS

    def changed(self, **changes: Unpack[ConfigFields]) -> Self:
        """As StreamSettings has it; ``interpolation="none"`` takes ``shown_fps`` along."""
        return super().changed(**whole_wish(changes))

    @classmethod
    def preset_realtime(cls, **changes: Unpack[ConfigFields]) -> ScopeOptimizationConfig:
        """Three steps, window 9; frames are dropped on lag."""
        return cls.preset("realtime", **changes)

    @classmethod
    def preset_quality_stream(cls, **changes: Unpack[ConfigFields]) -> ScopeOptimizationConfig:
        """Four steps, window 12, every frame, for a loop that takes 20 frames a second."""
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


def whole_wish(changes: ConfigFields) -> ConfigFields:
    """Changes with what they bring along: without interpolation there is no rate of pictures."""
    if changes.get("interpolation") == "none":
        changes = changes.copy()
        changes.setdefault("shown_fps", None)
    return changes
