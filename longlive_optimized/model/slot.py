"""Where a checkpoint's tensors go in a network, and how they are written there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.dequantize_weight import dequantize_weight
from ..kernels.int8_linear import quantize_weight


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
        self._check(tensor)
        self._stored.copy_(tensor)

    def read(self) -> Tensor:
        """A copy of what is stored, in the dtype here."""
        return self._stored.clone()

    def sum(self) -> Tensor:
        """Sum of what is stored, a float32 scalar on the device: a NaN or infinity stored makes it one."""
        stored = self._stored if self._stored.itemsize > 1 else self._stored.to(torch.bfloat16)  # float8 has no sums
        return stored.sum(dtype=torch.float32)

    def _check(self, tensor: Tensor) -> None:
        if tensor.shape != self.shape:
            raise ValueError(f"tensor must be {list(self.shape)}, got {list(tensor.shape)}")


class Int8Slot(Slot):
    """The place of a matrix that is held in 8 bits alone: rows of an int8 weight, and their scales.

    What is written is rounded to ``dtype`` first, so that its 8 bits are those of ``Linear.quantize_weight``.
    """

    def __init__(self, values: Tensor, scale: Tensor, dtype: torch.dtype):
        super().__init__(values)
        self._scale, self._dtype = scale, dtype
        self.nbytes += scale.nbytes

    def write(self, tensor: Tensor) -> None:
        self._check(tensor)
        values, scale = quantize_weight(tensor.to(self._dtype))
        self._stored.copy_(values)
        self._scale.copy_(scale)

    def read(self) -> Tensor:
        return dequantize_weight(self._stored, self._scale, self._dtype)

    def sum(self) -> Tensor:
        return self._scale.sum()
