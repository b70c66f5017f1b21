"""Chains of element-wise steps of ``forward``, one kernel each on a GPU: apart they move most of a step's bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Chain = Callable[..., Tensor]


@cache
def _compiled(chain: Chain) -> Chain:
    return torch.compile(chain, dynamic=True)  # once for all shapes


def _one_kernel(chain: Chain) -> Chain:
    """The chain, on a GPU compiled."""

    @wraps(chain)
    def run(x: Tensor, *others: Any) -> Tensor:
        return (_compiled(chain) if x.is_cuda else chain)(x, *others)

    return run


@_one_kernel
def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """The norm of x [B, R, S, D] with shift and scale [B, R, 1, D]."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale)


@_one_kernel
def gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + y * gate; x and y [B, R, S, D], gate [B, R, 1, D]."""
    return torch.addcmul(x, y, gate)


@_one_kernel
def rotated(x: Tensor, turns: Tensor) -> Tensor:
    """Pairs of x [B, P, S, heads, head_dim] by turns (cos, sin) [P, S, 1, head_dim / 2, 2], rounded once."""
    a, b = x.to(turns.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turns.unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)
