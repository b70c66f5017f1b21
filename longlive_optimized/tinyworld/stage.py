"""What the trainer asks of a stage."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn

from .world import Scene


class Sample(NamedTuple):
    """What a stage can do by now."""

    scores: dict[str, float]
    videos: list[Tensor]  # uint8 [T, H, W, 3]
    scenes: list[Scene]  # that they should show


class Stage(Protocol):
    """Networks, and the losses that train them; made from (size, folder, device, dtype, seed)."""

    name: str
    share: float  # of the time that all stages have
    batch: int
    rate: float  # of learning, at its height
    clips: int  # that are made before the training, and kept
    parts: dict[str, nn.Module]

    def begin(self, seed: int, again: bool) -> None:
        """Draw from other random numbers from here on; ``again``: the stage was trained before."""

    def losses(self, batch: int, progress: float) -> dict[str, Tensor]:
        """``loss``, and what it is made of, at the given share of the training."""
        ...

    def sample(self, count: int) -> Sample:
        """``count`` videos of held-out prompts, and their scores."""
        ...

    def finish(self) -> None:
        """What is done with the averaged weights, in float32, at the end."""
