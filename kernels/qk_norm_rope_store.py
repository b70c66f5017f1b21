"""qk_norm_rope_store: from the QKV product to rotated queries and the ring's keys and values, in one pass."""

import torch
from torch import Tensor

from . import native
from .checks import expect, expect_float, on_gpu
from .quantize import quantize_runs
from .registry import op
from .rotate_sinks import mix, quantize_keys, rotate, whole_warps
from .triton_import import tl, triton


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
      channels (2j, 2j+1) of every head are rotated: pairs 0..Pt-1 by the frame, the others by the token.
    - k_ring, v_ring [R, S, H, hd]: frame f is written to slot slots[f]; nothing else is touched.
    - k_sink [s, S, H, hd]: where slots[f] < s, the key before its rotation is kept here too; s may be 0.
    - slots [F], int64, on the same device; distinct and in [0, R): not checked, that would wait for the device.

    Returns q [F*S, H, hd]. Raises ValueError naming the argument that does not fit.
    """
    _check(qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots)
    q, k = _queries_and_keys(qkv, q_gain, k_gain, rope_time, rope_space, v_ring, k_sink, slots, eps)
    k_ring.index_copy_(0, slots, k.to(qkv.dtype))
    return q.to(qkv.dtype).flatten(0, 1)


@op(mutates=("k_ring", "k_scale", "v_ring", "k_sink"))
def qk_norm_rope_store_int8(
    qkv: Tensor,
    q_gain: Tensor,
    k_gain: Tensor,
    rope_time: Tensor,
    rope_space: Tensor,
    k_offset: Tensor,
    k_ring: Tensor,
    k_scale: Tensor,
    v_ring: Tensor,
    k_sink: Tensor,
    slots: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """``qk_norm_rope_store`` with queries and keys in int8, each token of each head with its scale.

    As there, but k_ring [R, S, H, hd] is int8, k_scale [H, R * S] float32, and k_offset [H, hd] float32: what is
    taken from every rotated key first. The softmax of attention does not see it: it adds the same to all scores of a
    query. Then a Hadamard matrix mixes the channels of each head (``rotate_sinks.mix``), of queries and keys alike,
    which leaves their products alone. Both serve to make them even. Values, and the un-rotated keys in k_sink, are as
    there.

    All of that is in float32 and is quantised as ``quantize`` does it: scale = amax / 127, values =
    rint(x * (127 / amax)); zeros have scale 0. Where a query or key has a NaN or an infinity, its scale is not finite.
    Returns (q [F*S, H, hd] int8, q_scale [H, F*S] float32). Raises ValueError naming the argument that does not fit.
    """
    _check_int8(qkv, q_gain, k_gain, rope_time, rope_space, k_offset, k_ring, k_scale, v_ring, k_sink, slots)
    q, k = _queries_and_keys(qkv, q_gain, k_gain, rope_time, rope_space, v_ring, k_sink, slots, eps)
    ring, _, heads, _ = k_ring.shape
    values, scale = quantize_keys(k, k_offset)
    k_ring.index_copy_(0, slots, values)
    k_scale.view(heads, ring, -1).index_copy_(1, slots, scale)
    values, scale = quantize_runs(mix(q).flatten(0, 1).flatten(1), heads)
    return values.view(-1, *k_ring.shape[2:]), scale


def _queries_and_keys(
    qkv, q_gain, k_gain, rope_time, rope_space, v_ring, k_sink, slots, eps: float
) -> tuple[Tensor, Tensor]:
    """Both rotated, [F, S, H, hd]; v_ring and k_sink take what is theirs."""
    # Precision: norm, gain and rotation in float32, rounded once at each store. The published order
    # (docs/model.md 2.2, 2.3) rounds to bfloat16 after the norm, after the gain and after the rotation.
    wide = torch.promote_types(qkv.dtype, torch.float32)
    _, tokens, heads, head_dim = v_ring.shape
    q, k, v = qkv.view(slots.shape[0], tokens, 3, heads, head_dim).unbind(2)
    q = _rms_norm(q.to(wide), q_gain.to(wide), eps)
    k = _rms_norm(k.to(wide), k_gain.to(wide), eps)
    v_ring.index_copy_(0, slots, v)
    _keep_sinks(k_sink, k.to(qkv.dtype), slots)
    return rotate(q, rope_time, rope_space), rotate(k, rope_time, rope_space)


def _rms_norm(z: Tensor, gain: Tensor, eps: float) -> Tensor:
    mean_square = z.square().mean(dim=(-2, -1), keepdim=True)  # [F, S, 1, 1]
    return z * (mean_square + eps).rsqrt() * gain.view(z.shape[-2:])


def _keep_sinks(k_sink: Tensor, k: Tensor, slots: Tensor) -> None:
    if k_sink.shape[0] == 0:
        return
    hit = slots == torch.arange(k_sink.shape[0], device=slots.device)[:, None]  # [s, F]
    frame = hit.int().argmax(dim=1)
    k_sink.copy_(torch.where(hit.any(dim=1)[:, None, None, None], k[frame], k_sink))


def _check_int8(qkv, q_gain, k_gain, rope_time, rope_space, k_offset, k_ring, k_scale, v_ring, k_sink, slots) -> None:
    _check(qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots, torch.int8)
    ring, tokens, heads, head_dim = k_ring.shape
    expect("k_offset", k_offset, (heads, head_dim), torch.float32, qkv.device)
    expect("k_scale", k_scale, (heads, ring * tokens), torch.float32, qkv.device)


def _check(
    qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots, ring_dtype: torch.dtype | None = None
) -> None:
    expect_float("qkv", qkv)
    dtype, device = qkv.dtype, qkv.device
    expect("k_ring", k_ring, (None, None, None, None), ring_dtype or dtype, device)
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


def _fits_cuda(qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots, eps) -> bool:
    return (
        native.takes(qkv)
        and k_ring.dim() == qkv.dim() + 2 == 4
        and k_ring.shape[3] == 128
        and k_ring.shape[2] <= 12
        and all(t.data_ptr() % 16 == 0 for t in (qkv, q_gain, k_gain, k_ring, v_ring, k_sink))
    )


@qk_norm_rope_store.impl("cuda", when=_fits_cuda)
def _cuda(qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots, eps) -> Tensor:
    return torch.ops.longlive_C.qk_norm_rope_store(
        qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots, eps
    )


def _fits_cuda_int8(
    qkv, q_gain, k_gain, rope_time, rope_space, k_offset, k_ring, k_scale, v_ring, k_sink, slots, eps
) -> bool:
    plain = qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots, eps
    return _fits_cuda(*plain) and k_offset.data_ptr() % 16 == 0 and whole_warps(v_ring)


@qk_norm_rope_store_int8.impl("cuda", when=_fits_cuda_int8)
def _cuda_int8(
    qkv, q_gain, k_gain, rope_time, rope_space, k_offset, k_ring, k_scale, v_ring, k_sink, slots, eps
) -> tuple[Tensor, Tensor]:
    return torch.ops.longlive_C.qk_norm_rope_store_int8(
        qkv, q_gain, k_gain, rope_time, rope_space, k_offset, k_ring, k_scale, v_ring, k_sink, slots, eps
    )


if triton:
    from .rotate_sinks import load_rotation, rotated, store_heads

    @triton.jit
    def _normed(z, gain, channel, live, size, eps):
        z = tl.load(z + channel, mask=live, other=0.0).to(tl.float32)
        g = tl.load(gain + channel, mask=live, other=0.0).to(tl.float32)
        return z * tl.rsqrt(tl.sum(z * z, axis=0) / size + eps) * g

    @triton.jit
    def _kernel(
        qkv, q_gain, k_gain, rope_time, rope_space, k_offset, q, q_scale, k_ring, k_scale, v_ring, k_sink, slots,
        tokens, ring_tokens, sinks, size, time_pairs, eps,
        PAIRS: tl.constexpr, BLOCK: tl.constexpr, INT8: tl.constexpr,
    ):  # fmt: skip
        token = tl.program_id(0).to(tl.int64)
        frame = token // tokens
        in_frame = token % tokens
        slot = tl.load(slots + frame)
        in_ring = (slot * tokens + in_frame) * size
        channel = tl.arange(0, BLOCK)
        live = channel < size
        qkv += token * 3 * size

        v = tl.load(qkv + 2 * size + channel, mask=live)
        tl.store(v_ring + in_ring + channel, v, mask=live)

        cos, sin = load_rotation(rope_time, rope_space, frame, in_frame, time_pairs, PAIRS, BLOCK)
        # Precision: float32 from the norm to the rotation, rounded once by each store.
        query = rotated(_normed(qkv, q_gain, channel, live, size, eps), cos, sin, BLOCK)
        normed_k = _normed(qkv + size, k_gain, channel, live, size, eps)
        if slot < sinks:
            tl.store(k_sink + in_ring + channel, normed_k, mask=live)
        key = rotated(normed_k, cos, sin, BLOCK)
        if INT8:
            store_heads(query, q + token * size, q_scale + token, tl.num_programs(0), size, 2 * PAIRS, BLOCK)
            key -= tl.load(k_offset + channel, mask=live, other=0.0)
            home_scale = k_scale + slot * tokens + in_frame
            store_heads(key, k_ring + in_ring, home_scale, ring_tokens, size, 2 * PAIRS, BLOCK)
        else:
            tl.store(q + token * size + channel, query, mask=live)
            tl.store(k_ring + in_ring + channel, key, mask=live)

    @qk_norm_rope_store.impl("triton", when=on_gpu)
    def _triton(qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots, eps) -> Tensor:
        _check(qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots)
        q = qkv.new_empty(qkv.shape[0], *k_ring.shape[2:])
        _launch(qkv, q_gain, k_gain, rope_time, rope_space, None, q, None, k_ring, None, v_ring, k_sink, slots, eps)
        return q

    def _fits_triton_int8(
        qkv, q_gain, k_gain, rope_time, rope_space, k_offset, k_ring, k_scale, v_ring, k_sink, slots, eps
    ) -> bool:
        return on_gpu(qkv) and k_ring.shape[-1].bit_count() == 1

    @qk_norm_rope_store_int8.impl("triton", when=_fits_triton_int8)
    def _triton_int8(
        qkv, q_gain, k_gain, rope_time, rope_space, k_offset, k_ring, k_scale, v_ring, k_sink, slots, eps
    ) -> tuple[Tensor, Tensor]:
        _check_int8(qkv, q_gain, k_gain, rope_time, rope_space, k_offset, k_ring, k_scale, v_ring, k_sink, slots)
        q = k_ring.new_empty(qkv.shape[0], *k_ring.shape[2:])
        q_scale = k_scale.new_empty(k_ring.shape[2], qkv.shape[0])
        rings = k_ring, k_scale, v_ring, k_sink
        _launch(qkv, q_gain, k_gain, rope_time, rope_space, k_offset, q, q_scale, *rings, slots, eps)
        return q, q_scale

    def _launch(
        qkv, q_gain, k_gain, rope_time, rope_space, k_offset, q, q_scale, k_ring, k_scale, v_ring, k_sink, slots, eps
    ) -> None:
        ring, tokens, heads, head_dim = k_ring.shape
        size = heads * head_dim
        with torch.cuda.device_of(qkv):
            # Not fused where it ends in integers: the product is rounded before it is rounded to one.
            _kernel[(qkv.shape[0],)](
                qkv, q_gain, k_gain, rope_time, rope_space, k_offset, q, q_scale, k_ring, k_scale, v_ring, k_sink,
                slots, tokens, ring * tokens, k_sink.shape[0], size, rope_time.shape[1], eps, PAIRS=head_dim // 2,
                BLOCK=triton.next_power_of_2(size), INT8=q_scale is not None, enable_fp_fusion=q_scale is None,
            )  # fmt: skip
