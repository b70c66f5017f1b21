"""Shapes and bytes of quantize: attention's output by heads, rows, and a group of the FFN's hidden channels."""

import torch

from .case import Bench, Case


def case(rows: int, size: int, groups: int, dtype: torch.dtype) -> Case:
    def make(device: str) -> tuple:
        return torch.randn(rows, size, device=device, dtype=dtype), groups

    return Case(f"{rows}x{size}, {groups}", dtype, make, rows * size * (dtype.itemsize + 1) + 4 * rows * groups)


BENCH = Bench(
    real=[
        *(case(rows, 1536, groups, torch.bfloat16) for rows in (4680, 2160) for groups in (1, 12)),
        case(4680, 8960, 35, torch.bfloat16),
    ],
    small=[case(60, 448, 7, torch.float32)],
)
