"""Shapes, bytes and FLOPs of linear_gelu; its reference is the published order."""

import torch

from .case import Bench, Case


def case(rows: int, depth: int, width: int, dtype: torch.dtype) -> Case:
    def make(device: str) -> tuple:
        shapes = ((rows, depth), (width, depth), (width,))
        x, weight, bias = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
        return x, weight * depth**-0.5, bias

    moved = (rows * depth + width * depth + width + rows * width) * dtype.itemsize
    return Case(f"{rows}x{depth}x{width}", dtype, make, moved, 2 * rows * depth * width)


BENCH = Bench(
    real=[case(rows, 1536, 8960, torch.bfloat16) for rows in (4680, 9360)],
    small=[case(60, 256, 512, torch.float32)],
)
