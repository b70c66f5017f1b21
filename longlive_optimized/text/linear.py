"""Weights of the encoder that are held narrower than it computes: linears and the embedding table."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.int8_block_linear import expand_blocks, int8_block_linear

_ROWS = 512  # of a weight that a CPU widens at a time: what it has just written it multiplies from its cache


class Blocks(NamedTuple):
    """A matrix in int8 with a scale for each 32 columns of a row, as ``kernels.int8_block_linear`` takes it."""

    values: Tensor  # int8 [M, K]
    scale: Tensor  # bfloat16 [K / 32, M]


class _Narrow(nn.Module):
    """What stands in for a linear. Its weight has no name that transformers knows: the FFN casts its activations to the
    dtype of one."""

    weight = None


class WidenedLinear(_Narrow):
    """``x W^T``, W [M, K] in a dtype that is widened to x's, exactly, at each use."""

    def __init__(self, stored: Tensor):
        super().__init__()
        self.register_buffer("stored", stored, persistent=False)
        self.stored: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return F.linear(x, self.stored.to(x.dtype))
        out = x.new_empty(*x.shape[:-1], len(self.stored))
        plain = x.new_empty(min(_ROWS, len(self.stored)), self.stored.shape[1])
        for start in range(0, len(self.stored), _ROWS):
            part = self.stored[start : start + _ROWS]
            out[..., start : start + _ROWS] = F.linear(x, plain[: len(part)].copy_(part))
        return out


class Int8Linear(_Narrow):
    """``x W^T``, W [M, K] in int8 blocks."""

    def __init__(self, stored: Blocks):
        super().__init__()
        self.register_buffer("values", stored.values, persistent=False)
        self.register_buffer("scale", stored.scale, persistent=False)
        self.values: Tensor
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        return int8_block_linear(rows, self.values, self.scale).view(*x.shape[:-1], len(self.values))


def linear_of(stored: Tensor | Blocks, dtype: torch.dtype) -> nn.Module | None:
    """What stands in for the linear of a weight in a network of ``dtype``; None where torch's own will do."""
    if isinstance(stored, Blocks):
        return Int8Linear(stored)
    return None if stored.dtype == dtype else WidenedLinear(stored)


def rows_of(table: Tensor | Blocks, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows ``ids`` [L] of an embedding table, in ``dtype``."""
    if isinstance(table, Blocks):
        return expand_blocks(table.values[ids], table.scale[:, ids], dtype)
    return table[ids].to(dtype)
