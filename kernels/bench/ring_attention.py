"""Shapes and counts of ring_attention."""

import torch

from .case import Bench, Case


def case(tokens: int, slots: int, slot_tokens: int, heads: int, dtype: torch.dtype) -> Case:
    def make(device: str) -> tuple:
        q = torch.randn(tokens, heads, 128, device=device, dtype=dtype)
        return q, *torch.randn(2, slots, slot_tokens, heads, 128, device=device, dtype=dtype).unbind(), slots

    keys, size = slots * slot_tokens, heads * 128
    moved = 2 * (tokens + keys) * size * dtype.itemsize
    return Case(f"{tokens}x{keys}, {heads} heads", dtype, make, moved, flops=4 * tokens * keys * size)


BENCH = Bench(
    real=[case(4680, 12, 1560, 12, torch.bfloat16), case(4680, 1, 512, 12, torch.bfloat16)],
    small=[case(180, 12, 60, 2, torch.float32)],
)
