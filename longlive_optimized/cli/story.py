"""The story that ``generate``'s options tell: one of a file, or a prompt and prompts to switch to."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..story import VERSION, Story, StoryPrompt
from ..text.clean import clean
from ..video_time import BLOCK_PIXEL_FRAMES, TRAINED_FPS

if TYPE_CHECKING:
    from ..weights.user_lora import UserLora
    from .inputs import Inputs

_MINUTES, _SECONDS = r"(?:(?:(\d+):)?(\d+):(?=[0-5]\d[.:]))?", r"(\d+(?:\.\d*)?|\.\d+)"
_SWITCH = re.compile(rf"\A{_MINUTES}{_SECONDS}:(?!\d+(?:\.\d*)?:)(.*)\Z", re.DOTALL)


class Switch(NamedTuple):
    """From the first block that begins at or after ``second`` of the video, the prompt is ``text``."""

    second: float
    text: str


def parse_switch(text: str) -> Switch:
    """Read ``TIME:TEXT``, where the time is seconds, ``M:SS`` or ``H:MM:SS``. Raises ValueError."""
    try:
        hours, minutes, seconds, prompt = _SWITCH.findall(text)[0]
        clean(prompt)  # raises where there is nothing to show
    except (IndexError, ValueError):
        wanted = "--switch must be SECONDS:TEXT or M:SS:TEXT, such as 2.5:'a red fox' or 0:02:'a red fox'"
        raise ValueError(f"{wanted}, got {text!r}") from None
    return Switch(3600 * int(hours or 0) + 60 * int(minutes or 0) + float(seconds), prompt)


def parse_steps(text: str | None) -> tuple[int, ...] | None:
    """Read ``1000,750,500,250``. Raises ValueError; what the numbers must be is for the config to say."""
    try:
        return tuple(int(step) for step in text.split(",")) if text is not None else None
    except ValueError:
        raise ValueError(f"--steps must be numbers between commas, such as 1000,500,250, got {text!r}") from None


def parse_lora(text: str) -> tuple[str, float]:
    """Read ``FILE`` or ``FILE:SCALE``: the file's whole path, and 1 where no scale is given. Raises ValueError."""
    path, colon, scale = text.rpartition(":")
    try:
        number = float(scale) if colon else 1.0
    except ValueError:  # the colon is the path's own
        path, number = text, 1.0
    path = path if colon and path else text
    if not math.isfinite(number):
        raise ValueError(f"--lora must be FILE or FILE:SCALE with a finite scale, got {text!r}")
    return os.path.abspath(os.path.expanduser(path)), number


def parse_loras(texts: Sequence[str]) -> dict[str, float]:
    """What ``parse_lora`` reads in each, by file. Raises ValueError, also for a file that is named twice."""
    scales: dict[str, float] = {}
    for path, scale in map(parse_lora, texts):
        if path in scales:
            raise ValueError(f"--lora must name each file once, got {path} twice")
        scales[path] = scale
    return scales


def read_story(path: Path, own: Mapping[str, Any], beside: Mapping[str, object]) -> Story:
    """The story in a file, with its fields ``own`` in their place. beside: by their names, options that it says itself.

    Raises ValueError naming one of those that is given; ValueError and FileNotFoundError for a story that is none.
    """
    for option, given in beside.items():
        if given is not None:
            raise ValueError(f"{option} cannot be given beside --story, which says what the video is made from")
    try:
        story = Story.load(path)
        story.check_recorded()
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"--story: {error}") from None
    return Story.read({**story.as_dict(), **own})


def story_of(
    prompt: str | None,
    preset: str | None,
    settings: Mapping[str, Any],
    loras: Mapping[str, float],
    own: Mapping[str, Any],
) -> Story:
    """A story of one prompt, whose length is not known yet. settings: fields of StreamSettings; loras: scales by
    paths; own: other fields of the story. Raises ValueError, pydantic's too."""
    if prompt is None:
        raise ValueError("--prompt, or in its place --story, must be given")
    clean(prompt)  # raises where there is nothing to show
    begins = {"block": 0, "prompt": prompt}
    fields = {"preset": preset or "balanced", "settings": settings, "loras": loras, "blocks": 1, "prompts": [begins]}
    return Story.read({"version": VERSION, **fields, **own})


def with_length(story: Story, seconds: float, switches: Mapping[float, str], given: Inputs) -> Story:
    """The story of so many seconds, with later prompts by the second from which on they hold; of whole blocks where the
    last one ends with a picture."""
    later = (StoryPrompt(seconds=second, prompt=text) for second, text in switches.items())
    frames = round(seconds * TRAINED_FPS) or 1
    if given.last is not None:
        more = math.ceil(max(0, frames - given.first_frames) / BLOCK_PIXEL_FRAMES)
        frames = given.first_frames + more * BLOCK_PIXEL_FRAMES
    told = {"blocks": None, "seconds": frames / TRAINED_FPS, "prompts": (*story.prompts, *later)}
    return story.model_copy(update=told)


def switches_of(story: Story, given: Inputs) -> set[int]:
    """The blocks that begin a prompt, but the first."""
    moments = itertools.pairwise(story.moments(given.first_frames))
    return {new.block for old, new in moments if new.prompt is not old.prompt}


def loras_of(story: Story, option: str) -> list[UserLora]:
    """Its LoRAs. Raises ValueError and FileNotFoundError naming the option that told of them."""
    if not story.loras:
        return []
    try:
        return story.user_loras()
    except (ValueError, FileNotFoundError) as error:
        beside = "; a story's LoRAs are looked for beside it" if option == "--story" else ""
        raise type(error)(f"{option}: {error}{beside}") from None
