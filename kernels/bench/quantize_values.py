"""Shapes and bytes of quantize_values: a block's values, a third of the QKV product, and those of a whole ring."""

import torch

from ..quantize_values import VALUE_GROUP
from .case import Bench, Case


def case(frames: int, tokens: int, heads: int, dtype: torch.dtype, ring: int = 12, parts: int = 3) -> Case:
    def make(device: str) -> tuple:
        rows = torch.randn(frames * tokens, parts, heads, 128, device=device, dtype=dtype)
        room = -(-ring * tokens // VALUE_GROUP) * VALUE_GROUP
        return (
            rows[:, -1],
            torch.randn(heads, 128, device=device),
            1 + torch.rand(heads, 128, device=device),
            torch.zeros(heads, 128, room, device=device, dtype=torch.float8_e4m3fn),
            torch.arange(frames, device=device),
        )

    moved = frames * tokens * heads * 128 * (dtype.itemsize + 1) + 2 * 4 * heads * 128 + 8 * frames
    return Case(f"{frames}x{tokens}, {heads} heads", dtype, make, moved)


BENCH = Bench(
    real=[case(frames, 1560, 12, torch.bfloat16) for frames in (3, 12)],
    small=[case(3, 64, 12, torch.float32, ring=3, parts=1)],
)
