"""Shapes and bytes of quantize_keys: a stream's first block, and a whole ring."""

import torch

from ..quantize_keys import KEY_RUN
from .case import Bench, Case


def case(frames: int, tokens: int, heads: int, dtype: torch.dtype, ring: int = 12) -> Case:
    def make(device: str) -> tuple:
        return (
            torch.randn(frames, tokens, heads, 128, device=device, dtype=dtype),
            torch.randn(heads, 128, device=device),
            torch.zeros(ring, tokens, heads, 128, device=device, dtype=torch.int8),
            torch.zeros(heads, ring * tokens // KEY_RUN, device=device),
            torch.arange(frames, device=device),
        )

    rows = frames * tokens * heads
    moved = rows * 128 * (dtype.itemsize + 1) + 4 * rows // KEY_RUN + 4 * heads * 128 + 8 * frames
    return Case(f"{frames}x{tokens}, {heads} heads", dtype, make, moved)


BENCH = Bench(
    real=[case(frames, 1560, 12, torch.bfloat16) for frames in (3, 12)],
    small=[case(3, 64, 12, torch.float32, ring=3)],
)
