"""Shapes, counts and baseline of ring_attention."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..attention import attention
from . import attention as dense
from .case import Bench, Case

FRAME = 1560  # tokens of a latent frame at 480x832


def case(rows: int, tokens: int, heads: int, dtype: torch.dtype) -> Case:
    """All queries see the whole ring."""

    def make(device: str) -> tuple[Tensor, ...]:
        q = torch.randn(rows, heads, 128, device=device, dtype=dtype)
        rings = torch.randn(2, 1, tokens, heads, 128, device=device, dtype=dtype).unbind()
        return q, *rings, torch.tensor([tokens], dtype=torch.int32, device=device)

    whole = dense.case(rows, tokens, heads, dtype)
    return Case(whole.shape, dtype, make, whole.bytes, whole.flops)


def on_dense_keys(attend: Callable) -> Callable:
    """``attend(q, k, v)`` on the ring's tokens, which are all meant here."""

    def function(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: Tensor) -> Tensor:
        return attend(q, k_ring.flatten(0, 1), v_ring.flatten(0, 1))

    return function


BENCH = Bench(
    real=[
        *(case(3 * FRAME, frames * FRAME, 12, torch.bfloat16) for frames in (12, 9, 8, 6, 3)),
        case(9 * FRAME, 9 * FRAME, 12, torch.bfloat16),
        case(2160, 8640, 12, torch.bfloat16),
        case(3072, 12288, 12, torch.bfloat16),
    ],
    small=[case(180, 720, 2, torch.float32)],
    published=on_dense_keys(attention),  # the published caches are dense
    peers=lambda: {name: on_dense_keys(attend) for name, attend in dense.peers().items()},
)
