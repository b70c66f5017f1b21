"""What is asked of the engine for one block."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..text.blend import normalise
from .sampler import VideoSteps


@dataclass(frozen=True)
class BlockRequest:
    """One block's wishes. Everything is checked here, before any work, with errors that name the argument.

    prompt: a text, or (text, weight) pairs that are blended; weights are normalised.
    blend: how pairs are mixed; ``slerp`` wants exactly two.
    transition_blocks: a prompt that differs from the last one is reached in so many equal steps, one a block.
    transition_blend: how the steps of a transition are mixed; None does it as ``blend`` says.
    transition_from_source: the first of those blocks is still the old prompt's, so that n blocks go in n - 1 steps.
    denoising_steps: nominal timesteps for this block; None takes the config's.
    reset: forget the stream's frames and prompt first.
    restart: begin again at frame 0, with a cut, but with the prompt in force and the transition under way.
    seed: replaces the stream's from this block on.
    video: frames to start from (video-to-video), uint8 [T, H, W, 3] or T of [H, W, 3] of any sizes, resized and
        resampled to fit; None is text mode. Changing between the two starts the VAE anew: nine frames, but no cut.
    noise_scale: share of noise over the video, in [0.1, 1]; at 1 nothing of it is left. What of it shows depends on
        the model and the size; docs/api.md says what to take.
    noise_from_motion: take that share from how much the video moves, 0.54 to 0.72, and a tenth of ``noise_scale``
        (docs/model.md 4.6).
    noise_steps: ``cut`` begins the steps at that noise level and leaves out the noisier ones; ``scope`` replaces the
        first step only, as scope does, so that a second step of more noise leaves little of the video.
    """

    prompt: str | tuple[tuple[str, float], ...]
    blend: Literal["linear", "slerp"] = "linear"
    transition_blocks: int = 1
    transition_blend: Literal["linear", "slerp"] | None = None
    transition_from_source: bool = False
    denoising_steps: tuple[int, ...] | None = None
    reset: bool = False
    restart: bool = False
    seed: int | None = None
    video: Tensor | Sequence[Tensor] | None = field(default=None, compare=False)
    noise_scale: float = 0.7
    noise_from_motion: bool = False
    noise_steps: VideoSteps = "cut"

    def __post_init__(self) -> None:
        self._check_prompt()
        if self.blend not in ("linear", "slerp"):
            raise ValueError(f"blend must be 'linear' or 'slerp', got {self.blend!r}")
        if self.transition_blend not in (None, "linear", "slerp"):
            raise ValueError(f"transition_blend must be 'linear' or 'slerp', got {self.transition_blend!r}")
        if self.blend == "slerp" and len(self.pairs) > 2:
            raise ValueError(f"blend 'slerp' mixes two prompts, got {len(self.pairs)}")
        if not isinstance(self.transition_blocks, int) or self.transition_blocks < 1:
            raise ValueError(f"transition_blocks must be a whole number of at least 1, got {self.transition_blocks!r}")
        if self.seed is not None:
            check_seed(self.seed)
        if not 0.1 <= self.noise_scale <= 1:
            raise ValueError(f"noise_scale must lie in [0.1, 1], got {self.noise_scale!r}")
        if self.noise_steps not in ("cut", "scope"):
            raise ValueError(f"noise_steps must be 'cut' or 'scope', got {self.noise_steps!r}")
        self._check_steps()
        self._check_video()

    @property
    def pairs(self) -> tuple[tuple[str, float], ...]:
        return ((self.prompt, 1.0),) if isinstance(self.prompt, str) else self.prompt

    @property
    def identity(self) -> tuple:
        """Equal for requests whose prompts have one embedding."""
        texts, weights = zip(*self.pairs, strict=True)
        return (texts, *normalise(weights), self.blend if len(texts) > 1 else None)

    def _check_prompt(self) -> None:
        from ..text.clean import clean  # late: it brings ftfy's tables

        if not isinstance(self.prompt, str):
            object.__setattr__(self, "prompt", tuple(tuple(pair) for pair in self.prompt))
        if not self.pairs:
            raise ValueError("prompt must hold at least one (text, weight) pair")
        for text, weight in self.pairs:
            clean(text)  # raises for what is no text, or none after cleaning
            if not (isinstance(weight, int | float) and 0 <= weight <= sys.float_info.max):
                raise ValueError(f"prompt weights must be finite and not negative, got {weight!r}")

    def _check_steps(self) -> None:
        steps = self.denoising_steps
        if steps is None:
            return
        object.__setattr__(self, "denoising_steps", tuple(steps))
        falling = all(a > b for a, b in itertools.pairwise(steps))
        if not steps or not all(isinstance(s, int) and 1 <= s <= 1000 for s in steps) or not falling:
            raise ValueError(f"denoising_steps must be whole numbers that fall within 1000..1, got {steps!r}")

    def _check_video(self) -> None:
        if self.video is None:
            return
        frames = tuple(self.video)
        for frame in frames:
            if frame.dtype != torch.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or not frame.numel():
                raise ValueError(f"video must be uint8 frames [H, W, 3], got one of {frame.dtype} {list(frame.shape)}")
        if not frames:
            raise ValueError("video must hold at least one frame, got none")


def check_seed(seed: object) -> None:
    """Raise ValueError unless ``seed`` is a whole number in [0, 2^63)."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number in [0, 2^63), got {seed!r}")
