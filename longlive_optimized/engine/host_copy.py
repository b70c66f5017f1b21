"""A block's frames on their way to the host, while the next block is made."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class HostCopy:
    """The copy of a block's frames, begun when this is made: on a GPU behind what its current CUDA stream does by then,
    and before what it does later. So it is made as soon as there is the block, and waited for late."""

    def __init__(self, block: Tensor):
        self._host, self._copied = block, None
        if block.is_cuda:
            self._host = torch.empty(block.shape, dtype=block.dtype, device="cpu", pin_memory=True)
            self._host.copy_(block, non_blocking=True)
            self._copied = torch.cuda.Event(blocking=True)  # sleeps: encoders need the core that waiting would burn
            self._copied.record(torch.cuda.current_stream(block.device))

    def frames(self) -> np.ndarray:
        """uint8 [T, H, W, 3], once all are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host.numpy()
