"""The keywords of one call, which are whatever JSON the session's clients have ever sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from torch import Tensor

from ...config import preset_name
from ...engine.request import BlockRequest
from ...plain import exact
from ...video_time import BLOCK_FRAMES

Pairs = tuple[tuple[str, float], ...]
MOST_STEPS = 16  # each length of list keeps buffers and a graph of its own
Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right"]


def _pairs(prompts: Any) -> Pairs | None:
    """A text, texts, or ``{"text", "weight"}`` items as (text, weight) pairs; None if there is no text among them."""
    items = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(items, list | tuple):
        raise ValueError("expected a text, a list of texts or of {text, weight}")
    pairs = []
    for item in items:
        text, weight = (item.get("text"), item.get("weight", 1.0)) if isinstance(item, Mapping) else (item, 1.0)
        if not isinstance(text, str):
            raise ValueError(f"expected a text, got {text!r}")
        if text.strip():
            pairs.append((text, weight))
    return BlockRequest(tuple(pairs)).pairs if pairs else None


def _steps(steps: Any) -> tuple[int, ...]:
    if not isinstance(steps, list | tuple):
        raise ValueError("expected a list of whole numbers")
    if len(steps) > MOST_STEPS:
        raise ValueError(f"expected at most {MOST_STEPS} steps")
    return tuple(BlockRequest("-", denoising_steps=steps).denoising_steps or ())


def _preset(name: Any) -> str:
    return preset_name(str(name))


def _frames(frames: Any) -> list[Tensor]:
    """Frames [1, H, W, 3] as [H, W, 3]."""
    fits = isinstance(frames, list) and frames and all(isinstance(f, Tensor) and f.ndim == 4 for f in frames)
    if not fits:
        raise ValueError("expected frames [1, H, W, 3]")
    return [frame[0] for frame in frames]


def _paths(paths: Any) -> list[str] | None:
    """One path, or some; None if there are none."""
    given = [paths] if isinstance(paths, str) else paths
    if not isinstance(given, list | tuple) or not all(isinstance(path, str) for path in given):
        raise ValueError("expected a path, or a list of paths")
    return [path for path in given if path.strip()] or None


Schedule = Literal["scope", "longlive"]
Positions = Literal["base", "relative"]
VaeType = Literal["wan", "lightvae", "tae", "lighttae"]
Prompts = Annotated[Pairs | None, BeforeValidator(_pairs)]
Steps = Annotated[tuple[int, ...], BeforeValidator(_steps)]
Preset = Annotated[str, BeforeValidator(_preset)]
Frames = Annotated[list[Tensor], BeforeValidator(_frames)]
Whole = Annotated[int, BeforeValidator(exact)]


class Transition(BaseModel):
    """The way to other prompts, over ``num_steps`` calls; without targets, to the ``prompts`` of the call."""

    model_config = ConfigDict(strict=True)

    target_prompts: Prompts = None
    num_steps: Annotated[Whole, Field(ge=0)] = 0
    temporal_interpolation_method: Literal["linear", "slerp"] = "linear"


class LoraScale(BaseModel):
    """A new scale for a LoRA that was named at load."""

    model_config = ConfigDict(strict=True)

    path: str
    scale: Annotated[float, Field(ge=-10, le=10)]


def _restart(latent_frame: int) -> int:
    if 0 < latent_frame < BLOCK_FRAMES:
        raise ValueError(f"expected 0, which is never, or at least {BLOCK_FRAMES}")
    return latent_frame


class CallParams(BaseModel):
    """What a call may say. None, or left out, is as if it had never been said."""

    model_config = ConfigDict(arbitrary_types_allowed=True, strict=True)

    init_cache: bool = False
    prompts: Prompts = None
    # What scope's page sends, and what scope's own pipeline reads.
    prompt_interpolation_method: Literal["linear", "slerp"] = "linear"
    spatial_interpolation_method: Literal["linear", "slerp"] | None = None
    transition: Transition | None = None
    denoising_step_list: Steps | None = None
    # Load fields, which scope's graph editor sends only so.
    denoising_steps: Steps | None = None
    step_schedule: Schedule | None = None
    positions: Positions | None = None
    restart_at: Annotated[Whole, Field(ge=0), AfterValidator(_restart)] | None = None
    quantization: Literal["fp8_e4m3fn", ""] | None = None
    vae_type: VaeType | None = None
    modulated_steps: Annotated[bool, Field(alias="_modulated_step_list")] = False
    manage_cache: bool | None = None
    base_seed: Annotated[Whole, Field(ge=0, lt=2**62)] | None = None
    noise_scale: Annotated[float, Field(ge=0, le=1)] | None = None
    modulated_noise: Annotated[bool, Field(alias="_modulated_noise_scale")] = False
    noise_controller: bool | None = None
    lora_scales: list[LoraScale] | None = None
    video: Frames | None = None
    vace_input_frames: Frames | None = None
    vace_input_masks: Frames | None = None
    vace_ref_images: Annotated[list[str] | None, BeforeValidator(_paths)] = None
    first_frame_image: str | None = None
    last_frame_image: str | None = None
    vace_context_scale: Annotated[float, Field(ge=0, le=2)] | None = None
    vace_enabled: bool | None = None
    vace_use_input_video: bool | None = None
    in_graph: Annotated[bool, Field(alias="graph"), BeforeValidator(bool)] = False
    optimization_preset: Preset | None = None
    show_latency_overlay: bool | None = None
    overlay_position: Corner | None = None
    show_messages: bool | None = None
    sent: dict[str, Any] = {}  # the very objects that ``prompts`` and ``transition`` were read from

    @property
    def is_steered_by_video(self) -> bool:
        """Whether ``video`` is what to follow, and not where to start from. In a graph, ports say which is which."""
        wanted = self.vace_enabled and self.vace_use_input_video is not False
        return bool(wanted) and not self.in_graph and self.vace_input_frames is None

    @property
    def blend(self) -> Literal["linear", "slerp"]:
        """How two prompts are mixed."""
        return self.spatial_interpolation_method or self.prompt_interpolation_method


_KNOWN = {field.alias or name for name, field in CallParams.model_fields.items()} - {"sent"}
_OF_ONE_CALL = {
    *("init_cache", "lora_scales", "modulated_steps", "modulated_noise", "in_graph", "video", "vace_input_frames"),
    *("vace_input_masks", "vace_ref_images", "first_frame_image", "last_frame_image"),
}
_KEPT = CallParams.model_fields.keys() - _OF_ONE_CALL


def read_call(keywords: Mapping[str, Any], before: CallParams, complain: Callable[[str, Any, str], None]) -> CallParams:
    """The keywords that are ours. One that makes no sense is complained about (name, value, why) and changes nothing:
    it stays as it was ``before``.
    """
    given = {name: value for name, value in keywords.items() if name in _KNOWN and value is not None}
    if keywords.get("_modulated_noise_scale") and isinstance(given.get("noise_scale"), int | float):
        given["noise_scale"] = min(max(given["noise_scale"], 0.0), 1.0)  # the beat may swing beyond both ends
    sent = {name: keywords.get(name) for name in ("prompts", "transition")}
    try:
        return CallParams(**given, sent=sent)
    except ValidationError as error:
        bad = {str(fault["loc"][0]): fault["msg"].removeprefix("Value error, ") for fault in reversed(error.errors())}
    for name, why in bad.items():
        complain(name, given.pop(name), why)
    kept = {name: getattr(before, name) for name in bad if name in _KEPT}
    kept["sent"] = {name: before.sent.get(name) if name in bad else value for name, value in sent.items()}
    return CallParams(**given).model_copy(update=kept)
