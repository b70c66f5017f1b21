"""Where shapes stand, as a rule on the noise that a scene begins from.

A prompt leaves open where its shapes stand. Were that independent of the noise, a first step from pure noise could
only say the mean of all layouts, and would have to be taught later which noise becomes which video. Here the noise
decides by a rule that a transformer can read off it: from pure noise on there is one right video, and few steps can
make it.

The rule, on a stream's first block: where the sum of channel 0 over a patch is largest among all patches of all its
frames, there and then stands the first shape; the next ones stand a third of the width further on each, every other
one half the height lower. For a transformer a patch is a token, and it knows of tokens only how far one is from
another, in space as in time: that is why the rule names no frame. For white noise all layouts are equally likely.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model.config import PATCH
from ..video_time import BLOCK_FRAMES
from .render import GRID, scale_of
from .world import MAX_SHAPES, MOTIONS, Scene

_CELL = GRID * PATCH  # pixels a patch
_FRAMES = 4  # pixel frames between one latent frame and the next


def draw(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Marks int64 [count, 3] for frames of that height and width: latent frame, row and column of the first shape's
    patch, all equally likely; on the generator's device."""
    extents = BLOCK_FRAMES, size[0] // _CELL, size[1] // _CELL
    drawn = [torch.randint(n, (count,), generator=generator, device=generator.device) for n in extents]
    return torch.stack(drawn, 1)


def centres(marks: Tensor, scenes: Sequence[Scene], size: tuple[int, int]) -> Tensor:
    """Pixels [B, MAX_SHAPES, 2] as (row, column) in frame 0, for ``render``; on the CPU."""
    velocity = torch.tensor([MOTIONS[scene.motion] for scene in scenes]) * scale_of(*size).speed
    first = (marks[:, 1:] + 0.5) * _CELL - velocity * _FRAMES * marks[:, :1]
    others = [(i % 2 * size[0] / 2, i * size[1] / MAX_SHAPES) for i in range(MAX_SHAPES)]
    return (first[:, None] + torch.tensor(others)) % torch.tensor(size)


def read(x: Tensor) -> Tensor:
    """The marks that noise x [B, 3, C, h, w] decides on."""
    patches = _patches(x)
    at = patches.sum(-1).argmax(1)
    rows, columns = (n // PATCH for n in x.shape[3:])
    return torch.stack((at // (rows * columns), at // columns % rows, at % columns), 1)


def write(x: Tensor, marks: Tensor) -> Tensor:
    """A copy of x that decides on ``marks``: two patches of channel 0 change places, so white noise remains white."""
    batch, patches = torch.arange(len(x), device=x.device), _patches(x)
    rows, columns = (n // PATCH for n in x.shape[3:])
    largest, to = patches.sum(-1).argmax(1), (marks[:, 0] * rows + marks[:, 1]) * columns + marks[:, 2]
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
