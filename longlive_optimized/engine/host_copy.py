"""Tensors on their way to the host, while the GPU goes on; a block's frames while the next block is made."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_host(x: Tensor) -> Tensor:
    """A copy in host memory, pinned where it comes from a GPU: then it may still be under way."""
    host = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=x.is_cuda)
    return host.copy_(x, non_blocking=True)


class HostCopy:
    """The copy of a block's frames, begun when this is made: on a GPU behind what its current CUDA stream does by then,
    and before what it does later. So it is made as soon as there is the block, and waited for late."""

    def __init__(self, block: Tensor):
        self._host, self._copied = block, None
        if block.is_cuda:
            self._host = to_host(block)
            self._copied = torch.cuda.Event(blocking=True)  # sleeps: encoders need the core that waiting would burn
            self._copied.record(torch.cuda.current_stream(block.device))

    def frames(self) -> np.ndarray:
        """uint8 [T, H, W, 3], once all are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host.numpy()
