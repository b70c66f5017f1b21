"""Shapes and bytes of rotate_sinks_int8."""

import torch

from .. import rotate_sinks as operators  # noqa: F401  the operator is in the file of the plain one
from ..quantize_keys import KEY_RUN
from . import rotate_sinks as plain
from .case import Bench, Case


def case(layers: int, sinks: int, tokens: int, heads: int, dtype: torch.dtype, ring: int = 12) -> Case:
    whole = plain.case(layers, sinks, tokens, heads, dtype, ring)

    def make(device: str) -> tuple:
        *inputs, k_ring = whole.make(device)
        k_offset = torch.randn(layers, heads, 128, device=device)
        return (
            *inputs,
            k_offset,
            k_ring.to(torch.int8),
            torch.zeros(layers, heads, ring * tokens // KEY_RUN, device=device),
        )

    rows, size = layers * sinks * tokens, heads * 128
    return Case(
        whole.shape,
        dtype,
        make,
        whole.bytes - rows * size * (dtype.itemsize - 1) + 4 * (rows * heads // KEY_RUN + layers * size),
    )


BENCH = Bench(real=[case(30, 3, 1560, 12, torch.bfloat16)], small=[case(2, 3, 64, 2, torch.float32)])
