"""Shapes and bytes of dequantize_weight: the products of a layer that int8 weights serve."""

import torch

from ..int8_linear import quantize_weight
from .case import Bench, Case


def case(channels: int, depth: int, dtype: torch.dtype) -> Case:
    def make(device: str) -> tuple:
        return *quantize_weight(torch.randn(channels, depth, device=device)), dtype

    return Case(f"{channels}x{depth}", dtype, make, channels * (depth * (1 + dtype.itemsize) + 4))


BENCH = Bench(
    real=[case(*shape, torch.bfloat16) for shape in ((4608, 1536), (1536, 1536), (8960, 1536), (1536, 8960))],
    small=[case(96, 64, torch.float32)],
)
