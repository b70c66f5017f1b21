"""Shapes, bytes and baseline of modulate_norm."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .case import Bench, Case


def case(frames: int, tokens: int, size: int, dtype: torch.dtype) -> Case:
    def make(device: str) -> tuple:
        m = 0.3 * torch.randn(frames, 6, size, device=device, dtype=dtype)
        return torch.randn(frames * tokens, size, device=device, dtype=dtype), m[:, 0], m[:, 1], 1e-6

    elements = 2 * frames * tokens * size + 2 * frames * size
    return Case(f"{frames}x{tokens}, {size}", dtype, make, elements * dtype.itemsize)


def published(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Rounds after the norm, after 1 + scale, after the product and after the sum."""
    normed = F.layer_norm(x.float(), x.shape[1:], eps=eps).to(x.dtype).view(shift.shape[0], -1, x.shape[1])
    return (normed * (1 + scale[:, None]) + shift[:, None]).flatten(0, 1)


BENCH = Bench(
    real=[case(frames, 1560, 1536, torch.bfloat16) for frames in (3, 6)],
    small=[case(3, 60, 1536, torch.float32)],
    published=published,
)
