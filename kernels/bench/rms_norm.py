"""Shapes, bytes and baseline of rms_norm."""

import torch
from torch import Tensor

from .case import Bench, Case


def case(rows: int, size: int, dtype: torch.dtype) -> Case:
    def make(device: str) -> tuple:
        return torch.randn(rows, size, device=device, dtype=dtype), torch.randn(size, device=device, dtype=dtype), 1e-6

    return Case(f"{rows}, {size}", dtype, make, (2 * rows + 1) * size * dtype.itemsize)


def published(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Rounds before the gain and after it."""
    wide = x.float()
    return (wide * (wide.square().mean(dim=-1, keepdim=True) + eps).rsqrt()).to(x.dtype) * gain


BENCH = Bench(
    real=[case(rows, 1536, torch.bfloat16) for rows in (4680, 9360)],
    small=[case(180, 1536, torch.float32)],
    published=published,
)
