"""Where activations lie. A causal layer's history is never copied: it is a list of frames' indices."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.causal_conv import GROUP, GROUP_INT8


class Frames(NamedTuple):
    """Frames of ``tensor`` [S, C / 8, H, W, 8] (int8 [S, C / 16, H, W, 16]) in order: their indices, ~index for a frame
    of zeros."""

    tensor: Tensor
    indices: list[int]


class FramePool:
    """A pool of activation frames of one size.

    A layer's history is never copied: it is the indices of the last two frames that the layer read. ``read`` returns
    history and new frames; the last two of them become the new history, and those that it frees become scratch. Scratch
    frames are in up to three lists: ``x``, the residual stream; ``a`` and ``b``, the inputs of a block's first and
    second convolution. ``layers`` are those that read.

    acts: the pool of the blocks' inputs, ``a`` and ``b``: another one where they are int8.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        layers: Sequence[Hashable] = (),
        a: int = 0,
        x: int = 0,
        b: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        scratch = a + x + b
        group = GROUP_INT8 if dtype == torch.int8 else GROUP
        shape = scratch + 2 * len(layers), channels // group, *size, group
        self.tensor = torch.empty(shape, dtype=dtype, device=device)
        self.acts = self
        self.a, self.x, self.b = list(range(a)), list(range(a, a + x)), list(range(a + x, scratch))
        self._history = {layer: [scratch + 2 * i, scratch + 2 * i + 1] for i, layer in enumerate(layers)}
        self.forget()

    def forget(self) -> None:
        """From here on every layer's history is two frames of zeros."""
        for layer, indices in self._history.items():
            self._history[layer] = [~_index(entry) for entry in indices]

    def at(self, indices: list[int], count: int) -> Frames:
        """The first ``count`` of these."""
        return Frames(self.tensor, indices[:count])

    def fixed(self, count: int) -> Tensor:
        """The first ``count`` of x, side by side: no layer reads x, so its indices never change."""
        return self.tensor[self.x[0] : self.x[0] + count]

    def read(self, layer: Hashable, scratch: list[int], first: int, end: int) -> Frames:
        """What ``layer`` reads to convolve scratch[first:end]: its two frames of history, then these."""
        order = self._history[layer] + scratch[first:end]
        self._history[layer] = order[-2:]
        scratch[first:end] = map(_index, order[:-2])
        return Frames(self.tensor, order)


def _index(entry: int) -> int:
    """The index in an entry, which may say that its frame is one of zeros."""
    return entry if entry >= 0 else ~entry
