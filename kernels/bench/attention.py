"""Shapes, counts and baseline of attention: cross-attention of a block to a prompt."""

from collections.abc import Callable

import torch
from torch import Tensor

from .case import Bench, Case


def case(rows: int, keys: int, heads: int, dtype: torch.dtype) -> Case:
    def make(device: str) -> tuple[Tensor, ...]:
        return tuple(torch.randn(n, heads, 128, device=device, dtype=dtype) for n in (rows, keys, keys))

    size = heads * 128
    moved = 2 * (rows + keys) * size * dtype.itemsize
    return Case(f"{rows}x{keys}, {heads} heads", dtype, make, moved, flops=4 * rows * keys * size)


def peers() -> dict[str, Callable]:
    """FlashAttention-4 (``pip install flash-attn-4``)."""
    try:
        from flash_attn.cute import flash_attn_func  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}

    def flash_attention_4(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flash_attn_func(q[None], k[None], v[None])
        return (out[0] if isinstance(out, tuple) else out)[0]

    return {"flash-attention-4": flash_attention_4}


BENCH = Bench(
    real=[case(4680, 512, 12, torch.bfloat16)],
    small=[case(180, 48, 2, torch.float32)],
    peers=peers,
)
