"""Shapes and counts of ring_attention_int8; beside it ring_attention, and the library's, both of bfloat16."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..attention import attention
from ..quantize import quantize
from ..quantize_keys import KEY_RUN
from ..ring_attention import ring_attention
from . import ring_attention as plain
from .case import Bench, Case


def integers(tokens: int, heads: int, device: str) -> tuple[Tensor, Tensor]:
    """Queries or keys [tokens, heads, 128], and a scale for each token of each head."""
    values, scale = quantize(torch.randn(tokens, heads * 128, device=device), heads)
    return values.view(tokens, heads, 128), scale


def case(rows: int, tokens: int, heads: int, dtype: torch.dtype) -> Case:
    """All queries see the whole ring."""

    def make(device: str) -> tuple[Tensor, ...]:
        k_ring, scales = integers(tokens, heads, device)
        k_scale = scales[:, ::KEY_RUN].contiguous()
        v_ring = torch.randn(1, tokens, heads, 128, device=device, dtype=dtype)
        valid = torch.tensor([tokens], dtype=torch.int32, device=device)
        return *integers(rows, heads, device), k_ring[None], k_scale, v_ring, valid

    size = heads * 128
    moved = (rows + tokens) * size * (1 + dtype.itemsize) + 4 * heads * (rows + tokens // KEY_RUN) + 4
    return Case(f"{rows}x{tokens}, {heads} heads", dtype, make, moved, flops=4 * rows * tokens * size)


@functools.lru_cache(maxsize=1)
def in_bfloat16(rows: int, tokens: int, heads: int, device: torch.device) -> tuple[Tensor, ...]:
    """Arguments of ``ring_attention``."""
    return plain.case(rows, tokens, heads, torch.bfloat16).make(str(device))


def peers() -> dict[str, Callable]:
    """Of the same sizes; a peer's arguments are drawn when it is called first, which is not timed."""

    def on(attend: Callable) -> Callable:
        def function(q: Tensor, q_scale: Tensor, k_ring: Tensor, *rest: Tensor) -> Tensor:
            return attend(*in_bfloat16(q.shape[0], k_ring.shape[0] * k_ring.shape[1], q.shape[1], q.device))

        return function

    return {"bfloat16": on(ring_attention), "library, bfloat16": on(plain.on_dense_keys(attention))}


BENCH = Bench(
    real=[case(4680, 18720, 12, torch.bfloat16), case(2160, 8640, 12, torch.bfloat16)],
    small=[case(180, 720, 2, torch.float32)],
    peers=peers,
    time_reference=False,
)
