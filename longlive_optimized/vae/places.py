"""Where frames lie: storage that causal layers look back into without copying, and lists of places in it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.causal_conv import GROUP


class Frames(NamedTuple):
    """Frames of ``tensor`` [S, C / 8, H, W, 8] in order: their places, ~place for a frame of zeros."""

    tensor: Tensor
    places: list[int]


class Pool:
    """The frames of one size: work places, in up to three lists, and two of history for each of ``layers``.

    A frame never moves. What a layer has read last becomes its history by a change of lists alone; the places that were
    its history become work places. The lists a, x and b are the caller's: ``a`` and ``b`` for what causal layers read.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        layers: Sequence[Hashable] = (),
        a: int = 0,
        x: int = 0,
        b: int = 0,
        **make,
    ):
        work = a + x + b
        self.tensor = torch.empty(work + 2 * len(layers), channels // GROUP, *size, GROUP, **make)
        self.a, self.x, self.b = list(range(a)), list(range(a, a + x)), list(range(a + x, work))
        self._history = {layer: [work + 2 * i, work + 2 * i + 1] for i, layer in enumerate(layers)}
        self.forget()

    def forget(self) -> None:
        """From here on every layer's history is two frames of zeros."""
        for layer, places in self._history.items():
            self._history[layer] = [~_place(p) for p in places]

    def at(self, places: list[int], count: int) -> Frames:
        """The first ``count`` of these."""
        return Frames(self.tensor, places[:count])

    def fixed(self, count: int) -> Tensor:
        """The first ``count`` of x as they lie, side by side: no layer reads x, so its places never change."""
        return self.tensor[self.x[0] : self.x[0] + count]

    def read(self, layer: Hashable, work: list[int], first: int, end: int) -> Frames:
        """What ``layer`` reads to convolve work[first:end]: two frames of history before them.

        Its history is then the last two of these; the places left over take the seats in ``work``.
        """
        order = self._history[layer] + work[first:end]
        self._history[layer] = order[-2:]
        work[first:end] = map(_place, order[:-2])
        return Frames(self.tensor, order)


def _place(entry: int) -> int:
    """The place of an entry, which may say that its frame is one of zeros."""
    return entry if entry >= 0 else ~entry
