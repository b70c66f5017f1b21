"""Shapes, bytes and baseline of residual_norm."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .case import Bench, Case


def case(frames: int, tokens: int, size: int, dtype: torch.dtype, affine: bool = False) -> Case:
    """After self-attention (affine: the norm before cross-attention) or after the FFN."""

    def make(device: str) -> tuple:
        m = 0.3 * torch.randn(frames, 6, size, device=device, dtype=dtype)
        x, y = (torch.randn(frames * tokens, size, device=device, dtype=dtype) for _ in range(2))
        shift, scale = (m[0, i : i + 1] if affine else m[:, i] for i in (3, 4))
        return x, y, m[:, 5], shift, scale, 0.0 if affine else 1.0, 1e-6

    elements = 4 * frames * tokens * size + (frames + 2 * (1 if affine else frames)) * size
    return Case(f"{frames}x{tokens}, {size}{', affine' * affine}", dtype, make, elements * dtype.itemsize)


def published(x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, offset: float, eps: float) -> Tensor:
    """Rounds after the gate, the sum, the norm, offset + scale, the product and the sum; x is not updated in place."""
    x = x + (y.view(gate.shape[0], -1, y.shape[1]) * gate[:, None]).view(x.shape)
    normed = F.layer_norm(x.float(), x.shape[1:], eps=eps).to(x.dtype).view(shift.shape[0], -1, x.shape[1])
    return (normed * (offset + scale[:, None]) + shift[:, None]).flatten(0, 1)


BENCH = Bench(
    real=[
        *(case(frames, 1560, 1536, torch.bfloat16) for frames in (3, 6)),
        case(3, 1560, 1536, torch.bfloat16, affine=True),
    ],
    small=[case(3, 60, 1536, torch.float32)],
    published=published,
)
