"""Bands: several ranks decode the same latents, each some rows of the pictures, without exchanging anything.

Attention sees a whole frame, so what comes before it is computed over all rows on every rank. From there on a row
depends on few others: each level of the decoder computes the rows that the band's pictures depend on, its *halo*
included, and between levels the rows that nothing needs any more are cut off. Beyond a cut there are zeros in place of
rows of the picture. What they spoil is halo, which the next cut takes away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ..plain import whole


@dataclass(frozen=True)
class Band:
    """The rows that ``rank`` of ``count`` ranks decodes: of h rows of latents those from rank h / count, rounded down,
    to the next rank's; bands of a frame differ by one row at most. Raises ValueError naming the field.
    """

    rank: int
    count: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", whole("count", self.count, 1))
        object.__setattr__(self, "rank", whole("rank", self.rank, 0, self.count - 1))

    def rows(self, height: int) -> range:
        """Those of latents of this height. Raises ValueError naming ``band`` if there are more ranks than rows."""
        if height < self.count:
            raise ValueError(f"band must be one of at most {height}, one for each row of the latents, got {self}")
        return range(self.rank * height // self.count, (self.rank + 1) * height // self.count)


@dataclass(frozen=True)
class BandRows:
    """What a decoder of L levels cuts off for a band: at place i, ``crops[i]`` of ``heights[i]`` rows stay.

    Place 0 is before level 0, the coarsest, place i behind level i - 1; what stays at the last one are the pictures.
    """

    heights: tuple[int, ...]
    crops: tuple[slice, ...]

    def cuts(self, place: int) -> bool:
        """Whether any row goes there."""
        return self.crops[place] != slice(0, self.heights[place])


def rows_of(band: Band | None, height: int, reaches: tuple[int, ...]) -> BandRows:
    """The fewest rows that give ``band`` of latents of this height, bit for bit; all rows without a band.

    reaches: see ``Autoencoder.reaches``. Between two levels is nearest-neighbour 2x upsampling, then a 3x3 convolution.
    Raises ValueError naming ``band`` if it has no rows.
    """
    rows = (band or Band(0, 1)).rows(height)
    finest = len(reaches) - 1
    stay = range(rows.start << finest, rows.stop << finest)  # of a place: rows of its level, from the frame's top
    stays, computed = [stay], []  # of all places and levels, the pictures first
    for level in reversed(range(len(reaches))):
        needed = range(max(0, stay.start - reaches[level]), min(height << level, stay.stop + reaches[level]))
        if level:
            # Row r of the convolution reads rows r - 1 to r + 1 of frames whose row r is a copy of row r / 2.
            stay = range(max(0, (needed.start - 1) // 2), min(height << level - 1, needed.stop // 2 + 1))
            needed = range(2 * stay.start, 2 * stay.stop)
        else:
            stay = needed
        stays.append(stay)
        computed.append(needed)
    cut_from = [range(height), *reversed(computed)]
    crops = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(reversed(stays), cut_from, strict=True))
    return BandRows(tuple(map(len, cut_from)), tuple(crops))


def reach(layers: Iterable[nn.Module]) -> int:
    """Rows above, and below, that a row of what ``layers`` give one after the other depends on."""
    convolutions = (part for layer in layers for part in layer.modules() if isinstance(part, nn.Conv2d | nn.Conv3d))
    return sum(convolution.kernel_size[-2] // 2 for convolution in convolutions)
