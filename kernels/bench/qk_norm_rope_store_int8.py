"""Shapes and bytes of qk_norm_rope_store_int8."""

import torch
from torch import Tensor

from .. import qk_norm_rope_store as operators  # noqa: F401  the operator is in the file of the plain one
from ..quantize_keys import KEY_RUN
from . import qk_norm_rope_store as plain
from .case import Bench, Case


def case(frames: int, tokens: int, heads: int, dtype: torch.dtype, sinks: int = 3, ring: int = 12) -> Case:
    whole = plain.case(frames, tokens, heads, dtype, sinks, ring)

    def make(device: str) -> tuple:
        *inputs, k_ring, v_ring, k_sink, slots, eps = whole.make(device)
        k_offset = torch.randn(heads, 128, device=device)
        k_scale: Tensor = torch.zeros(heads, ring * tokens // KEY_RUN, device=device)
        return *inputs, k_offset, k_ring.to(torch.int8), k_scale, v_ring, k_sink, slots, eps

    rows, size = frames * tokens, heads * 128
    moved = whole.bytes - 2 * rows * size * (dtype.itemsize - 1) + 4 * (rows * heads + rows * heads // KEY_RUN + size)
    return Case(whole.shape, dtype, make, moved)


BENCH = Bench(
    real=[case(frames, 1560, 12, torch.bfloat16) for frames in (3, 6)], small=[case(3, 64, 12, torch.float32)]
)
