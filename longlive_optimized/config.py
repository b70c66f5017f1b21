"""What a user may choose about the engine, validated on construction."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from typing import Annotated, Literal, Self, Unpack, cast

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from .keywords import ConfigFields, Precision, PresetName, TextPrecision, TextResidence, VaePrecision
from .plain import did_you_mean, exact
from .video_time import BLOCK_FRAMES

PIXELS_PER_TOKEN = 16
LATENT_SCALE = 8  # pixels per latent row and column
MAX_WINDOW = 64

Size = Annotated[int, Field(ge=PIXELS_PER_TOKEN, multiple_of=PIXELS_PER_TOKEN)]
Step = Annotated[int, Field(ge=1, le=1000)]

# Those of the published model, which streams have where no others are given.
HEIGHT, WIDTH = 480, 832

# The one table of presets. The last two columns belong to ScopeOptimizationConfig; the engine has no such fields.
_COLUMNS = ("denoising_steps", "local_attn_size", "precision", "target_fps", "drop_frames_on_lag")
PRESETS: dict[str, dict] = {
    name: dict(zip(_COLUMNS, row, strict=True))
    for name, row in {
        "quality_stream": ((1000, 750, 500, 250), 12, "bf16", 20, False),
        "balanced": ((1000, 750, 500, 250), 12, "bf16", 25, False),
        "speed": ((1000, 750, 500, 250), 12, "int8", 25, True),
        "realtime": ((1000, 500, 250), 9, "bf16", 25, True),
        "turbo": ((1000, 500, 250), 9, "int8", 30, True),
        "ultra": ((1000, 250), 9, "int8", 40, True),
    }.items()
}
ALIASES = {"quality": "quality_stream"}

log = logging.getLogger(__name__)


# What a stream may change while it runs; its other fields are fixed when it is opened, the engine's when it is made.
CHANGEABLE = (
    "denoising_steps",
    "step_schedule",
    "local_attn_size",
    "global_sink",
    "restart_at",
    "precision",
    "use_cuda_graphs",
)


def read_keywords(cls: type, given: ArgsKwargs) -> ArgsKwargs:
    """Keywords as a dataclass's strict validators take them: NumPy's numbers and arrays, whole floats, any list; and
    names that exist."""
    keywords = {name: exact(value) for name, value in (given.kwargs or {}).items()}
    known = [field.name for field in dataclasses.fields(cls)]
    for name in keywords:
        if name not in known:
            raise ValueError(f"{name} is no field of {cls.__name__}{did_you_mean(name, known)}")
    return ArgsKwargs(given.args, keywords)


@dataclass(config=ConfigDict(extra="forbid", strict=True), kw_only=True, frozen=True)
class StreamSettings:
    """What one stream (one video) chooses for itself.

    Raises pydantic's ValidationError, a ValueError, naming the field and what was wanted.

    height, width: pixels, multiples of 16; None takes the model's own, 480 and 832, of the built-in model 64 and 96.
    denoising_steps: nominal timesteps, falling, each in 1..1000.
    step_schedule: ``longlive`` warps the steps as the model was distilled, ``scope`` takes them raw.
    local_attn_size: the attention window in latent frames, sinks and current block included.
    sink_size: attention sinks: the first latent frames of a stream, which never leave the window.
    global_sink: keep the sinks over a prompt switch, instead of making the window's oldest frames the new ones.
    positions: ``relative`` streams without end; ``base`` is the release's absolute RoPE.
    restart_at: latent frame from which on a stream begins again at frame 0, with a cut; scope does so at 1021, where
        the release's table of positions ends. None goes on: positions are computed, so ``base`` has no end here.
    precision: of the layers' products and of attention over the window; ``bf16`` is the model's own dtype. ``int8``
        leaves what writes the sinks in bf16. ``fp8`` becomes int8: as fast, with a third of the error at this network's
        sizes.
    seed: of the noise. A block draws from seed + its first latent frame (docs/model.md 4.4), so streams with seeds s
        and s + 3 draw the same noise, one block apart.
    use_cuda_graphs: replay each kind of pass from a CUDA graph, captured when it is first run.
    """

    height: Size | None = None
    width: Size | None = None
    denoising_steps: Annotated[tuple[Step, ...], Field(min_length=1, strict=False)] = (1000, 750, 500, 250)
    step_schedule: Literal["longlive", "scope"] = "longlive"
    local_attn_size: Annotated[int, Field(le=MAX_WINDOW)] = 12
    sink_size: Annotated[int, Field(ge=0)] = 3
    global_sink: bool = True
    positions: Literal["relative", "base"] = "relative"
    restart_at: Annotated[int, Field(ge=BLOCK_FRAMES)] | None = None
    precision: Precision = "bf16"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    use_cuda_graphs: bool = True

    @model_validator(mode="before")
    @classmethod
    def _keywords(cls, given: ArgsKwargs) -> ArgsKwargs:
        return read_keywords(cls, given)

    @field_validator("denoising_steps")
    @classmethod
    def _falling(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if any(a <= b for a, b in itertools.pairwise(steps)):
            raise ValueError("denoising_steps must fall from step to step")
        return steps

    @field_validator("precision")
    @classmethod
    def _as_it_runs(cls, precision: Precision) -> Precision:
        if precision == "fp8":
            _say_once("precision fp8 runs as int8, whose error is a third of fp8's at this network's sizes")
            return "int8"
        return precision

    @model_validator(mode="after")
    def _window_holds_a_block(self):
        least = max(self.sink_size, 1) + BLOCK_FRAMES  # without sinks: the first block of a video, of one frame more
        if self.local_attn_size < least:
            named = f"sink_size + {BLOCK_FRAMES} = " if self.sink_size else ""
            raise ValueError(f"local_attn_size must be at least {named}{least}, got {self.local_attn_size}")
        return self

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height or HEIGHT, self.width or WIDTH

    def sized(self, native: tuple[int, int]) -> Self:
        """These settings, with a model's own height and width where none are given."""
        height, width = native
        return dataclasses.replace(self, height=self.height or height, width=self.width or width)

    @classmethod
    def of(cls, config: StreamSettings) -> Self:
        """This class's fields of ``config``, which may be of a class with more."""
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})

    def changed(self, **changes: Unpack[ConfigFields]) -> Self:
        """These settings with ``changes``. Raises ValueError, listing what can change, for bad values, for what is no
        field, and for fields that cannot change while a stream runs (all of OptimizationConfig's but CHANGEABLE).
        """
        if not changes:
            return self
        fixed = {field.name for field in dataclasses.fields(OptimizationConfig)} - {*CHANGEABLE}
        known = [field.name for field in dataclasses.fields(self)]
        can = [*CHANGEABLE, *(name for name in known if name not in fixed and name not in CHANGEABLE)]
        if unknown := [name for name in changes if name not in known and name not in fixed]:
            close = did_you_mean(unknown[0], can)
            raise ValueError(f"{', '.join(unknown)} is no field{close}; {', '.join(can)} can change")
        after = dataclasses.replace(self, **{name: value for name, value in changes.items() if name in known})
        kept = [name for name in known if getattr(after, name) == getattr(self, name)]
        if wrong := [name for name in changes if name in fixed and name not in kept]:
            raise ValueError(f"{', '.join(wrong)} cannot change while a stream runs; {', '.join(can)} can")
        return after


@dataclass(config=ConfigDict(extra="forbid", strict=True), kw_only=True, frozen=True)
class OptimizationConfig(StreamSettings):
    """The engine's switches, and the settings of the streams that it opens.

    Raises pydantic's ValidationError, a ValueError, naming the field and what was wanted.

    vae_type: ``wan`` is the model's own; ``lightvae``, ``tae`` and ``lighttae`` are smaller, faster, and lossy.
    vae_precision: of the convolutions in the VAE's residual blocks, all streams': ``bf16`` is the model's own dtype,
        ``int8`` 8 bits, with ``wan`` alone. ``auto`` is int8 where this config's precision is and there are kernels for
        it: with ``wan`` of full width in bfloat16 on NVIDIA GPUs from Ampere on.
    text_precision: of the text encoder's weights, all streams': ``bf16`` is that of its file, ``int8`` has a scale for
        32 columns of a row and is made from such a file while it is read, ``fp8`` is that of a float8 file. ``auto`` is
        the file's own, whichever that is; what the file cannot give is refused.
    text_residence: where these weights lie: on the ``gpu``; ``parked`` in pinned host memory, from which each layer is
        copied to the GPU while a prompt is encoded; or with the ``cpu``, which then encodes. ``auto`` is the engine's
        device; on a CPU the first two are refused.
    keep_text_int8: with ``text_precision="int8"``, leave the weights made int8 in a file beside their source, from
        which they come the next time.
    model_dtype: ``auto`` is bfloat16 on CUDA and float32 on CPU. In bfloat16 on a CPU without fast convolutions of it
        (on x86, without AVX-512) the VAE still computes in float32.
    low_memory: hold the weights of the layers' products in 8 bits alone, whatever the precision: products in the
        model's dtype multiply with what the 8 bits stand for. Without a change to what is computed, let fewer frames
        at a time pass the VAE. None does so with an 8-bit precision where memory is short.
    memory_limit_gib: GiB that the process may take of a GPU, for the choices that ``engine.memory_plan`` makes; None is
        what is free there. Nothing keeps torch from taking more.
    control: load VACE's module, 1.5 GB, so that requests may have a ``Control``; FileNotFoundError where it is missing.
    use_prompt_cache, prompt_cache_size: keep the embeddings of that many prompts, least recently used out first.
    use_torch_compile, compile_mode: compile the layers with torch.compile instead of capturing CUDA graphs. On an H200
        that is 1 % slower in either mode (docs/performance.md).
    enable_profiling: name the stages of a block in torch.profiler's traces.
    """

    vae_type: Literal["wan", "lightvae", "tae", "lighttae"] = "wan"
    vae_precision: VaePrecision = "auto"
    text_precision: TextPrecision = "auto"
    text_residence: TextResidence = "auto"
    keep_text_int8: bool = False
    model_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    low_memory: bool | None = None
    memory_limit_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    control: bool = False
    use_prompt_cache: bool = True
    prompt_cache_size: Annotated[int, Field(ge=1)] = 32
    use_torch_compile: bool = False
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    enable_profiling: bool = False

    @model_validator(mode="after")
    def _int8_is_kept(self):
        if self.keep_text_int8 and self.text_precision != "int8":
            raise ValueError(f"keep_text_int8 must be false or text_precision must be int8, got {self.text_precision}")
        return self

    @classmethod
    def preset(cls, name: PresetName, **changes: Unpack[ConfigFields]) -> Self:
        """The config called ``name``, with ``changes``. Raises ValueError listing the names."""
        return cls(**{**cls.preset_fields(name), **changes})

    @classmethod
    def preset_fields(cls, name: str) -> dict:
        """What the preset ``name`` sets of this class's fields. Raises ValueError listing the names."""
        own = {field.name for field in dataclasses.fields(cls)}
        return {key: value for key, value in PRESETS[preset_name(name)].items() if key in own}


def preset_name(name: str) -> PresetName:
    """``name`` without alias. Raises ValueError listing the names."""
    names = [*PRESETS, *ALIASES]
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"preset must be one of {', '.join(names)}, got {name!r}{did_you_mean(name, names)}")
    return cast(PresetName, ALIASES.get(name, name))


@functools.cache
def _say_once(text: str) -> None:
    log.warning(text)
