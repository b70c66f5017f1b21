"""Where shapes stand, as a rule on the noise that a scene begins from.

A prompt leaves open where its shapes stand. Were that independent of the noise, a first step from pure noise could
only say the mean of all layouts, and would have to be taught later which noise becomes which video. Here the noise
decides by a rule that a transformer can read off it: from pure noise on there is one right video, and few steps can
make it.

The rule, on the first latent frame of a block: the first shape stands at the cell where channel 0 is largest, the next
ones a third of the width further on each, and lower by so many quarters of the height as the signs of channels 1 to 4
say there. For white noise all layouts are equally likely; ``write`` turns noise into noise of a wanted layout, and if
that layout is drawn evenly, the result is white again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .render import GRID
from .world import MAX_SHAPES

_QUARTERS = 4
_BITS = 2 * (MAX_SHAPES - 1)  # signs that are read


class Layout(NamedTuple):
    """Where the shapes of B clips stand."""

    cell: Tensor  # int64 [B, 2]: row and column of the first one's cell
    lower: Tensor  # int64 [B, MAX_SHAPES - 1] in 0..3: quarters of the height between it and each of the others

    def moved(self, by: Tensor, grid: tuple[int, int]) -> Layout:
        """All shapes further by [B, 2] cells, around the edges."""
        return Layout((self.cell + by) % torch.tensor(grid, device=by.device), self.lower)

    def centres(self, grid: tuple[int, int]) -> Tensor:
        """Pixels [B, MAX_SHAPES, 2] as (row, column), for ``render``."""
        rows, columns = grid
        steps = torch.arange(1, MAX_SHAPES, device=self.cell.device) * (columns // MAX_SHAPES)
        others = torch.stack((self.lower * (rows // _QUARTERS), steps.expand_as(self.lower)), -1)
        cells = torch.cat((self.cell[:, None], self.cell[:, None] + others), 1)
        return GRID * (cells % torch.tensor(grid, device=cells.device)).float()


def draw(count: int, grid: tuple[int, int], generator: torch.Generator) -> Layout:
    """``count`` layouts, all equally likely; on the generator's device."""
    cells = [torch.randint(n, (count,), generator=generator, device=generator.device) for n in grid]
    lower = torch.randint(_QUARTERS, (count, MAX_SHAPES - 1), generator=generator, device=generator.device)
    return Layout(torch.stack(cells, 1), lower)


def read(noise: Tensor) -> Layout:
    """The layout that noise [B, C, h, w] decides on."""
    batch, columns = len(noise), noise.shape[3]
    at = noise[:, 0].flatten(1).argmax(1)
    signs = (noise[torch.arange(batch, device=noise.device), 1 : 1 + _BITS, at // columns, at % columns] > 0).long()
    return Layout(torch.stack((at // columns, at % columns), 1), 2 * signs[:, 0::2] + signs[:, 1::2])


def write(noise: Tensor, layout: Layout) -> Tensor:
    """A copy of noise [B, C, h, w] that decides on ``layout``: two values change places, four take other signs."""
    batch, columns = torch.arange(len(noise), device=noise.device), noise.shape[3]
    noise = write_signs(noise, layout)
    first = noise[:, 0].flatten(1)
    largest, to = first.argmax(1), layout.cell[:, 0] * columns + layout.cell[:, 1]
    swapped = first.clone()
    swapped[batch, largest], swapped[batch, to] = first[batch, to], first[batch, largest]
    noise[:, 0] = swapped.view_as(noise[:, 0])
    return noise


def write_signs(noise: Tensor, layout: Layout) -> Tensor:
    """``write`` where the first shape's place is known already: the signs alone."""
    batch, noise = torch.arange(len(noise), device=noise.device), noise.clone()
    signs = torch.stack((layout.lower // 2, layout.lower % 2), 2).flatten(1)
    place = batch, slice(1, 1 + _BITS), layout.cell[:, 0], layout.cell[:, 1]
    noise[place] = noise[place].abs() * (2 * signs - 1)
    return noise
