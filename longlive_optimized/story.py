"""A story: what a video was made from, as JSON, from which the same video can be made again (docs/api.md, Stories)."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from .config import CHANGEABLE, OptimizationConfig, StreamSettings, preset_name
from .json_file import json_object, read_bounded
from .keywords import Blend, PresetName
from .plain import did_you_mean
from .video_time import BLOCK_PIXEL_FRAMES, FIRST_PIXEL_FRAMES, TRAINED_FPS

if TYPE_CHECKING:
    from .engine.engine import LongLiveEngine
    from .engine.request import BlockRequest
    from .engine.stream import Stream
    from .weights.user_lora import UserLora

VERSION = 1
MOST_BYTES = 2**20  # of a file
MOST_BLOCKS = 200_000  # 42 hours
_OWN = {"height", "width", "seed"}  # of a stream's settings, those that a story has fields for
_SPEED = {"use_cuda_graphs"}  # those that change no picture
OF_STREAM = tuple(f.name for f in dataclasses.fields(StreamSettings) if f.name not in _OWN | _SPEED)
OF_ENGINE = "vae_precision", "text_precision", "model_dtype", "low_memory"
SETTINGS = (*OF_STREAM, "vae_type", *OF_ENGINE)  # what a story may set at its beginning
LATER = (*(name for name in CHANGEABLE if name not in _SPEED), "vae_type")  # and what at a later block

_Block = Annotated[int, Field(ge=0, lt=MOST_BLOCKS)]
_Second = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Seed = Annotated[int, Field(ge=0, lt=2**63)]
_Scale = Annotated[float, Field(allow_inf_nan=False)]
_Preset = Annotated[str, AfterValidator(preset_name)]


def _said(text: str) -> str:
    from .text.clean import clean  # late: it brings ftfy's tables

    clean(text)  # raises where there is nothing to show
    return text


_Text = Annotated[str, AfterValidator(_said)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Timed(_Part):
    """block: the block with which it takes hold, from 0 on; or seconds: of the video, then the first block that begins
    there or later."""

    block: _Block | None = None
    seconds: _Second | None = None

    @model_validator(mode="after")
    def _at_one_time(self) -> Self:
        if (self.block is None) == (self.seconds is None):
            raise ValueError("must have either block or seconds")
        return self

    @property
    def begins(self) -> bool:
        """Whether it stands at the story's beginning."""
        return not (self.block or self.seconds)


class StoryPrompt(_Timed):
    """A prompt that is gone over to: ``prompt``, or ``prompts`` with their weights; the rest as of BlockRequest."""

    prompt: _Text | None = None
    prompts: Annotated[tuple[tuple[_Text, _Weight], ...], Field(min_length=1)] | None = None
    blend: Blend = "linear"
    transition_blocks: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.prompt is None) == (self.prompts is None):
            raise ValueError("must have either prompt or prompts")
        if self.prompts and self.blend == "slerp" and len(self.prompts) > 2:
            raise ValueError(f"must have two prompts at most with blend slerp, got {len(self.prompts)}")
        return self

    @property
    def what(self) -> str | tuple[tuple[str, float], ...]:
        """The prompt as BlockRequest takes it."""
        return self.prompt if self.prompt is not None else cast(tuple, self.prompts)


class StoryChange(_Timed):
    """What else changes. preset: all that it sets; settings: fields of LATER, in addition. loras: other scales, by
    path. restart: the video begins anew. seed: of the noise, from here on."""

    preset: _Preset | None = None
    settings: dict[str, Any] = {}
    loras: dict[str, _Scale] | None = None
    restart: bool = False
    seed: _Seed | None = None

    @model_validator(mode="after")
    def _can_change(self) -> Self:
        _check_names(self.settings, LATER, "at a later block")
        if not (self.preset or self.settings or self.loras or self.restart or self.seed is not None):
            raise ValueError("must have a preset, settings, loras, restart or seed")
        return self

    @property
    def fields(self) -> dict[str, Any]:
        """The settings that it changes."""
        of_preset = OptimizationConfig.preset_fields(self.preset) if self.preset else {}
        return of_preset | self.settings


class Unrecorded(_Timed):
    """What a story does not hold: from this block on the video was made from more."""

    what: str


class Moment(NamedTuple):
    """What one block is made with. prompt: in force; preset, settings, loras: what changes before it, None and empty
    where nothing does. frames: how many it has."""

    block: int
    frames: int
    prompt: StoryPrompt
    preset: PresetName | None
    settings: dict[str, Any]
    loras: dict[str, float]
    restart: bool
    seed: int | None

    def turned(self, engine: LongLiveEngine) -> list[UserLora]:
        """An engine's LoRAs with their scales before this block; none where they stay, and nothing is computed anew."""
        if not self.loras:
            return []
        scaled = [dataclasses.replace(lora, scale=self.loras.get(str(lora.path), lora.scale)) for lora in engine.loras]
        return scaled if self.block or scaled != [*engine.loras] else []

    def take_hold(self, engine: LongLiveEngine, stream: Stream) -> None:
        """Bring a stream, and its engine's LoRAs, to what the block is made with."""
        if scaled := self.turned(engine):
            engine.set_loras(scaled)
        if self.restart:
            engine.reset(stream, self.seed)
        if "vae_type" in self.settings:
            engine.use_vae(self.settings["vae_type"], stream)
        if changes := {name: value for name, value in self.settings.items() if name != "vae_type"}:
            stream.configure(**cast(Any, changes))

    def request(self, **source: Any) -> BlockRequest:
        """What the block is asked for with. source: other fields of the request."""
        from .engine.request import BlockRequest

        prompt, seed = self.prompt, None if self.restart else self.seed
        return BlockRequest(prompt.what, prompt.blend, prompt.transition_blocks, seed=seed, **source)


class Story(_Part):
    """What a video was made from. Raises ValueError naming the field.

    model: ``"tiny"``, a folder or its name, or whatever else names a model. seed, preset, height, width, settings: what
    it begins with; settings are those of SETTINGS that differ from the preset's. loras: scales of LoRA files, by path.
    blocks: how many it has; or seconds: of the video, in place of blocks. prompts: the first one at its beginning.
    changes: of all but the prompt. unrecorded: what it cannot be made from again.
    """

    version: Literal[1]
    model: Annotated[str, Field(min_length=1)] = "tiny"
    seed: _Seed = 42
    preset: _Preset = "balanced"
    height: int | None = None
    width: int | None = None
    settings: dict[str, Any] = {}
    loras: dict[str, _Scale] = {}
    blocks: Annotated[int, Field(ge=1, le=MOST_BLOCKS)] | None = None
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    prompts: Annotated[tuple[StoryPrompt, ...], Field(min_length=1)]
    changes: tuple[StoryChange, ...] = ()
    unrecorded: tuple[Unrecorded, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.blocks is None) == (self.seconds is None):
            raise ValueError("a story must have either blocks or seconds")
        if self.seconds is not None and self.seconds * TRAINED_FPS > MOST_BLOCKS * BLOCK_PIXEL_FRAMES:
            raise ValueError(f"seconds must be of at most {MOST_BLOCKS} blocks, got {self.seconds:g}")
        _check_names(self.settings, SETTINGS, "in a story")
        if not any(prompt.begins for prompt in self.prompts):
            raise ValueError("prompts must have one at block 0, to begin with")
        self._check_times()
        self.configs()
        for i, change in enumerate(self.changes):
            for path in change.loras or {}:
                if path not in self.loras:
                    raise ValueError(f"changes[{i}].loras: {path!r} must be among the story's own loras")
        return self

    def _check_times(self) -> None:
        end = self.seconds or cast(int, self.blocks) * BLOCK_PIXEL_FRAMES / TRAINED_FPS
        for name in ("prompts", "changes"):
            seen: dict[tuple, int] = {}
            for i, entry in enumerate(getattr(self, name)):
                if self.blocks is not None and entry.block is not None and entry.block >= self.blocks:
                    raise ValueError(f"{name}[{i}].block must be below blocks, {self.blocks}, got {entry.block}")
                if entry.seconds is not None and entry.seconds >= end:
                    raise ValueError(f"{name}[{i}].seconds must be below {end:g}, got {entry.seconds:g}")
                when = (entry.block, entry.seconds)
                if when in seen:
                    at = f"block {entry.block}" if entry.block is not None else f"{entry.seconds:g} seconds"
                    raise ValueError(f"{name}[{i}] must be at another time than {name}[{seen[when]}], {at}")
                seen[when] = i

    def configs(self) -> list[OptimizationConfig]:
        """What it begins with, and what holds behind each change, as they are listed."""
        configs = [self.config()]
        for i, change in enumerate(self.changes):
            try:
                configs.append(dataclasses.replace(configs[-1], **change.fields))
            except ValidationError as error:
                raise ValueError(f"changes[{i}].settings: {_words(error)}") from None
        return configs

    def config(self, **changes: Any) -> OptimizationConfig:
        """What an engine is made with to play it."""
        own = {"height": self.height, "width": self.width, "seed": self.seed}
        return OptimizationConfig.preset(cast(PresetName, self.preset), **own | self.settings | changes)

    def user_loras(self) -> list[UserLora]:
        """What an engine is made with to play it, beside ``config()``. Raises FileNotFoundError."""
        from .weights.user_lora import UserLora

        return [UserLora(Path(path), scale) for path, scale in self.loras.items()]

    @property
    def frames(self) -> int | None:
        """Pixel frames of ``seconds``; None where whole blocks are counted."""
        return None if self.seconds is None else round(self.seconds * TRAINED_FPS) or 1

    @property
    def texts(self) -> list[str]:
        """Each prompt's; of several with weights, all as one."""
        return [each.prompt or "".join(text for text, _ in each.prompts or ()) for each in self.prompts]

    def check_recorded(self) -> None:
        """Raises ValueError where the video was made from more than the story holds."""
        for entry in self.unrecorded:
            if self.blocks is None or entry.block is None or entry.block < self.blocks:
                at = f"block {entry.block}" if entry.block is not None else f"{entry.seconds:g} seconds"
                shorter = "; with fewer blocks it can" if entry.block else ""
                raise ValueError(
                    f"story cannot be replayed: from {at} on it was made from what it does not hold: {entry.what}"
                    f"{shorter}"
                )

    def moments(self, first_frames: int = FIRST_PIXEL_FRAMES) -> Iterator[Moment]:
        """What each block is made with, in order. first_frames: pixel frames of a first block, 13 from video."""
        by_block: list[tuple] = []
        by_second: list[tuple] = []
        for number, entry in enumerate((*self.prompts, *self.changes)):
            if entry.block is not None:
                by_block.append((entry.block, number, entry))
            else:
                by_second.append((cast(float, entry.seconds) * TRAINED_FPS, number, entry))
        heapq.heapify(by_block)
        heapq.heapify(by_second)
        begun, most, prompt = 0, self.frames, self.prompts[0]
        for block in itertools.count():
            if block >= self.blocks if self.blocks is not None else begun >= cast(int, most):
                return
            entries = []
            while by_block and by_block[0][0] <= block:
                entries.append(heapq.heappop(by_block)[2])
            while by_second and by_second[0][0] <= begun:
                entries.append(heapq.heappop(by_second)[2])
            prompts = [entry for entry in entries if isinstance(entry, StoryPrompt)]
            prompt = prompts[-1] if prompts else prompt
            moment = _joined(block, prompt, [entry for entry in entries if isinstance(entry, StoryChange)])
            frames = first_frames if block == 0 or moment.restart else BLOCK_PIXEL_FRAMES
            frames = frames if most is None else min(frames, most - begun)
            begun += frames
            yield moment._replace(frames=frames)

    def to_json(self, indent: int | None = None) -> str:
        """Without what is at its default."""
        return json.dumps(self.as_dict(), indent=indent, ensure_ascii=False)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it, without what is at its default."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def save(self, path: str | PathLike[str]) -> None:
        """Write it as JSON."""
        Path(path).write_text(self.to_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a file. Paths of LoRAs in it are from its own folder. Raises FileNotFoundError, and ValueError naming
        file and field."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        story = cls.read(json_object(read_bounded(path, MOST_BYTES), path), f"{path}: ")
        folder = path.parent

        def below(loras: Mapping[str, float]) -> dict[str, float]:
            return {os.path.abspath(folder / Path(name).expanduser()): scale for name, scale in loras.items()}

        changes = tuple(each.model_copy(update={"loras": each.loras and below(each.loras)}) for each in story.changes)
        return story.model_copy(update={"loras": below(story.loras), "changes": changes})

    @classmethod
    def read(cls, data: Any, where: str = "") -> Self:
        """Of what JSON has, or a Story as it is. Raises ValueError; where: what its text begins with."""
        if isinstance(data, cls):
            return data
        if not isinstance(data, Mapping):
            raise ValueError(f"{where}a story must be a JSON object, got {type(data).__name__}")
        version = data.get("version")
        if isinstance(version, int) and version != VERSION:
            raise ValueError(f"{where}version must be {VERSION}: a story of version {version} cannot be read here")
        try:
            return cls.model_validate_json(json.dumps(data))
        except ValidationError as error:
            raise ValueError(f"{where}{_words(error)}") from None
        except (TypeError, ValueError, RecursionError) as error:  # what JSON does not have
            raise ValueError(f"{where}a story must be of what JSON has: {error}") from None


def _joined(block: int, prompt: StoryPrompt, changes: Sequence[StoryChange]) -> Moment:
    """The changes of one block as one."""
    moment = Moment(block, 0, prompt, None, {}, {}, False, None)
    for change in changes:
        moment = moment._replace(
            preset=cast(PresetName, change.preset) or moment.preset,
            settings=moment.settings | change.fields,
            loras=moment.loras | (change.loras or {}),
            restart=moment.restart or change.restart,
            seed=moment.seed if change.seed is None else change.seed,
        )
    return moment


def _check_names(settings: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in settings:
        if name not in known:
            others = f"{did_you_mean(name, known)}; {', '.join(known)} can"
            raise ValueError(f"settings.{name} cannot be set {where}{others}")


def _words(error: ValidationError) -> str:
    """The first fault, behind its place: ``prompts[1].block must be ...``."""
    fault = error.errors(include_url=False)[0]
    place = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, fault["loc"])))
    text = re.sub(r"^(Value error, |\w+ should|Field required|Extra inputs are not permitted)", _plainer, fault["msg"])
    given = fault["input"]
    if fault["type"] in ("missing", "value_error", "extra_forbidden", "too_short"):
        said = text.startswith(("must", "is no")) or not place
        own = text.startswith(place.rpartition(".")[2] + " ") and place
        return f"{place}{text[text.index(' ') :]}" if own else f"{place}{' ' if said else ': '}{text}".strip()
    return f"{place} {text}, got {given!r:.60}"


def _plainer(found: re.Match) -> str:
    known = {
        "Value error, ": "",
        "Field required": "must be given",
        "Extra inputs are not permitted": "is no field here",
    }
    return known.get(found[0], "must")
