"""Where shapes stand, as a rule on the noise that a scene begins from.

A prompt leaves open where its shapes stand. Were that independent of the noise, a first step from pure noise could
only say the mean of all layouts, and would have to be taught later which noise becomes which video. Here the noise
decides by a rule that a transformer can read off it: from pure noise on there is one right video, and few steps can
make it.

The rule, on a stream's first block and on the first block of another scene: where the sum of channel 0 over a patch is
largest among all patches of all its frames, there and then stands the first shape; the next ones stand at fixed
distances from it. For a transformer a patch is a token, and it knows of tokens only how far one is from another, in
space as in time: that is why the rule names no frame. For white noise all layouts are equally likely.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model.config import PATCH
from ..video_time import BLOCK_FRAMES
from .render import GRID, scale_of
from .world import MOTIONS, Scene

_CELL = GRID * PATCH  # pixels a patch
_FRAMES = 4  # pixel frames between one latent frame and the next
_OTHERS = ((0, 0), (48, 32), (0, 80))  # pixels from the first shape to each


def draw(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Marks int64 [count, 3] for frames of that height and width: latent frame, row and column of the first shape's
    patch, all equally likely; on the generator's device."""
    extents = BLOCK_FRAMES, size[0] // _CELL, size[1] // _CELL
    drawn = [torch.randint(n, (count,), generator=generator, device=generator.device) for n in extents]
    return torch.stack(drawn, 1)


def centres(marks: Tensor, scenes: Sequence[Scene], size: tuple[int, int], begins: bool = True) -> Tensor:
    """Pixels [B, MAX_SHAPES, 2] as (row, column) in the block's first frame, for ``render``; on the CPU.

    begins: whether it is a stream's first block, whose first latent frame is one pixel frame. In the last pixel frame
    of the mark's latent frame the first shape is at the mark.
    """
    late = _FRAMES * marks[:, :1] + (0 if begins else _FRAMES - 1)
    first = (marks[:, 1:] + 0.5) * _CELL - velocities(scenes, size) * late
    return (first[:, None] + torch.tensor(_OTHERS)) % torch.tensor(size)


def velocities(scenes: Sequence[Scene], size: tuple[int, int]) -> Tensor:
    """Pixels a frame [B, 2]."""
    return torch.tensor([MOTIONS[scene.motion] for scene in scenes]) * scale_of(*size).speed


def read(x: Tensor) -> Tensor:
    """The marks that noise x [B, 3, C, h, w] decides on."""
    patches = _patches(x)
    at = patches.sum(-1).argmax(1)
    rows, columns = (n // PATCH for n in x.shape[3:])
    return torch.stack((at // (rows * columns), at // columns % rows, at % columns), 1)


def write(x: Tensor, marks: Tensor) -> Tensor:
    """A copy of x that decides on ``marks``: two patches of channel 0 change places, so white noise remains white.

    Where marks are negative x stays as it is.
    """
    batch, patches = torch.arange(len(x), device=x.device), _patches(x)
    rows, columns = (n // PATCH for n in x.shape[3:])
    largest, to = patches.sum(-1).argmax(1), (marks[:, 0] * rows + marks[:, 1]) * columns + marks[:, 2]
    to = torch.where(marks[:, 0] < 0, largest, to)
    swapped = patches.clone()
    swapped[batch, largest], swapped[batch, to] = patches[batch, to], patches[batch, largest]
    written = x.clone()
    grid = swapped.view(len(x), BLOCK_FRAMES, rows, columns, PATCH, PATCH)
    written[:, :, 0] = grid.transpose(3, 4).reshape(len(x), BLOCK_FRAMES, *x.shape[3:])
    return written


def _patches(x: Tensor) -> Tensor:
    """Channel 0 of x [B, 3, C, h, w] as [B, patches, values]."""
    grid = x[:, :, 0].unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))
    return grid.transpose(3, 4).flatten(4).flatten(1, 3)
