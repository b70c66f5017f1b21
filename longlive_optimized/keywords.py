"""Keywords by name and type, for type checkers and editors; what they mean stands where they are taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

PresetName = Literal["quality_stream", "balanced", "speed", "realtime", "turbo", "ultra", "quality"]
Precision = Literal["bf16", "int8", "fp8"]
VaePrecision = Literal["auto", "bf16", "int8"]
TextPrecision = Literal["auto", "bf16", "int8", "fp8"]
TextResidence = Literal["auto", "gpu", "parked", "cpu"]
Blend = Literal["linear", "slerp"]
Position = Literal["top-left", "top-right", "bottom-left", "bottom-right"]
Interpolation = Literal["none", "blend"]


class StreamFields(TypedDict, total=False):
    """Those of StreamSettings that ``open_stream`` has no argument for."""

    denoising_steps: Sequence[int]
    step_schedule: Literal["longlive", "scope"]
    local_attn_size: int
    sink_size: int
    global_sink: bool
    positions: Literal["relative", "base"]
    restart_at: int | None
    precision: Precision
    use_cuda_graphs: bool


class ConfigFields(StreamFields, total=False):
    """The fields of StreamSettings, OptimizationConfig and ScopeOptimizationConfig."""

    height: int | None
    width: int | None
    seed: int
    vae_type: Literal["wan", "lightvae", "tae", "lighttae"]
    vae_precision: VaePrecision
    text_precision: TextPrecision
    text_residence: TextResidence
    keep_text_int8: bool
    model_dtype: Literal["auto", "bfloat16", "float32"]
    low_memory: bool | None
    memory_limit_gib: float | None
    control: bool
    use_prompt_cache: bool
    prompt_cache_size: int
    use_torch_compile: bool
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
    enable_profiling: bool
    enable_latency_overlay: bool
    overlay_position: Position
    overlay_opacity: float
    playback_speed: float
    interpolation: Interpolation
    shown_fps: int | None
    target_fps: int
    max_queue_depth: int
    drop_frames_on_lag: bool
    prompt_debounce_ms: int
    smooth_prompt_transition: bool
    transition_frames: int


class OverlayFields(TypedDict, total=False):
    """Those of OverlayConfig without its position."""

    opacity: float
    show_latency_graph: bool
    show_optimizations: bool
    graph_history: int
    latency_warning_ms: float
    latency_error_ms: float
    margin: float
    scale: float


class SwitchFields(TypedDict, total=False):
    """How a prompt is reached; the fields are BlockRequest's."""

    blend: Blend
    transition_blocks: int | None


class SourceFields(TypedDict, total=False):
    """What a block is made from beside its prompt; the fields are BlockRequest's."""

    video: Any  # pictures
    noise_scale: float
    noise_from_motion: bool
    control: Any  # a Control


class FrameFields(SwitchFields, total=False):
    """What may go with a prompt."""

    denoising_steps: Sequence[int]
