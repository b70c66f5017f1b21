"""What a causal stream carries from one call to the next."""

import math

from torch import Tensor, nn

from .band import BandRows


class CausalState:
    """The last input frames of each layer that looks back: zeros before the first frame, then written in place.

    Buffers are made at a layer's first use and keep their address until the state is dropped, so a call can be captured
    in a CUDA graph once every layer has run.

    rows: a decoder's, if it decodes a band.
    """

    def __init__(self, rows: BandRows | None = None) -> None:
        self.rows = rows
        self.fresh = True  # no frame has been seen: up- and downsampling in time treat the very first one apart
        self._scratch: Tensor | None = None
        self._frames: dict[nn.Module, Tensor] = {}

    def history(self, layer: nn.Module, x: Tensor, frames: int) -> Tensor:
        """The ``frames`` frames that ``layer`` saw before ``x`` [T, H, W, C]; the layer overwrites them itself."""
        if layer not in self._frames:
            self._frames[layer] = x.new_zeros(frames, *x.shape[1:])
        return self._frames[layer]

    def scratch(self, x: Tensor, frames: int) -> Tensor:
        """``frames`` frames like those of x [T, H, W, C], unwritten, until the next call.

        On a CPU they lie in the same memory each time: there the system clears what is given back and taken again.
        """
        shape = frames, *x.shape[1:]
        if not x.is_cpu:
            return x.new_empty(shape)
        numel = math.prod(shape)
        if self._scratch is None or self._scratch.numel() < numel:
            self._scratch = None  # goes before its successor comes
            self._scratch = x.new_empty(numel)
        return self._scratch[:numel].view(shape)

    def crop(self, place: int, x: Tensor) -> Tensor:
        """The rows of x [T, H, W, C] that stay at a place of ``BandRows``, contiguous; all without a band."""
        return x if self.rows is None else x[:, self.rows.crops[place]].contiguous()

    def reset(self) -> None:
        """Back to before the first frame; the storage stays."""
        self.fresh = True
        for frames in self._frames.values():
            frames.zero_()
