"""What is asked of the engine for one block."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..keywords import Blend
from ..plain import did_you_mean, exact, flag, plain, whole
from ..text.blend import normalise
from .pictures import Picture, Pictures, read_frames, read_masks, read_picture
from .sampler import VideoSteps


@dataclass(frozen=True)
class Control:
    """What steers one block's picture (VACE; docs/model.md 14), checked as a BlockRequest is.

    Pictures are uint8 RGB [H, W, 3] of any sizes, tensors or NumPy arrays; frames and masks are resampled to as many as
    the block has. At least one of them must be given.

    frames: what to follow, [T, H, W, 3] or a list: a depth, pose, scribble or flow video; or with masks, the video that
        is to be completed.
    masks: with frames: where to make something new (white) and where to keep the frames (black); [T, H, W], with 1 or 3
        channels behind or not, or a list. None is white everywhere.
    references: pictures of what shall be seen. The first one counts.
    first_frame, last_frame: pictures that the block is to begin and end with.
    scale: how strongly all this acts, in [0, 2]; at 0 it is as if there were none.
    """

    frames: Pictures | None = field(default=None, compare=False)
    masks: Pictures | None = field(default=None, compare=False)
    references: Pictures | None = field(default=None, compare=False)
    first_frame: Picture | None = field(default=None, compare=False)
    last_frame: Picture | None = field(default=None, compare=False)
    scale: float = 1.0

    def __post_init__(self) -> None:
        pictures = self.frames, self.references, self.first_frame, self.last_frame
        if all(given is None for given in pictures):
            raise ValueError("control must have frames, references, first_frame or last_frame, got none of them")
        if self.masks is not None and self.frames is None:
            raise ValueError("masks must come with frames, of which they say what to keep, got none")
        read: dict[str, Any] = {"scale": plain(self.scale)}
        if not _is_number(read["scale"]) or not 0 <= read["scale"] <= 2:
            raise ValueError(f"scale must lie in [0, 2], got {self.scale!r}")
        for name, reader in CONTROL_PICTURES.items():
            if (given := getattr(self, name)) is not None:
                read[name] = reader(name, given)
        for name, value in read.items():
            object.__setattr__(self, name, value)


CONTROL_PICTURES = {  # fields of a Control, and what reads them
    "frames": read_frames,
    "masks": read_masks,
    "references": read_frames,
    "first_frame": read_picture,
    "last_frame": read_picture,
}


@dataclass(frozen=True)
class BlockRequest:
    """One block's wishes. Everything is checked here, before any work, with errors that name the argument. Numbers and
    lists may be NumPy's.

    prompt: a text, or (text, weight) pairs that are blended; weights are normalised.
    blend: how pairs are mixed; ``slerp`` wants exactly two.
    transition_blocks: a prompt that differs from the last one is reached in so many equal steps, one a block.
    transition_blend: how the steps of a transition are mixed; None does it as ``blend`` says.
    transition_from_source: the first of those blocks is still the old prompt's, so that n blocks go in n - 1 steps.
    denoising_steps: nominal timesteps for this block; None takes the config's.
    reset: forget the stream's frames and prompt first.
    restart: begin again at frame 0, with a cut, but with the prompt in force and the transition under way.
    seed: replaces the stream's from this block on.
    video: frames to start from (video-to-video), uint8 RGB [T, H, W, 3] or a list of [H, W, 3] of any sizes, tensors or
        NumPy arrays, resized and resampled to fit; None is text mode. Changing between the two starts the VAE anew:
        nine frames, but no cut.
    noise_scale: share of noise over the video, in [0.1, 1]; at 1 nothing of it is left. What of it shows depends on
        the model and the size; docs/api.md says what to take.
    noise_from_motion: take that share from how much the video moves, 0.54 to 0.72, and a tenth of ``noise_scale``
        (docs/model.md 4.6).
    noise_steps: ``cut`` begins the steps at that noise level and leaves out the noisier ones; ``scope`` replaces the
        first step only, as scope does, so that a second step of more noise leaves little of the video.
    first_step: timestep that takes the place of the first one, in 0..1000 and as it stands in either schedule, also
        below the second; in text mode alone. scope does so where the beat changes ``noise_scale``.
    control: what steers this block's picture; None is nothing. Wants an engine made with ``control=True``.
    """

    prompt: str | Sequence[tuple[str, float]]
    blend: Blend = "linear"
    transition_blocks: int = 1
    transition_blend: Blend | None = None
    transition_from_source: bool = False
    denoising_steps: Sequence[int] | None = None
    reset: bool = False
    restart: bool = False
    seed: int | None = None
    video: Pictures | None = field(default=None, compare=False)
    noise_scale: float = 0.7
    noise_from_motion: bool = False
    noise_steps: VideoSteps = "cut"
    first_step: int | None = None
    control: Control | None = None

    def __post_init__(self) -> None:
        read: dict[str, Any] = {name: flag(name, getattr(self, name)) for name in _FLAGS}
        read["prompt"] = _prompt(self.prompt)
        _one_of("blend", self.blend, _BLENDS)
        _one_of("transition_blend", self.transition_blend, (None, *_BLENDS))
        if self.blend == "slerp" and not isinstance(read["prompt"], str) and len(read["prompt"]) > 2:
            raise ValueError(f"blend 'slerp' mixes two prompts, got {len(read['prompt'])}")
        read["transition_blocks"] = whole("transition_blocks", self.transition_blocks, 1)
        if self.seed is not None:
            read["seed"] = check_seed(self.seed)
        read["noise_scale"] = plain(self.noise_scale)
        if not _is_number(read["noise_scale"]) or not 0.1 <= read["noise_scale"] <= 1:
            raise ValueError(f"noise_scale must lie in [0.1, 1], got {self.noise_scale!r}")
        if not isinstance(self.noise_steps, str) or self.noise_steps not in ("cut", "scope"):
            raise ValueError(f"noise_steps must be 'cut' or 'scope', got {self.noise_steps!r}")
        if self.first_step is not None:
            read["first_step"] = whole("first_step", self.first_step, 0, 1000)
        if self.denoising_steps is not None:
            read["denoising_steps"] = _steps(self.denoising_steps)
        if self.video is not None:
            read["video"] = read_frames("video", self.video)
        if not isinstance(self.control, Control | None):
            raise TypeError(f"control must be a Control, got {type(self.control).__name__}")
        for name, value in read.items():
            object.__setattr__(self, name, value)

    @property
    def pairs(self) -> tuple[tuple[str, float], ...]:
        return ((self.prompt, 1.0),) if isinstance(self.prompt, str) else tuple(self.prompt)

    @property
    def identity(self) -> tuple:
        """Equal for requests whose prompts have one embedding."""
        texts, weights = zip(*self.pairs, strict=True)
        return (texts, *normalise(weights), self.blend if len(texts) > 1 else None)


_FLAGS = ("transition_from_source", "reset", "restart", "noise_from_motion")
_BLENDS = ("linear", "slerp")


def check_seed(seed: object) -> int:
    """``seed`` as an int. Raises ValueError unless it is a whole number in [0, 2^63)."""
    try:
        return whole("seed", seed, 0, 2**63 - 1)
    except ValueError:
        raise ValueError(f"seed must be a whole number in [0, 2^63), got {seed!r}") from None


def _prompt(prompt: Any) -> str | tuple[tuple[str, float], ...]:
    """A text, or (text, weight) pairs, each text with something in it and each weight a finite number >= 0."""
    from ..text.clean import clean  # late: it brings ftfy's tables

    if isinstance(prompt, str):
        clean(prompt)  # raises where nothing is left
        return prompt
    pairs = plain(prompt)
    if not isinstance(pairs, list | tuple):
        raise TypeError(f"prompt must be a text or a list of (text, weight) pairs, got {type(prompt).__name__}")
    if not pairs:
        raise ValueError("prompt must hold at least one (text, weight) pair")
    return tuple(_pair(pair, clean) for pair in pairs)


def _pair(pair: Any, clean: Callable[[str], str]) -> tuple[str, float]:
    pair = plain(pair)
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise TypeError(
            f"prompt must be a text or (text, weight) pairs such as ('a fox', 1.0), got {pair!r} for a pair"
        )
    text, weight = pair[0], plain(pair[1])
    clean(text)  # raises for what is no text, or none after cleaning
    if not _is_number(weight) or not 0 <= weight <= sys.float_info.max:
        raise ValueError(f"prompt weights must be finite and not negative, got {weight!r}")
    return text, weight


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_of(name: str, value: object, names: tuple) -> None:
    if not isinstance(value, str | None) or value not in names:
        listed = " or ".join(repr(name) for name in names if name)
        raise ValueError(f"{name} must be {listed}, got {value!r}{did_you_mean(value, _BLENDS)}")


def _steps(steps: Any) -> tuple[int, ...]:
    listed = exact(steps)
    try:
        read = tuple(whole("denoising_steps", step, 1, 1000) for step in listed) if isinstance(listed, list) else ()
    except ValueError:
        read = ()
    if not read or any(a <= b for a, b in itertools.pairwise(read)):
        raise ValueError(f"denoising_steps must be whole numbers that fall within 1000..1, got {steps!r}")
    return read
