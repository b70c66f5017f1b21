"""Shapes, bytes and operations of int8_linear_gelu, and the same product of other types: see int8_linear's.

bfloat16's has GELU in its epilogue; fp8's has neither GELU nor the quantising of its result, for which it needs a pass.
"""

from collections.abc import Callable

import torch

from ..linear_gelu import linear_gelu
from . import int8_linear
from .case import Bench, Case, int8_result


def case(rows: int, depth: int, channels: int, groups: int, dtype: torch.dtype) -> Case:
    """Groups of the result; x has a scale a row."""
    plain = int8_result(int8_linear.case(rows, depth, channels, 1, dtype), rows, channels)
    return Case(
        f"{rows}x{depth}x{channels}, to {groups} groups",
        dtype,
        lambda device: (*plain.make(device), groups),
        plain.bytes + 4 * rows * (groups - 1),
        plain.flops,
    )


def peers() -> dict[str, Callable]:
    products = int8_linear.peers(linear_gelu)
    return {name: lambda *args, product=product: product(*args[:-1]) for name, product in products.items()}


BENCH = Bench(
    real=[case(rows, 1536, 8960, 35, torch.bfloat16) for rows in (4680, 2160)],
    small=[case(60, 256, 448, 7, torch.float32)],
    peers=peers,
    time_reference=False,
)
