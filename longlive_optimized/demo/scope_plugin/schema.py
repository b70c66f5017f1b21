"""The pipeline's description for scope: what its page shows, what it downloads, what it sends. Imports scope."""

# Select boxes are enums made from tables, which no type checker follows.
# pyright: reportInvalidTypeForm=false, reportAttributeAccessIssue=false

from __future__ import annotations

from enum import Enum
from typing import get_args

from pydantic import Field
from scope.core.pipelines.artifacts import HuggingfaceRepoArtifact  # pyright: ignore[reportMissingImports]
from scope.core.pipelines.base_schema import (  # pyright: ignore[reportMissingImports]
    BasePipelineConfig,
    ModeDefaults,
    ui_field_config,
)

from ... import __version__
from ...config import PRESETS
from ...weights.published import CONTROL_FILE
from .call_params import Corner as CORNERS
from .home import docs_url
from .load_params import ESTIMATED_VRAM, LoadParams
from .notify import PIPELINE_ID

_DEFAULTS = LoadParams()
PORTS = ("video", "vace_input_frames", "vace_input_masks")


def _choice(name: str, *values: str) -> type[Enum]:
    """An enum whose members are their values, which scope's page shows as a select box."""
    return Enum(name, [(value, value) for value in values], type=str)  # pyright: ignore[reportReturnType]


Preset = _choice("Preset", *PRESETS)
VaeType = _choice("VaeType", "wan", "lightvae", "tae", "lighttae")
Corner = _choice("Corner", *get_args(CORNERS))
Quantization = _choice("Quantization", "fp8_e4m3fn")
StepSchedule = _choice("StepSchedule", "scope", "longlive")
Positions = _choice("Positions", "base", "relative")


class LongLiveOptimizedConfig(BasePipelineConfig):
    """The same controls as scope's LongLive, and our own: presets, overlay, schedule, positions."""

    pipeline_id = PIPELINE_ID
    pipeline_name = "LongLive Optimized"
    pipeline_description = (
        "LongLive-1.3B in real time: the same checkpoints and the same pictures, sooner. Prompts, presets and the "
        "latency panel may change while it runs."
    )
    pipeline_version = __version__
    docs_url = docs_url()
    estimated_vram_gb = ESTIMATED_VRAM
    supports_lora = True
    supports_vace = True
    supports_cache_management = True
    supports_quantization = True
    min_dimension = 16
    inputs = [*PORTS]  # noqa: RUF012  (scope's own annotation is a ClassVar)
    outputs = ["video"]  # noqa: RUF012
    artifacts = [  # noqa: RUF012
        HuggingfaceRepoArtifact(
            repo_id="daydreamlive/Wan2.1-T2V-1.3B", files=["config.json", "Wan2.1_VAE.pth", "google"]
        ),
        HuggingfaceRepoArtifact(
            repo_id="daydreamlive/WanVideo_comfy", files=["config.json", "umt5-xxl-enc-fp8_e4m3fn.safetensors"]
        ),
        HuggingfaceRepoArtifact(repo_id="daydreamlive/WanVideo_comfy", files=["config.json", CONTROL_FILE.name]),
        HuggingfaceRepoArtifact(
            repo_id="daydreamlive/Autoencoders",
            files=["config.json", "lightvaew2_1.pth", "taew2_1.pth", "lighttaew2_1.pth"],
        ),
        HuggingfaceRepoArtifact(
            repo_id="daydreamlive/LongLive-1.3B", files=["config.json", "models/longlive_base.pt", "models/lora.pt"]
        ),
    ]
    modes = {  # noqa: RUF012
        "text": ModeDefaults(default=True),
        "video": ModeDefaults(
            height=512, width=512, noise_scale=0.7, noise_controller=True, denoising_steps=[1000, 750]
        ),
    }

    vace_context_scale: float = Field(
        default=_DEFAULTS.vace_context_scale,
        ge=0.0,
        le=2.0,
        description="How strongly control video, masks and pictures act (VACE)",
        json_schema_extra=ui_field_config(order=1, component="vace", is_load_param=True),
    )
    lora_merge_strategy: str = Field(
        default="permanent_merge",
        description="LoRAs are merged into the weights; their scales can be changed while streaming all the same",
        json_schema_extra=ui_field_config(order=1, component="lora", is_load_param=True),
    )
    vae_type: VaeType = Field(
        default=VaeType.wan,
        description="wan is the model's own VAE; lightvae, tae and lighttae are smaller, faster and lossy",
        json_schema_extra=ui_field_config(order=2, is_load_param=True, label="VAE"),
    )
    height: int = Field(
        default=_DEFAULTS.height,
        ge=16,
        description="Output height in pixels, rounded to a multiple of 16",
        json_schema_extra=ui_field_config(order=3, component="resolution", is_load_param=True),
    )
    width: int = Field(
        default=_DEFAULTS.width,
        ge=16,
        description="Output width in pixels, rounded to a multiple of 16",
        json_schema_extra=ui_field_config(order=3, component="resolution", is_load_param=True),
    )
    base_seed: int = Field(
        default=_DEFAULTS.base_seed,
        ge=0,
        description="The same seed, size and steps give the same video",
        json_schema_extra=ui_field_config(order=4, is_load_param=True, label="Seed"),
    )
    manage_cache: bool = Field(
        default=_DEFAULTS.manage_cache,
        description="Start anew where a change asks for it (other steps, LoRA scales, prompts over a video)",
        json_schema_extra=ui_field_config(order=4, component="cache", is_load_param=True),
    )
    denoising_steps: list[int] = Field(
        default=[*_DEFAULTS.denoising_steps],
        description="Timesteps of a block, falling from at most 1000",
        json_schema_extra=ui_field_config(
            order=5,
            component="denoising_steps",
            is_load_param=True,
            modulatable=True,
            modulatable_min=100,
            modulatable_max=1000,
        ),
    )
    noise_scale: float = Field(
        default=_DEFAULTS.noise_scale,
        ge=0.0,
        le=1.0,
        description="Share of noise over the input video: less keeps more of it",
        json_schema_extra=ui_field_config(
            order=6, component="noise", modes=["video"], modulatable=True, modulatable_min=0.0, modulatable_max=1.0
        ),
    )
    noise_controller: bool = Field(
        default=_DEFAULTS.noise_controller,
        description="Take the share of noise from how much the input moves",
        json_schema_extra=ui_field_config(order=6, component="noise", modes=["video"]),
    )
    quantization: Quantization | None = Field(
        default=None,
        description="fp8_e4m3fn runs as int8, with a third of the error; the statistics report what runs",
        json_schema_extra=ui_field_config(order=7, component="quantization", is_load_param=True),
    )
    optimization_preset: Preset = Field(
        default=Preset(_DEFAULTS.optimization_preset),
        description="Steps and window of attention; changes without a cut while streaming",
        json_schema_extra=ui_field_config(order=8, label="Preset"),
    )
    show_latency_overlay: bool = Field(
        default=_DEFAULTS.show_latency_overlay,
        description="Draw latency and frame rate into the frames, for every viewer",
        json_schema_extra=ui_field_config(order=9, label="Latency overlay"),
    )
    overlay_position: Corner = Field(
        default=Corner(_DEFAULTS.overlay_position),
        description="Corner of the picture in which the latency overlay stands",
        json_schema_extra=ui_field_config(order=9, label="Overlay in"),
    )
    show_messages: bool = Field(
        default=_DEFAULTS.show_messages,
        description="Draw what has gone wrong into the frames, for a few seconds",
        json_schema_extra=ui_field_config(order=9, label="Messages"),
    )
    step_schedule: StepSchedule = Field(
        default=StepSchedule(_DEFAULTS.step_schedule),
        description="scope runs the timesteps as they stand; longlive shifts them as the model was distilled",
        json_schema_extra=ui_field_config(order=10, is_load_param=True, label="Schedule"),
    )
    positions: Positions = Field(
        default=Positions(_DEFAULTS.positions),
        description="base as scope has it; relative streams without end (set restart_at to 0 then)",
        json_schema_extra=ui_field_config(order=11, is_load_param=True, label="Positions"),
    )
    restart_at: int = Field(
        default=_DEFAULTS.restart_at or 0,
        ge=0,
        description="Latent frame from which on a stream begins again, with a cut; 0 is never",
        json_schema_extra=ui_field_config(order=12, is_load_param=True, label="Restart at"),
    )
    low_memory: bool = Field(
        default=_DEFAULTS.low_memory,
        description="Hold weights in 8 bits alone, whatever runs: less GPU memory, pictures a little coarser",
        json_schema_extra=ui_field_config(order=13, is_load_param=True, label="Low memory"),
    )
    max_sessions: int = Field(
        default=_DEFAULTS.max_sessions,
        ge=1,
        le=16,
        description="Sessions served at once; each takes GPU memory of its own",
        json_schema_extra=ui_field_config(order=14, is_load_param=True, label="Sessions"),
    )
    model_path: str | None = Field(
        default=None,
        description="A folder of weights, or tiny for the built-in model; empty for scope's own folders",
        json_schema_extra=ui_field_config(order=15, is_load_param=True, label="Model folder"),
    )
