"""Where a checkpoint's tensors go in a network, and how they are written there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Slot:
    """The place of one checkpoint tensor: a parameter, or some of its rows, in the checkpoint's ``shape``.

    How a layer stores the tensor is the layer's own: nothing outside sees the parameter through its slot. A slot holds
    for as long as the network stays on its device.
    """

    def __init__(self, stored: Tensor, shape: Sequence[int] | None = None):
        self._stored = stored.detach() if shape is None else stored.detach().view(*shape)
        self.shape, self.device = self._stored.shape, self._stored.device
        self.nbytes = self._stored.nbytes  # on the device

    def write(self, tensor: Tensor) -> None:
        """Store ``tensor``, rounded once to the dtype here. Raises ValueError for one of another shape."""
        if tensor.shape != self.shape:
            raise ValueError(f"tensor must be {list(self.shape)}, got {list(tensor.shape)}")
        self._stored.copy_(tensor)

    def read(self) -> Tensor:
        """A copy of what is stored, in the dtype here."""
        return self._stored.clone()

    def sum(self) -> Tensor:
        """Sum of what is stored, a float32 scalar on the device: a NaN or infinity stored makes it one."""
        return self._stored.sum(dtype=torch.float32)
