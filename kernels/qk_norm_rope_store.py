"""qk_norm_rope_store: from the QKV product to rotated queries and the ring's keys and values, in one pass."""

import math

import torch
from torch import Tensor

from . import native
from .checks import expect, expect_float, on_gpu
from .quantize import quantize_groups
from .quantize_keys import KEY_RUN, expect_int8_keys, mix, store_keys, whole_warps
from .registry import op
from .rotate_sinks import rotate
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
    v_ring: Tensor | None,
    k_sink: Tensor,
    slots: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """``qk_norm_rope_store`` with queries and keys in int8.

    As there, but k_ring [R, S, H, hd] is int8, S a multiple of 8; k_scale [H, G] float32, k_offset [H, hd]
    float32. Rotated keys are quantised as ``quantize_keys`` does it, where k_offset and the scales are described: each
    head of 8 tokens in a row has one scale. Queries are mixed as keys are, and each token's head has its scale. Values,
    and the un-rotated keys in k_sink, are as there; without a v_ring values are not stored.

    All of that is in float32 and is quantised as ``quantize`` does it: scale = amax / 127, values =
    rint(x * (127 / amax)); zeros have scale 0. Where a query, or one of 8 keys, has a NaN or an infinity, its scale is
    not finite. Returns (q [F*S, H, hd] int8, q_scale [H, F*S] float32). Raises ValueError naming the argument that does
    not fit.
    """
    _check_int8(qkv, q_gain, k_gain, rope_time, rope_space, k_offset, k_ring, k_scale, v_ring, k_sink, slots)
    q, k = _queries_and_keys(qkv, q_gain, k_gain, rope_time, rope_space, v_ring, k_sink, slots, eps)
    store_keys(k, k_offset, k_ring, k_scale, slots)
    values, scale = quantize_groups(mix(q).flatten(0, 1).flatten(1), k_ring.shape[2])
    return values.view(-1, *k_ring.shape[2:]), scale


def _queries_and_keys(
    qkv, q_gain, k_gain, rope_time, rope_space, v_ring, k_sink, slots, eps: float
) -> tuple[Tensor, Tensor]:
    """Both rotated, [F, S, H, hd]; k_sink, and v_ring if there is one, take what is theirs."""
    # Precision: norm, gain and rotation in float32, rounded once at each store. The published order
    # (docs/model.md 2.2, 2.3) rounds to bfloat16 after the norm, after the gain and after the rotation.
    wide = torch.promote_types(qkv.dtype, torch.float32)
    tokens, heads, head_dim = k_sink.shape[1:]
    q, k, v = qkv.view(slots.shape[0], tokens, 3, heads, head_dim).unbind(2)
    q = _rms_norm(q.to(wide), q_gain.to(wide), eps)
    k = _rms_norm(k.to(wide), k_gain.to(wide), eps)
    if v_ring is not None:
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
    expect_int8_keys(k_ring, k_scale, k_offset)


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
    if v_ring is not None:
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
        and all(t is None or t.data_ptr() % 16 == 0 for t in (qkv, q_gain, k_gain, k_ring, v_ring, k_sink))
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
    return _fits_cuda(*plain) and k_offset.data_ptr() % 16 == 0 and whole_warps(k_sink)


@qk_norm_rope_store_int8.impl("cuda", when=_fits_cuda_int8)
def _cuda_int8(
    qkv, q_gain, k_gain, rope_time, rope_space, k_offset, k_ring, k_scale, v_ring, k_sink, slots, eps
) -> tuple[Tensor, Tensor]:
    return torch.ops.longlive_C.qk_norm_rope_store_int8(
        qkv, q_gain, k_gain, rope_time, rope_space, k_offset, k_ring, k_scale, v_ring, k_sink, slots, eps
    )


if triton:
    from .quantize_keys import store_heads
    from .rotate_sinks import load_rotation, rotated

    HEADS_AT_ONCE = 4  # of tokens in int8: a multiple of what a model has, or as many of it as are a power of two

    @triton.jit
    def _normed(z, gain, channel, live, size, eps):
        z = tl.load(z + channel, mask=live, other=0.0).to(tl.float32)
        g = tl.load(gain + channel, mask=live, other=0.0).to(tl.float32)
        return z * tl.rsqrt(tl.sum(z * z, axis=0) / size + eps) * g

    @triton.jit
    def _kernel(
        qkv, q_gain, k_gain, rope_time, rope_space, q, k_ring, v_ring, k_sink, slots,
        tokens, sinks, size, time_pairs, eps, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
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
        query = rotated(_normed(qkv, q_gain, channel, live, size, eps), cos, sin)
        normed_k = _normed(qkv + size, k_gain, channel, live, size, eps)
        if slot < sinks:
            tl.store(k_sink + in_ring + channel, normed_k, mask=live)
        tl.store(q + token * size + channel, query, mask=live)
        tl.store(k_ring + in_ring + channel, rotated(normed_k, cos, sin), mask=live)

    @triton.jit
    def _store_int8(
        z, gain, cos, sin, offset, sink, kept, out, scale, scale_of_head, size, eps,
        RUN: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
    ):  # fmt: skip
        """Queries of RUN tokens at z, or keys, ``kept`` before, normed, rotated, and stored as int8, HEADS at a time.

        cos and sin are those of HEADS * RUN rows: head after head.
        """
        channel = tl.arange(0, BLOCK)
        whole = z + tl.arange(0, RUN)[:, None] * 3 * size + channel
        whole = tl.load(whole, mask=channel < size, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(whole * whole, axis=1) / size + eps)
        inverse = tl.reshape(tl.broadcast_to(inverse[None], (HEADS, RUN)), (HEADS * RUN, 1))
        row, channel = tl.arange(0, HEADS * RUN)[:, None], tl.arange(0, DIM)
        head, token = row // RUN * DIM, row % RUN * size
        z += head + row % RUN * 3 * size + channel
        for first in range(0, size, HEADS * DIM):
            # Precision: float32 from the norm to the integers.
            of_heads = first + head + channel
            normed = tl.load(z + first).to(tl.float32) * inverse * tl.load(gain + of_heads).to(tl.float32)
            if KEYS:
                if kept:
                    tl.store(sink + token + of_heads, normed)
            x = rotated(normed, cos, sin)
            if KEYS:
                x -= tl.load(offset + of_heads)
            scales = scale + first // DIM * scale_of_head
            store_heads(x, out + first, size, scales, scale_of_head, RUN, HEADS, DIM, SHARED=KEYS)

    # Not specialised: a stream whose window grows must not wait for a compiler.
    @triton.jit(do_not_specialize=["scales"])
    def _kernel_int8(
        qkv, q_gain, k_gain, rope_time, rope_space, k_offset, q, q_scale, k_ring, k_scale, v_ring, k_sink, slots,
        runs, scales, sinks, size, time_pairs, eps,
        RUN: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        run, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
        frame, in_frame = run // runs, run % runs
        slot = tl.load(slots + frame)
        home = slot * runs + in_frame
        in_ring = home * RUN * size
        qkv += run * RUN * 3 * size + part * size
        token = tl.arange(0, RUN)[:, None]
        if part == 2:
            channel = tl.arange(0, BLOCK)
            live = channel < size
            if v_ring is not None:
                v = tl.load(qkv + token * 3 * size + channel, mask=live)
                tl.store(v_ring + in_ring + token * size + channel, v, mask=live)
        else:
            of_row = in_frame * RUN + tl.arange(0, HEADS * RUN)[:, None] % RUN
            cos, sin = load_rotation(rope_time, rope_space, frame, of_row, time_pairs, PAIRS, 2 * PAIRS)
            if part == 0:
                _store_int8(
                    qkv, q_gain, cos, sin, k_offset, k_sink, False, q + run * RUN * size,
                    q_scale + run * RUN, tl.num_programs(0) * RUN, size, eps, RUN, HEADS, 2 * PAIRS, BLOCK, KEYS=False,
                )  # fmt: skip
            else:
                _store_int8(
                    qkv, k_gain, cos, sin, k_offset, k_sink + in_ring, slot < sinks, k_ring + in_ring,
                    k_scale + home, scales, size, eps, RUN, HEADS, 2 * PAIRS, BLOCK, KEYS=True,
                )  # fmt: skip

    @qk_norm_rope_store.impl("triton", when=on_gpu)
    def _triton(qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots, eps) -> Tensor:
        _check(qkv, q_gain, k_gain, rope_time, rope_space, k_ring, v_ring, k_sink, slots)
        _, tokens, heads, head_dim = k_ring.shape
        size = heads * head_dim
        q = qkv.new_empty(qkv.shape[0], heads, head_dim)
        with torch.cuda.device_of(qkv):
            _kernel[(qkv.shape[0],)](
                qkv, q_gain, k_gain, rope_time, rope_space, q, k_ring, v_ring, k_sink, slots, tokens, k_sink.shape[0],
                size, rope_time.shape[1], eps, PAIRS=head_dim // 2, BLOCK=triton.next_power_of_2(size),
            )  # fmt: skip
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
        _, tokens, heads, head_dim = k_ring.shape
        size, runs = heads * head_dim, tokens // KEY_RUN
        q = k_ring.new_empty(qkv.shape[0], heads, head_dim)
        q_scale = k_scale.new_empty(heads, qkv.shape[0])
        if runs == 0:
            return q, q_scale
        with torch.cuda.device_of(qkv):
            # Not fused: the product is rounded before it is rounded to an integer.
            _kernel_int8[(qkv.shape[0] // KEY_RUN, 2 if v_ring is None else 3)](
                qkv, q_gain, k_gain, rope_time, rope_space, k_offset, q, q_scale, k_ring, k_scale, v_ring, k_sink,
                slots, runs, k_scale.shape[1], k_sink.shape[0], size, rope_time.shape[1], eps,
                RUN=KEY_RUN, HEADS=math.gcd(heads, HEADS_AT_ONCE), PAIRS=head_dim // 2,
                BLOCK=triton.next_power_of_2(size), enable_fp_fusion=False,
            )  # fmt: skip
        return q, q_scale
