"""Shapes and bytes of rotate_sinks."""

import torch

from .case import Bench, Case, rotations


def case(layers: int, sinks: int, tokens: int, heads: int, dtype: torch.dtype, ring: int = 12) -> Case:
    def make(device: str) -> tuple:
        k_sink = torch.randn(layers, sinks, tokens, heads, 128, device=device, dtype=dtype)
        k_ring = torch.zeros(layers, ring, tokens, heads, 128, device=device, dtype=dtype)
        return k_sink, rotations(sinks, 22, device), rotations(tokens, 42, device), k_ring

    moved = 2 * layers * sinks * tokens * heads * 128 * dtype.itemsize + (sinks * 22 + tokens * 42) * 8
    return Case(f"{layers} layers, {sinks}x{tokens}, {heads} heads", dtype, make, moved)


BENCH = Bench(real=[case(30, 3, 1560, 12, torch.bfloat16)], small=[case(2, 3, 60, 2, torch.float32)])
