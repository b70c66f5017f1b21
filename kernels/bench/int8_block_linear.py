"""Shapes, bytes and operations of int8_block_linear: umT5-XXL's products, for a short prompt and the longest one.

The peer multiplies with the same weight expanded beforehand, in x's dtype: what the file's own bfloat16 would take.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..int8_block_linear import BLOCK, expand_blocks, quantize_blocks
from .case import Bench, Case
from .int8_linear import once


def case(rows: int, depth: int, channels: int, dtype: torch.dtype) -> Case:
    def make(device: str) -> tuple[Tensor, ...]:
        weight = torch.randn(channels, depth, device=device) * depth**-0.5
        return torch.randn(rows, depth, device=device, dtype=dtype), *quantize_blocks(weight)

    moved = channels * (depth + 2 * depth // BLOCK) + rows * (depth + channels) * dtype.itemsize
    return Case(f"{rows}x{depth}x{channels}", dtype, make, moved, 2 * rows * depth * channels)


def peers() -> dict[str, Callable]:
    """torch's product with the expanded weight."""
    plain = once(lambda weight, scale: (expand_blocks(weight, scale, torch.bfloat16),))
    return {"bf16": lambda x, weight, scale: F.linear(x.bfloat16(), *plain(weight, scale))}


SHAPES = ((4096, 4096), (4096, 10240), (10240, 4096))
BENCH = Bench(
    real=[case(rows, *shape, torch.bfloat16) for rows in (32, 512) for shape in SHAPES],
    small=[case(7, 96, 80, torch.float32)],
    peers=peers,
)
