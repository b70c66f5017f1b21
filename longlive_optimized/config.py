"""What a user may choose about the engine, validated on construction."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

BLOCK_FRAMES = 3  # latent frames per block: fixed by how LongLive was trained
PIXELS_PER_TOKEN = 16

Size = Annotated[int, Field(ge=PIXELS_PER_TOKEN, multiple_of=PIXELS_PER_TOKEN)]

# The one table of presets, as differences from OptimizationConfig's defaults.
_FAST = {"denoising_steps": (1000, 500, 250), "local_attn_size": 9}
PRESETS: dict[str, dict] = {
    "quality_stream": {},
    "balanced": {},
    "speed": {"precision": "fp8"},
    "realtime": _FAST,
    "turbo": {**_FAST, "precision": "fp8"},
    "ultra": {"denoising_steps": (1000, 250), "local_attn_size": 9, "precision": "fp8"},
}
ALIASES = {"quality": "quality_stream"}


@dataclass(config=ConfigDict(extra="forbid"), kw_only=True)
class OptimizationConfig:
    """The engine's switches.

    Raises pydantic's ValidationError, a ValueError, naming the field and what was wanted.

    height, width: pixels, multiples of 16.
    denoising_steps: nominal timesteps, falling, each in 1..1000.
    step_schedule: ``longlive`` warps the steps as the model was distilled, ``scope`` takes them raw.
    local_attn_size: latent frames in the attention window, sinks and current block included.
    sink_size: first latent frames of a stream that never leave the window.
    global_sink: keep the sinks over a prompt switch, instead of making the window's oldest frames the new ones.
    positions: ``relative`` streams without end; ``base`` is the release's absolute RoPE.
    precision: of the linears; fp8 runs as bf16 until it exists, and is reported as what it is.
    model_dtype: ``auto`` is bfloat16 on CUDA and float32 on CPU.
    use_prompt_cache, prompt_cache_size: keep the embeddings of that many prompts, least recently used out first.
    seed: of streams that name none.
    """

    height: Size = 480
    width: Size = 832
    denoising_steps: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field((1000, 750, 500, 250), min_length=1)
    step_schedule: Literal["longlive", "scope"] = "longlive"
    local_attn_size: Annotated[int, Field(le=64)] = 12
    sink_size: Annotated[int, Field(ge=0)] = 3
    global_sink: bool = True
    positions: Literal["relative", "base"] = "relative"
    precision: Literal["bf16", "fp8"] = "bf16"
    model_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    use_prompt_cache: bool = True
    prompt_cache_size: Annotated[int, Field(ge=1)] = 32
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42

    @field_validator("denoising_steps")
    @classmethod
    def _falling(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if any(a <= b for a, b in itertools.pairwise(steps)):
            raise ValueError("denoising_steps must fall from step to step")
        return steps

    @model_validator(mode="after")
    def _window_holds_a_block(self):
        if self.local_attn_size < self.sink_size + BLOCK_FRAMES:
            wanted = f"sink_size + {BLOCK_FRAMES} = {self.sink_size + BLOCK_FRAMES}"
            raise ValueError(f"local_attn_size must be at least {wanted}, got {self.local_attn_size}")
        return self

    @classmethod
    def preset(cls, name: str, **changes) -> OptimizationConfig:
        """The config called ``name``, with ``changes``. Raises ValueError listing the names."""
        return cls(**{**preset_table(name), **changes})


def preset_table(name: str) -> dict:
    """The differences that make a preset. Raises ValueError listing the names."""
    try:
        return PRESETS[ALIASES.get(name, name)]
    except KeyError:
        raise ValueError(f"preset must be one of {', '.join([*PRESETS, *ALIASES])}, got {name!r}") from None
