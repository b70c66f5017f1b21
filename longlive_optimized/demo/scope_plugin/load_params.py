"""What scope hands the pipeline when it is loaded: JSON from a client over the schema's defaults, unchecked."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticUndefined

from ...config import PIXELS_PER_TOKEN, OptimizationConfig
from .call_params import Corner, LoraScale, Positions, Preset, Schedule, Steps, VaeType

log = logging.getLogger(__name__)

# GiB that one session takes with these defaults, nothing given up for want of memory (``engine.memory_plan``), scope's
# text encoder in float8, and no kernels of ours for the VAE. With less, the plan chooses what fits.
ESTIMATED_VRAM = 16.0
DEFAULT_STEPS = (1000, 750, 500, 250)
# Fields that OptimizationConfig has by the same names.
_SAME = ("height", "width", "vae_type", "step_schedule", "positions", "restart_at", "low_memory")
ROTARY_END = 1021  # latent frame at which scope's own pipeline begins again: its table of positions ends there


def _nothing_is_none(value: Any) -> Any:
    return None if value in ("", 0) else value


def _multiple(size: int) -> int:
    """The nearest multiple of what a token covers: scope's page rounds for its own pipelines alone."""
    return max(PIXELS_PER_TOKEN, (size + PIXELS_PER_TOKEN // 2) // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN)


def _whole(size: Any) -> Any:
    return round(size) if isinstance(size, float) and math.isfinite(size) else size


Pixels = Annotated[int, BeforeValidator(_whole), Field(ge=1), AfterValidator(_multiple)]


class Lora(LoraScale):
    """A LoRA file and its scale. It is merged either way, so ``merge_mode`` changes nothing but is checked."""

    model_config = ConfigDict(strict=False)  # as all that comes at load, which may be scope's own objects

    scale: Annotated[float, Field(ge=-10, le=10)] = 1.0
    merge_mode: Literal["permanent_merge", "runtime_peft", "module_targeted"] | None = None


class LoadParams(BaseModel):
    """Load parameters under scope's names, and our own. Read them with ``read_load``."""

    model_path: Annotated[str | None, BeforeValidator(_nothing_is_none)] = None
    height: Pixels = 320
    width: Pixels = 576
    base_seed: Annotated[int, Field(ge=0, lt=2**62)] = 42
    manage_cache: bool = True
    denoising_steps: Steps = DEFAULT_STEPS
    noise_scale: Annotated[float, Field(ge=0, le=1)] = 0.7
    noise_controller: bool = True
    vae_type: VaeType = "wan"
    quantization: Literal["fp8_e4m3fn"] | None = None
    loras: list[Lora] = []
    vace_enabled: bool = False
    vace_context_scale: Annotated[float, Field(ge=0, le=2)] = 1.0
    optimization_preset: Preset = "balanced"
    show_latency_overlay: bool = False
    overlay_position: Corner = "top-right"
    show_messages: bool = True
    step_schedule: Schedule = "scope"
    positions: Positions = "base"
    restart_at: Annotated[int | None, BeforeValidator(_nothing_is_none)] = ROTARY_END
    low_memory: bool = False
    max_sessions: Annotated[int, Field(ge=1, le=16)] = 2

    def engine_config(self) -> OptimizationConfig:
        """The engine's switches. Raises pydantic's ValidationError."""
        asked: dict[str, Any] = {name: getattr(self, name) for name in _SAME} | {"seed": self.base_seed}
        asked["control"] = self.vace_enabled
        asked["low_memory"] = self.low_memory or None  # a box that is not ticked is no wish
        if self.denoising_steps != DEFAULT_STEPS:  # scope always passes a list: only another one is a wish
            asked["denoising_steps"] = self.denoising_steps
        return OptimizationConfig(**{**self.preset_fields(self.optimization_preset), **asked})

    def in_force(self, name: str, value: Any) -> bool:
        """Whether ``value`` for the field ``name`` would have been no other than this."""
        try:
            return getattr(type(self)(**{name: value}), name) == getattr(self, name)
        except ValidationError:
            return False

    def preset_fields(self, name: str) -> dict:
        """What the preset ``name`` sets of the engine's switches; a ``quantization`` holds under all of them."""
        fields = OptimizationConfig.preset_fields(name)
        return fields | {"precision": "fp8"} if self.quantization else fields


def read_load(keywords: Mapping[str, Any]) -> tuple[LoadParams, list[str]]:
    """What is ours among ``keywords``, checked, and what of it was changed, in words; what is not ours is named in the
    log.

    Raises ValueError naming the parameters that make no sense.
    """
    # Defaults come as they stand in the schema: enum members, and pydantic's mark where a field has no plain one.
    given = {name: value.value if isinstance(value, Enum) else value for name, value in keywords.items()}
    given = {name: value for name, value in given.items() if value is not None and value is not PydanticUndefined}
    if ignored := sorted(given.keys() - LoadParams.model_fields.keys()):
        log.info("load parameters without a meaning here: %s", ", ".join(ignored))
    try:
        load = LoadParams(**given)
        load.engine_config()
        notices = [
            f"{name}: {given[name]} is no multiple of {PIXELS_PER_TOKEN}, {getattr(load, name)} is taken"
            for name in ("height", "width")
            if name in given and given[name] != getattr(load, name)
        ]
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, f['loc']))}: {f['msg']}, got {f['input']!r}" for f in error.errors())
        raise ValueError("; ".join(faults)) from error
    return load, notices
