"""What a viewer may say over the data channel: JSON texts, checked before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from ...config import PRESETS, Size, Step, preset_name
from ...keywords import Interpolation
from ...story import Story
from ..scope_integration.config import ShownFps, Speed
from ..scope_integration.prompt_box import as_prompt

MAX_BYTES = 16_384
MAX_STORY_BYTES = 65_536  # of a message with a story, which is all that a data channel takes
LONGEST_PROMPT = 2000
MOST_BLOCKS = 32  # of a transition: 24 seconds
MOST_PROMPTS = 4  # at once
MOST_STEPS = 8
MOST_LORA_SCALE = 5.0  # either way
MOST_LORAS = 64  # in a message
LONGEST_ERROR = 300


class BadMessage(ValueError):
    """A message without effect; the text says why, and ``id`` is the message's own if it could be read."""

    def __init__(self, reason: str, id: int | str | None = None):
        super().__init__(reason if len(reason) <= LONGEST_ERROR else reason[: LONGEST_ERROR - 3] + "...")
        self.id = id


def _is_prompt(text: str) -> str:
    as_prompt(text)
    return text


Prompt = Annotated[str, Field(max_length=LONGEST_PROMPT), AfterValidator(_is_prompt)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Weight = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
LoraScale = Annotated[float, Field(ge=-MOST_LORA_SCALE, le=MOST_LORA_SCALE, allow_inf_nan=False)]
Blocks = Annotated[int, Field(ge=1, le=MOST_BLOCKS)]


class _Identified(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    id: int | Annotated[str, Field(max_length=64)] | None = None  # repeated in the answer


class _Message(_Identified):
    model_config = ConfigDict(extra="forbid")


class SwitchPrompt(_Message):
    """Go over to a prompt, or to several with weights; ``transition_blocks`` overrides the transition in force."""

    type: Literal["switch_prompt"]
    prompt: Prompt | None = None
    prompts: Annotated[list[tuple[Prompt, Weight]], Field(min_length=1, max_length=MOST_PROMPTS)] | None = None
    transition_blocks: Blocks | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self):
        if (self.prompt is None) == (self.prompts is None):
            raise ValueError("switch_prompt must have either prompt or prompts")
        if self.prompts and not any(weight for _, weight in self.prompts):
            raise ValueError("prompts must have a weight above 0")
        return self

    @property
    def what(self) -> str | tuple[tuple[str, float], ...]:
        """The prompt as BlockRequest takes it."""
        return self.prompt if self.prompts is None else tuple(self.prompts)  # pyright: ignore[reportReturnType]


class SetOptimizationPreset(_Message):
    type: Literal["set_optimization_preset"]
    preset: Annotated[str, AfterValidator(preset_name)]


class ChangeSettings(_Message):
    """How the video is made and shown: the fields of ScopeOptimizationConfig that are said change, the others stay; and
    scales of LoRAs, by name."""

    type: Literal["settings"]
    denoising_steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=MOST_STEPS)] = ()
    playback_speed: Speed = 1.0
    interpolation: Interpolation = "none"
    shown_fps: ShownFps | None = None
    loras: Annotated[dict[str, LoraScale], Field(min_length=1, max_length=MOST_LORAS)] = {}

    @model_validator(mode="after")
    def _says_something(self):
        if not self.model_fields_set - {"type", "id"}:
            names = ", ".join(name for name in type(self).model_fields if name not in ("type", "id"))
            raise ValueError(f"settings must have at least one of {names}")
        return self

    @property
    def fields(self) -> dict:
        """Those of the config that are said."""
        return {name: getattr(self, name) for name in self.model_fields_set - {"type", "id", "loras"}}


class GetLatencyStats(_Message):
    type: Literal["get_latency_stats"]


class SetTransition(_Message):
    """Over how many blocks later prompts are reached, and how prompts are mixed on the way."""

    type: Literal["set_transition"]
    blocks: Blocks
    blend: Literal["linear", "slerp"] = "linear"


class SetOverlay(_Message):
    type: Literal["set_overlay"]
    enabled: bool


class SetPaused(_Message):
    type: Literal["set_paused"]
    paused: bool


class SetInput(_Message):
    """Use the video that this viewer sends: to start from, or to follow; None ends it, whoever sends."""

    type: Literal["set_input"]
    use: Literal["video", "control"] | None


class SetStrength(_Message):
    """How much noise lies over input video, and how strongly control and pictures act; None leaves it as it is."""

    type: Literal["set_strength"]
    noise_scale: Annotated[float, Field(ge=0.1, le=1)] | None = None
    control_scale: Annotated[float, Field(ge=0, le=2)] | None = None


class RemovePicture(_Message):
    """Use a picture no longer."""

    type: Literal["remove_picture"]
    role: Literal["reference", "first_frame"]


class Reset(_Message):
    """Start the video anew with the prompt in force, and with another seed or size if one is said."""

    type: Literal["reset"]
    seed: Seed | None = None
    height: Size | None = None
    width: Size | None = None

    @property
    def fields(self) -> dict[str, int]:
        """What is said."""
        said = {"seed": self.seed, "height": self.height, "width": self.width}
        return {name: value for name, value in said.items() if value is not None}


class Replay(_Message):
    """Begin anew and make a story's video again (docs/api.md, Stories)."""

    type: Literal["replay"]
    story: Annotated[Story, BeforeValidator(Story.read)]


class StopReplay(_Message):
    """Go on from where a replay is, with the prompt and the settings in force there."""

    type: Literal["stop_replay"]


Command = (
    SwitchPrompt
    | SetOptimizationPreset
    | ChangeSettings
    | GetLatencyStats
    | SetTransition
    | SetOverlay
    | SetPaused
    | SetInput
    | SetStrength
    | RemovePicture
    | Reset
    | Replay
    | StopReplay
)
_COMMAND = TypeAdapter(Annotated[Command, Field(discriminator="type")])


def parse(message: str | bytes) -> Command:
    """The command in a message. Raises BadMessage saying what is wrong with it."""
    if not isinstance(message, str):
        raise BadMessage("a message must be text, not bytes")
    most = MAX_STORY_BYTES if '"replay"' in message[:MAX_STORY_BYTES] else MAX_BYTES
    if len(message) > most or len(message.encode(errors="replace")) > most:
        raise BadMessage(f"a message may have at most {most} bytes")
    try:
        return _COMMAND.validate_json(message)
    except ValidationError as error:
        raise BadMessage(_faults(error), _id_of(message)) from None


def commands() -> dict[str, list[str]]:
    """What may be said: the fields of each type of message."""
    return {
        get_args(one.model_fields["type"].annotation)[0]: [
            name for name in one.model_fields if name not in ("id", "type")
        ]
        for one in get_args(Command)
    }


def words(prompt: str | Sequence[tuple[str, float]]) -> str:
    """A prompt in one line; of several, with their weights."""
    return prompt if isinstance(prompt, str) else " + ".join(f"{text} ({weight:g})" for text, weight in prompt)


def presets() -> list[dict]:
    """The presets by name, with what each of them asks for."""
    return [{"name": name, **fields} for name, fields in PRESETS.items()]


def _faults(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    said = ((f["loc"][1:], f["msg"].removeprefix("Value error, ")) for f in faults)
    return "; ".join(f"{'.'.join(map(str, where)) or 'message'}: {what}" for where, what in said)


def _id_of(message: str) -> int | str | None:
    try:
        return _Identified.model_validate_json(message).id
    except ValidationError:
        return None
