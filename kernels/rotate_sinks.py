"""rotate_sinks: the un-rotated keys of the sink frames, rotated to where they stand now, written into the ring."""

import torch
from torch import Tensor

from . import native
from .checks import expect, expect_float, on_gpu
from .quantize_keys import KEY_RUN, expect_int8_keys, store_keys, whole_warps
from .registry import op
from .triton_import import tl, triton


def rotate(x: Tensor, rope_time: Tensor, rope_space: Tensor) -> Tensor:
    """Rotate interleaved pairs of x [F, S, H, hd] by frame (the first pairs) and by token; in the tables' dtype."""
    frames, tokens = x.shape[:2]
    rotation = torch.cat(
        (rope_time[:, None].expand(-1, tokens, -1, -1), rope_space[None].expand(frames, -1, -1, -1)), dim=2
    )
    pairs = torch.view_as_complex(x.to(rotation.dtype).unflatten(-1, (-1, 2)))  # [F, S, H, hd / 2]
    return torch.view_as_real(pairs * torch.view_as_complex(rotation)[:, :, None]).flatten(-2)


@op(mutates=("k_ring",))
def rotate_sinks(k_sink: Tensor, rope_time: Tensor, rope_space: Tensor, k_ring: Tensor) -> None:
    """k_ring[:, i] = rotate(k_sink[:, i]) for every layer and sink frame i; one rounding, at the store.

    k_sink [L, s, S, H, hd]; k_ring [L, R, S, H, hd] with R >= s; rope_time [s, Pt, 2] and rope_space [S, Ps, 2] hold
    (cos, sin), with Pt + Ps = hd / 2. Only slots 0..s-1 are written. Source: docs/model.md 3.6.
    Raises ValueError naming the argument that does not fit.
    """
    _check(k_sink, rope_time, rope_space, k_ring)
    for layer in range(k_sink.shape[0]):  # one layer at a time: the float32 copy of all of them would be large
        k_ring[layer, : k_sink.shape[1]] = rotate(k_sink[layer], rope_time, rope_space).to(k_ring.dtype)


@op(mutates=("k_ring", "k_scale"))
def rotate_sinks_int8(
    k_sink: Tensor, rope_time: Tensor, rope_space: Tensor, k_offset: Tensor, k_ring: Tensor, k_scale: Tensor
) -> None:
    """``rotate_sinks`` into a ring of int8: keys as ``qk_norm_rope_store_int8`` writes them.

    As in ``rotate_sinks``, but k_ring [L, R, S, H, hd] is int8, S a multiple of 8; k_scale [L, H, G] and
    k_offset [L, H, hd] are float32. Rotated keys are quantised from float32 as ``quantize_keys`` does it; of k_scale,
    only the sinks' are written. Raises ValueError naming the argument that does not fit.
    """
    _check_int8(k_sink, rope_time, rope_space, k_offset, k_ring, k_scale)
    slots = torch.arange(k_sink.shape[1], device=k_sink.device)
    for layer in range(k_sink.shape[0]):
        keys = rotate(k_sink[layer], rope_time, rope_space)
        store_keys(keys, k_offset[layer], k_ring[layer], k_scale[layer], slots)


def _check_int8(k_sink, rope_time, rope_space, k_offset, k_ring, k_scale) -> None:
    _check(k_sink, rope_time, rope_space, k_ring, torch.int8)
    expect_int8_keys(k_ring, k_scale, k_offset)


def _check(k_sink, rope_time, rope_space, k_ring, ring_dtype: torch.dtype | None = None) -> None:
    expect_float("k_sink", k_sink)
    dtype, device = k_sink.dtype, k_sink.device
    expect("k_sink", k_sink, (None,) * 5, dtype, device)
    layers, sinks, tokens, heads, head_dim = k_sink.shape
    expect("k_ring", k_ring, (layers, None, tokens, heads, head_dim), ring_dtype or dtype, device)
    if k_ring.shape[1] < sinks:
        raise ValueError(f"k_ring must have at least k_sink's {sinks} slots, got {k_ring.shape[1]}")
    table = torch.promote_types(dtype, torch.float32)
    expect("rope_time", rope_time, (sinks, None, 2), table, device)
    expect("rope_space", rope_space, (tokens, head_dim // 2 - rope_time.shape[1], 2), table, device)


def _fits_cuda(k_sink: Tensor, rope_time: Tensor, rope_space: Tensor, k_ring: Tensor) -> bool:
    return (
        native.takes(k_sink)
        and k_sink.dim() == 5
        and k_sink.shape[4] == 128
        and k_sink.shape[3] <= 12
        and all(t.data_ptr() % 16 == 0 for t in (k_sink, k_ring))
    )


@rotate_sinks.impl("cuda", when=_fits_cuda)
def _cuda(k_sink: Tensor, rope_time: Tensor, rope_space: Tensor, k_ring: Tensor) -> None:
    torch.ops.longlive_C.rotate_sinks(k_sink, rope_time, rope_space, k_ring)


def _fits_cuda_int8(k_sink, rope_time, rope_space, k_offset, k_ring, k_scale) -> bool:
    fits = _fits_cuda(k_sink, rope_time, rope_space, k_ring) and k_offset.data_ptr() % 16 == 0
    return fits and whole_warps(k_sink)


@rotate_sinks_int8.impl("cuda", when=_fits_cuda_int8)
def _cuda_int8(k_sink, rope_time, rope_space, k_offset, k_ring, k_scale) -> None:
    torch.ops.longlive_C.rotate_sinks_int8(k_sink, rope_time, rope_space, k_offset, k_ring, k_scale)


if triton:
    from .quantize_keys import fits_triton, store_heads

    @triton.jit
    def load_rotation(rope_time, rope_space, frame, in_frame, time_pairs, PAIRS: tl.constexpr, BLOCK: tl.constexpr):
        """cos and sin of the BLOCK // 2 pairs of a token: head after head, PAIRS to a head."""
        pair = tl.arange(0, BLOCK // 2) % PAIRS
        timed = pair < time_pairs
        at = tl.where(timed, frame * time_pairs + pair, in_frame * (PAIRS - time_pairs) + pair - time_pairs) * 2
        cos = tl.load(rope_time + at, mask=timed, other=0.0) + tl.load(rope_space + at, mask=~timed, other=0.0)
        at += 1
        sin = tl.load(rope_time + at, mask=timed, other=0.0) + tl.load(rope_space + at, mask=~timed, other=0.0)
        return cos, sin

    @triton.jit
    def rotated(z, cos, sin):
        """z [.., n] in pairs, by cos and sin [.., n / 2]."""
        re, im = tl.split(tl.reshape(z, cos.shape + [2]))  # noqa: RUF005  Triton has no unpacking
        return tl.interleave(re * cos - im * sin, re * sin + im * cos)

    # Not specialised: a stream whose window grows must not wait for a compiler.
    @triton.jit(do_not_specialize=["ring_tokens"])
    def _kernel(
        k_sink, rope_time, rope_space, k_ring, sink_tokens, ring_tokens, tokens, size, time_pairs,
        PAIRS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        layer = row // sink_tokens
        in_layer = row % sink_tokens
        cos, sin = load_rotation(rope_time, rope_space, in_layer // tokens, in_layer % tokens, time_pairs, PAIRS, BLOCK)
        channel = tl.arange(0, BLOCK)
        live = channel < size
        z = tl.load(k_sink + row * size + channel, mask=live, other=0.0).to(tl.float32)
        # Precision: float32, rounded once by the store.
        home = k_ring + (layer * ring_tokens + in_layer) * size
        tl.store(home + channel, rotated(z, cos, sin), mask=live)

    @triton.jit(do_not_specialize=["ring_runs", "scales"])
    def _kernel_int8(
        k_sink, rope_time, rope_space, k_offset, k_ring, k_scale, sink_runs, ring_runs, scales, runs, size, time_pairs,
        RUN: tl.constexpr, PAIRS: tl.constexpr,
    ):  # fmt: skip
        run, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
        DIM: tl.constexpr = 2 * PAIRS
        layer, in_layer = run // sink_runs, run % sink_runs
        token, channel = tl.arange(0, RUN)[:, None], head * DIM + tl.arange(0, DIM)
        in_frame = in_layer % runs * RUN + token
        cos, sin = load_rotation(rope_time, rope_space, in_layer // runs, in_frame, time_pairs, PAIRS, DIM)
        z = tl.load(k_sink + (run * RUN + token) * size + channel).to(tl.float32)
        key = rotated(z, cos, sin) - tl.load(k_offset + layer * size + channel)
        out = k_ring + (layer * ring_runs + in_layer) * RUN * size + head * DIM
        scale = k_scale + (layer * (size // DIM) + head) * scales + in_layer
        store_heads(key, out, size, scale, 0, RUN, 1, DIM, SHARED=True)

    @rotate_sinks.impl("triton", when=on_gpu)
    def _triton(k_sink: Tensor, rope_time: Tensor, rope_space: Tensor, k_ring: Tensor) -> None:
        _check(k_sink, rope_time, rope_space, k_ring)
        layers, sinks, tokens, heads, head_dim = k_sink.shape
        size, rows = heads * head_dim, layers * sinks * tokens
        if rows == 0:
            return
        with torch.cuda.device_of(k_sink):
            _kernel[(rows,)](
                k_sink, rope_time, rope_space, k_ring, sinks * tokens, k_ring.shape[1] * tokens, tokens, size,
                rope_time.shape[1], PAIRS=head_dim // 2, BLOCK=triton.next_power_of_2(size),
            )  # fmt: skip

    @rotate_sinks_int8.impl("triton", when=fits_triton)
    def _triton_int8(k_sink, rope_time, rope_space, k_offset, k_ring, k_scale) -> None:
        _check_int8(k_sink, rope_time, rope_space, k_offset, k_ring, k_scale)
        layers, sinks, tokens, heads, head_dim = k_sink.shape
        runs = tokens // KEY_RUN
        if layers * sinks * runs == 0:
            return
        with torch.cuda.device_of(k_sink):
            # Not fused: the product is rounded before it is rounded to an integer. One warp: it mixes without barriers.
            _kernel_int8[(layers * sinks * runs, heads)](
                k_sink, rope_time, rope_space, k_offset, k_ring, k_scale, sinks * runs, k_ring.shape[1] * runs,
                k_scale.shape[2], runs, heads * head_dim, rope_time.shape[1], RUN=KEY_RUN, PAIRS=head_dim // 2,
                num_warps=1, enable_fp_fusion=False,
            )  # fmt: skip
