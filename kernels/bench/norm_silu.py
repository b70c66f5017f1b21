"""Shapes, bytes and baseline of norm_silu: before the encoder's first block of each width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..causal_conv import GROUP, GROUP_INT8
from .case import Bench, Case


def case(frames: int, channels: int, size: tuple[int, int], dtype: torch.dtype, in_int8: bool = False) -> Case:
    def make(device: str) -> tuple:
        shape = frames, channels // GROUP, *size, GROUP
        x, gain = torch.randn(shape, device=device, dtype=dtype), torch.rand(channels, device=device)
        listed = torch.arange(frames, dtype=torch.int32, device=device)
        if not in_int8:
            return x, gain, torch.empty_like(x), listed
        shape = frames, channels // GROUP_INT8, *size, GROUP_INT8
        act, saturated = torch.empty(shape, dtype=torch.int8, device=device), torch.zeros(1, dtype=torch.int64)
        return x, gain, act, listed, 1 / 32, saturated.to(device)

    written = 1 if in_int8 else dtype.itemsize
    moved = frames * channels * size[0] * size[1] * (dtype.itemsize + written)
    shape = f"{frames}x{size[0]}x{size[1]}, {channels}{' to int8' if in_int8 else ''}"
    return Case(shape, dtype, make, moved)


def published(x: Tensor, gain: Tensor, act: Tensor, *rest: object) -> Tensor:
    """Rounds the norm, too; frames in order, in x's dtype."""
    flat = x.movedim(1, 3).flatten(3)
    normed = F.rms_norm(flat, (len(gain),), gain.to(x.dtype), eps=1e-24 / len(gain))
    return F.silu(normed).unflatten(3, (-1, GROUP)).movedim(3, 1)


BENCH = Bench(
    real=[
        case(*shape, torch.bfloat16, in_int8)
        for shape in ((12, 96, (240, 416)), (6, 192, (120, 208)), (3, 384, (60, 104)))
        for in_int8 in (False, True)
    ],
    small=[case(2, 96, (16, 24), torch.float32)],
    published=published,
)
