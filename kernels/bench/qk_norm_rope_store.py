"""Shapes, bytes and baseline of qk_norm_rope_store."""

import torch
from torch import Tensor

from .case import Bench, Case, rotations


def case(frames: int, tokens: int, heads: int, dtype: torch.dtype, sinks: int = 3, ring: int = 12) -> Case:
    """Steady state: the slots lie behind the sinks."""
    size = heads * 128

    def make(device: str) -> tuple:
        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, dtype=dtype)

        rings = (torch.zeros(n, tokens, heads, 128, device=device, dtype=dtype) for n in (ring, ring, sinks))
        slots = torch.arange(sinks, sinks + frames, device=device)
        gains = randn(size), randn(size)
        tables = rotations(frames, 22, device), rotations(tokens, 42, device)
        return randn(frames * tokens, 3 * size), *gains, *tables, *rings, slots, 1e-6

    moved = 2 * frames * tokens * 3 * size * dtype.itemsize
    tables = (frames * 22 + tokens * 42) * 8 + 2 * size * dtype.itemsize
    return Case(f"{frames}x{tokens}, {heads} heads", dtype, make, moved + tables)


def published(qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots, eps) -> Tensor:
    """Rounds after the norm, after the gain and after the rotation, which is in float64."""
    _, tokens, heads, head_dim = k_ring.shape
    frames = slots.shape[0]
    rotation = torch.cat(
        (rope_time[:, None].expand(-1, tokens, -1, -1), rope_space[None].expand(frames, -1, -1, -1)), dim=2
    )
    rotation = torch.view_as_complex(rotation.double().contiguous())[:, :, None]

    def norm(z: Tensor, gain: Tensor) -> Tensor:
        normed = z.float() * torch.rsqrt(z.float().square().mean(-1, keepdim=True) + eps)
        return normed.to(z.dtype) * gain

    def rotate(z: Tensor) -> Tensor:
        pairs = torch.view_as_complex(z.double().view(frames, tokens, heads, -1, 2))
        return torch.view_as_real(pairs * rotation).flatten(-2).to(z.dtype)

    q, k, v = qkv.chunk(3, dim=1)
    k_ring.index_copy_(0, slots, rotate(norm(k, k_gain)))
    v_ring.index_copy_(0, slots, v.reshape(frames, tokens, heads, head_dim))
    return rotate(norm(q, q_gain)).flatten(0, 1)


BENCH = Bench(
    real=[case(frames, 1560, 12, torch.bfloat16) for frames in (3, 6)],
    small=[case(3, 60, 12, torch.float32)],
    published=published,
)
