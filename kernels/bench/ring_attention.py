"""Shapes, counts and baseline of ring_attention."""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import ring_attention as op
from .case import Bench, Case

FRAME = 1560  # tokens of a latent frame at 480x832


def case(
    rows: int,
    tokens: int,
    heads: int,
    dtype: torch.dtype,
    groups: tuple[tuple[tuple[int, int], ...], ...] = (),
) -> Case:
    """``groups``: the runs of equal groups of queries; none: all queries see the whole ring."""
    runs = [[*group, (0, 0)][:2] for group in groups or (((0, tokens),),)]
    rows_each = rows // len(runs)

    def make(device: str) -> tuple:
        q = torch.randn(rows, heads, 128, device=device, dtype=dtype)
        rings = torch.randn(2, 1, tokens, heads, 128, device=device, dtype=dtype).unbind()
        return q, *rings, torch.tensor(runs, dtype=torch.int32, device=device), rows_each if len(runs) > 1 else None

    size, keys = heads * 128, [sum(end - begin for begin, end in group) for group in runs]
    moved = 2 * (rows + tokens) * size * dtype.itemsize
    shape = f"{len(runs)}x" * (len(runs) > 1) + f"{rows_each}x{keys[0]}, {heads} heads"
    return Case(shape, dtype, make, moved, flops=4 * rows_each * sum(keys) * size)


def published(q: Tensor, k_ring: Tensor, v_ring: Tensor, ranges: Tensor, split: int | None) -> Tensor:
    """The best library on the keys of each group, contiguous as its caches are: as many as the ranges have here."""
    parts = (q,) if split is None else (q[:split], q[split:])
    keys = min(k_ring.shape[1], 12 * FRAME)
    run = torch.tensor([[[0, keys], [0, 0]]], dtype=torch.int32)
    run_on = op._library if q.is_cuda else op.ring_attention
    return torch.cat([run_on(part, k_ring, v_ring, run) for part in parts])


def peers() -> dict[str, Callable]:
    """FlashAttention-4 (``pip install flash-attn-4``) on the same keys as the published order."""
    try:
        from flash_attn.cute import flash_attn_func
    except ImportError:
        return {}

    def flash_attention_4(q: Tensor, k_ring: Tensor, v_ring: Tensor, ranges: Tensor, split: int | None) -> Tensor:
        parts = (q,) if split is None else (q[:split], q[split:])
        k, v = (ring[:, : min(k_ring.shape[1], 12 * FRAME)] for ring in (k_ring, v_ring))
        outs = [flash_attn_func(part[None], k, v) for part in parts]
        return torch.cat([(out[0] if isinstance(out, tuple) else out)[0] for out in outs])

    return {"flash-attention-4": flash_attention_4}


# Two groups: the context pass of a block and the first step of the next one, in a ring of 15 frames.
MERGED = ((0, 3 * FRAME), (6 * FRAME, 15 * FRAME)), ((0, 3 * FRAME), (3 * FRAME, 12 * FRAME))

BENCH = Bench(
    real=[
        *(case(3 * FRAME, frames * FRAME, 12, torch.bfloat16) for frames in (12, 9, 8, 6, 3)),
        case(6 * FRAME, 15 * FRAME, 12, torch.bfloat16, MERGED),
        case(9 * FRAME, 9 * FRAME, 12, torch.bfloat16),
        case(2160, 8640, 12, torch.bfloat16),
        case(3072, 12288, 12, torch.bfloat16),
        case(3 * FRAME, 512, 12, torch.bfloat16),
    ],
    small=[case(180, 720, 2, torch.float32)],
    published=published,
    peers=peers,
)
