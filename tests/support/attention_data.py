"""Arguments of attention over the ring with queries and keys in int8, and softmax in float64."""

from collections.abc import Callable

import torch
from torch import Tensor

from longlive_optimized.kernels.quantize import quantize_groups
from longlive_optimized.kernels.quantize_keys import as_int8, mix

BEYOND = 10**6  # more tokens than any ring has: the whole ring
REAL = {
    "self-attention": {"tokens": 4680, "slots": 12, "per_slot": 1560, "heads": 12},
    "a young stream": {"tokens": 4680, "slots": 12, "per_slot": 1560, "heads": 12, "valid": 9360},
    "recache": {"tokens": 14040, "slots": 12, "per_slot": 1560, "heads": 12, "valid": 14040},
    "small picture": {"tokens": 2160, "slots": 12, "per_slot": 720, "heads": 12},
    "odd picture": {"tokens": 1111, "slots": 12, "per_slot": 776, "heads": 12},
    "odd window": {"tokens": 4680, "slots": 9, "per_slot": 1560, "heads": 12, "spare": 1},
}

# What both forms of attention in int8 are tried with.
CASES = {
    "beyond the ring": {},
    "the whole ring": {"valid": 320},
    "one key of many": {"valid": 1},
    "scales to spare": {"spare": 4},
    "ragged": {"tokens": 131, "per_slot": 72, "valid": 334},
    "all keys but one": {"valid": 319},
    "large logits": {"spread": 30.0},
    "small scales": {"spread": 1e-12},
    "an outlier": {"outlier": 40.0},
    "a late outlier": {"outlier": 400.0, "slots": 40},
    "an early outlier": {"outlier": -400.0, "slots": 40},
    "logits beyond any shift": {"spread": 300.0, "slots": 40, "tokens": 140},
}


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [N, H, hd] as integers and their scales [H, N], as qk_norm_rope_store_int8 makes them of queries."""
    values, scale = quantize_groups(mix(x).flatten(1), x.shape[1])
    return values.view(x.shape), scale


def quantised_keys(k: Tensor) -> tuple[Tensor, Tensor]:
    """k [N, H, hd] as integers and their scales [H, N / 8]."""
    values, scale = as_int8(k[None], torch.zeros(k.shape[1:], device=k.device))
    return values[0].contiguous(), scale[:, 0].contiguous()


def int8_case(
    dtype,
    device,
    tokens=7,
    slots=8,
    per_slot=40,
    heads=2,
    head_dim=128,
    valid=BEYOND,
    spread=4.0,
    outlier=0.0,
    uneven=0.0,
    large_channels=1.0,
    offset=0.0,
    spare=0,
    seed=0,
):
    """Arguments of ``ring_attention_int8``, and the float32 queries and keys that they stand for.

    Logits of about the deviation ``spread``. With an ``outlier``, one key of that many times the usual length. Channels
    of e^uneven times the usual size, one way or the other; eight of the keys' ``large_channels`` times as large. Keys
    whose mean is ``offset`` deviations from zero: it is taken from them before they are quantised. Scales to ``spare``.
    """
    torch.manual_seed(seed)
    size = slots * per_slot
    q_gain, k_gain = (uneven * torch.randn(2, heads, head_dim, device=device)).exp()
    k_gain[:, torch.randperm(head_dim)[:8]] *= large_channels
    q = torch.randn(tokens, heads, head_dim, device=device) * q_gain
    k = torch.randn(size, heads, head_dim, device=device) * k_gain
    v = torch.randn(size, heads, head_dim, device=device)
    q *= spread / (q_gain * k_gain).square().mean(-1, keepdim=True).sqrt()
    if outlier:
        k[size // 2] *= outlier
        v[size // 2] *= outlier
    mean = offset * torch.randn(heads, head_dim, device=device) * k_gain
    (q8, q_scale), (k8, k_scale) = quantised(q), quantised_keys(k)
    keys = max(valid, 0)
    k_scale = torch.nn.functional.pad(k_scale, (0, spare)).contiguous()
    k8[keys:], k_scale[:, (keys + 7) // 8 :], v[keys:] = -128, float("nan"), float("nan")
    ring = (slots, per_slot, heads, head_dim)
    count = torch.tensor([valid], dtype=torch.int32, device=device)
    return (q8, q_scale, k8.view(ring), k_scale, v.to(dtype).view(ring), count), (q, k + mean)


def logits_of(q: Tensor, q_scale: Tensor, k_ring: Tensor, k_scale: Tensor, valid: Tensor) -> Tensor:
    """[H, N, keys] of the integers."""
    k = k_ring.flatten(0, 1)[: max(int(valid), 0)]
    scores = torch.einsum("nhd,mhd->hnm", q.double(), k.double()) / q.shape[-1] ** 0.5
    return scores * q_scale.double()[..., None] * k_scale.double().repeat_interleave(8, 1)[:, None, : len(k)]


def softmax_of(scores: Tensor, v: Tensor) -> Tensor:
    """[N, H, hd] of scores [H, N, keys] and v [.., H, hd], of which the first are seen."""
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v[: scores.shape[-1]].double())


def unquantised(q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
    """Of queries [N, H, hd], keys and values [M, H, hd]."""
    return softmax_of(torch.einsum("nhd,mhd->hnm", q.double(), k[: int(valid)].double()) / q.shape[-1] ** 0.5, v)


def error(got: Tensor, want: Tensor) -> float:
    """Relative L2."""
    return ((got.double() - want).norm() / want.norm()).item()


def error_of_spread(got: Tensor, want: Tensor) -> float:
    """Relative to how much the results of a head differ from query to query."""
    return ((got.double() - want).norm() / (want - want.mean(0)).norm()).item()


def by_head(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], head_dims: tuple[int | None, ...]) -> Tensor:
    """``function`` on one head after the other: float64 scores of all are too large."""
    heads = tensors[0].shape[head_dims[0]]
    parts = [
        function(*(x.narrow(d, i, 1) if d is not None else x for x, d in zip(tensors, head_dims, strict=True)))
        for i in range(heads)
    ]
    return torch.cat(parts, dim=1)
