"""qk_norm_rope_store: from the QKV product to rotated queries and the ring's keys and values, in one pass."""
import torch
from torch import Tensor

from .checks import expect, expect_float
from .registry import op


@op(mutates=("k_ring", "v_ring", "k_sink"))
def qk_norm_rope_store(
    qkv: Tensor,
    q_gain: Tensor,
    k_gain: Tensor,
    rope_time: Tensor,
    rope_space: Tensor,
    k_ring: Tensor,
    v_ring: Tensor,
    k_sink: Tensor,
    slots: Tensor,
    eps: float,
) -> Tensor:
    """``q = rope(rms(q) * q_gain)``; the ring's slots take ``rope(rms(k) * k_gain)`` and ``v``.

    F frames of S tokens, H heads of hd channels, D = H * hd, a ring of R frames; floats of one dtype, but the tables:

    - qkv [F*S, 3*D], frame-major: q, k and v of a token side by side; rms is over all D channels, not per head.
    - q_gain, k_gain [D].
    - rope_time [F, Pt, 2], rope_space [S, Ps, 2], Pt + Ps = hd/2, float32 (float64 beside float64): (cos, sin) by which
      the pair of channels (2j, 2j+1) of every head turns; pairs 0..Pt-1 with the frame, the others with the token.
    - k_ring, v_ring [R, S, H, hd]: frame f is written to slot slots[f]; nothing else is touched.
    - k_sink [s, S, H, hd]: where slots[f] < s, the key before its rotation is kept here too; s may be 0.
    - slots [F], int64, on the same device; distinct and in [0, R), which is not checked (that would wait for the device).

    Returns q [F*S, H, hd]. Raises ValueError naming the argument that does not fit.
    """
    _check(qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots)
    # Precision: norm, gain and rotation in float32, rounded once at each store. The published order (longlive-model 2.2,
    # 2.3) rounds to bfloat16 after the norm, after the gain and after the rotation.
    wide = torch.promote_types(qkv.dtype, torch.float32)
    _, tokens, heads, head_dim = k_ring.shape
    q, k, v = qkv.view(slots.shape[0], tokens, 3, heads, head_dim).unbind(2)
    rope = torch.cat(
        (rope_time[:, None].expand(-1, tokens, -1, -1), rope_space[None].expand(slots.shape[0], -1, -1, -1)), dim=2
    )
    q = _rms_norm(q.to(wide), q_gain.to(wide), eps)
    k = _rms_norm(k.to(wide), k_gain.to(wide), eps)
    k_ring.index_copy_(0, slots, _rotate(k, rope).to(qkv.dtype))
    v_ring.index_copy_(0, slots, v)
    _keep_sinks(k_sink, k.to(qkv.dtype), slots)
    return _rotate(q, rope).to(qkv.dtype).flatten(0, 1)


def _rms_norm(z: Tensor, gain: Tensor, eps: float) -> Tensor:
    mean_square = z.square().mean(dim=(-2, -1), keepdim=True)  # [F, S, 1, 1]
    return z * (mean_square + eps).rsqrt() * gain.view(z.shape[-2:])


def _rotate(z: Tensor, rope: Tensor) -> Tensor:
    re, im = z.unflatten(-1, (-1, 2)).unbind(-1)  # [F, S, H, hd/2]
    cos, sin = rope[:, :, None].unbind(-1)  # [F, S, 1, hd/2]
    return torch.stack((re * cos - im * sin, re * sin + im * cos), dim=-1).flatten(-2)


def _keep_sinks(k_sink: Tensor, k: Tensor, slots: Tensor) -> None:
    if k_sink.shape[0] == 0:
        return
    hit = slots == torch.arange(k_sink.shape[0], device=slots.device)[:, None]  # [s, F]
    frame = hit.int().argmax(dim=1)
    k_sink.copy_(torch.where(hit.any(dim=1)[:, None, None, None], k[frame], k_sink))


def _check(qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots) -> None:
    expect_float("qkv", qkv)
    dtype, device = qkv.dtype, qkv.device
    expect("k_ring", k_ring, (None, None, None, None), dtype, device)
    ring, tokens, heads, head_dim = k_ring.shape
    if head_dim % 2:
        raise ValueError(f"k_ring must have an even last dimension, got {list(k_ring.shape)}")
    expect("slots", slots, (None,), torch.int64, device)
    frames = slots.shape[0]
    if not 0 < frames <= ring:
        raise ValueError(f"slots must name 1 to {ring} frames of k_ring, got {frames}")
    expect("qkv", qkv, (frames * tokens, 3 * heads * head_dim), dtype, device)
    expect("q_gain", q_gain, (heads * head_dim,), dtype, device)
    expect("k_gain", k_gain, (heads * head_dim,), dtype, device)
    expect("v_ring", v_ring, (ring, tokens, heads, head_dim), dtype, device)
    expect("k_sink", k_sink, (None, tokens, heads, head_dim), dtype, device)
    table = torch.promote_types(dtype, torch.float32)
    expect("rope_time", rope_time, (frames, None, 2), table, device)
    expect("rope_space", rope_space, (tokens, head_dim // 2 - rope_time.shape[1], 2), table, device)
