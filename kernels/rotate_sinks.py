"""rotate_sinks: the un-rotated keys of the sink frames, rotated to where they stand now, written into the ring."""

import torch
from torch import Tensor

from . import native
from .checks import expect, expect_float, on_gpu
from .quantize import quantize_runs
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

    As in ``rotate_sinks``, but k_ring [L, R, S, H, hd] is int8; k_scale [L, H, R * S] and k_offset [L, H, hd] are
    float32. The rotated key minus its head's offset is mixed and quantised from float32; of k_scale, only the sinks'
    tokens are written. Raises ValueError naming the argument that does not fit.
    """
    _check_int8(k_sink, rope_time, rope_space, k_offset, k_ring, k_scale)
    for layer in range(k_sink.shape[0]):
        keys = rotate(k_sink[layer], rope_time, rope_space)
        values, scale = quantize_keys(keys, k_offset[layer])
        k_ring[layer, : k_sink.shape[1]] = values
        k_scale[layer, :, : scale[0].numel()] = scale.flatten(1)


def quantize_keys(keys: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [F, S, H, hd] minus offset [H, hd], mixed, as int8, and their scales [H, F, S]."""
    frames, tokens, heads, _ = keys.shape
    values, scale = quantize_runs(mix(keys - offset).flatten(0, 1).flatten(1), heads)
    return values.view(keys.shape), scale.view(heads, frames, tokens)


def mix(x: Tensor) -> Tensor:
    """x [.., hd] times a Hadamard matrix of n channels over sqrt(n), n the largest power of two that divides hd.

    Element i of a run of n channels becomes ``sum_j (-1)^popcount(i & j) x_j / sqrt(n)``: large channels are spread
    over all, and products of two vectors, both mixed, are as before. Source: QuaRot, arXiv 2404.00456.
    """
    shape = x.shape
    size = shape[-1] & -shape[-1]
    step = 1
    while step < size:
        a, b = x.reshape(*shape[:-1], shape[-1] // (2 * step), 2, step).unbind(-2)
        x = torch.stack((a + b, a - b), dim=-2)
        step *= 2
    return x.reshape(shape) * size**-0.5


def _check_int8(k_sink, rope_time, rope_space, k_offset, k_ring, k_scale) -> None:
    _check(k_sink, rope_time, rope_space, k_ring, torch.int8)
    layers, _, tokens, heads, head_dim = k_sink.shape
    expect("k_offset", k_offset, (layers, heads, head_dim), torch.float32, k_sink.device)
    expect("k_scale", k_scale, (layers, heads, k_ring.shape[1] * tokens), torch.float32, k_sink.device)


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


def whole_warps(x: Tensor) -> bool:
    """Whether 16 bytes of x for each of a warp's 32 lanes are whole heads, whose channels the lanes exchange."""
    return x.dtype == torch.float32 or x.shape[-2] % 2 == 0


@rotate_sinks_int8.impl("cuda", when=_fits_cuda_int8)
def _cuda_int8(k_sink, rope_time, rope_space, k_offset, k_ring, k_scale) -> None:
    torch.ops.longlive_C.rotate_sinks_int8(k_sink, rope_time, rope_space, k_offset, k_ring, k_scale)


if triton:
    from .quantize import inverse_of, largest, rounded

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
    def rotated(z, cos, sin, BLOCK: tl.constexpr):
        re, im = tl.split(tl.reshape(z, (BLOCK // 2, 2)))
        return tl.interleave(re * cos - im * sin, re * sin + im * cos)

    @triton.jit
    def store_heads(x, out, scale, scale_of_head, size, DIM: tl.constexpr, BLOCK: tl.constexpr):
        """A token's heads, mixed, as int8 at ``out``; their scales at ``scale``, ``scale_of_head`` from one another."""
        mixed = x
        for _ in tl.static_range(DIM.bit_length() - 1):  # pyright: ignore[reportAttributeAccessIssue, reportGeneralTypeIssues]
            # One bit of a channel's number, the lowest, whose place the next one takes: after all they are in order.
            a, b = tl.split(tl.reshape(mixed, (BLOCK // DIM, DIM // 2, 2)))
            mixed = tl.permute(tl.join(a + b, a - b), (0, 2, 1))
        heads = tl.reshape(mixed, (BLOCK // DIM, DIM)) * (DIM**-0.5)
        head, channel = tl.arange(0, BLOCK // DIM), tl.arange(0, DIM)
        live = head * DIM < size
        amax = largest(heads, 1)
        values = rounded(heads * inverse_of(amax)[:, None])
        tl.store(out + head[:, None] * DIM + channel, values, mask=live[:, None])
        tl.store(scale + head.to(tl.int64) * scale_of_head, tl.div_rn(amax, 127.0), mask=live)

    # Not specialised: a stream whose window grows must not wait for a compiler.
    @triton.jit(do_not_specialize=["ring_tokens"])
    def _kernel(
        k_sink, rope_time, rope_space, k_offset, k_ring, k_scale, sink_tokens, ring_tokens, tokens, size, time_pairs,
        PAIRS: tl.constexpr, BLOCK: tl.constexpr, INT8: tl.constexpr,
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
        key = rotated(z, cos, sin, BLOCK)
        if INT8:
            key -= tl.load(k_offset + layer * size + channel, mask=live, other=0.0)
            home_scale = k_scale + layer * (size // (2 * PAIRS)) * ring_tokens + in_layer
            store_heads(key, home, home_scale, ring_tokens, size, 2 * PAIRS, BLOCK)
        else:
            tl.store(home + channel, key, mask=live)

    @rotate_sinks.impl("triton", when=on_gpu)
    def _triton(k_sink: Tensor, rope_time: Tensor, rope_space: Tensor, k_ring: Tensor) -> None:
        _check(k_sink, rope_time, rope_space, k_ring)
        _launch(k_sink, rope_time, rope_space, None, k_ring, None)

    def _fits_triton_int8(k_sink: Tensor, *rest) -> bool:
        return on_gpu(k_sink) and k_sink.shape[-1].bit_count() == 1

    @rotate_sinks_int8.impl("triton", when=_fits_triton_int8)
    def _triton_int8(k_sink, rope_time, rope_space, k_offset, k_ring, k_scale) -> None:
        _check_int8(k_sink, rope_time, rope_space, k_offset, k_ring, k_scale)
        _launch(k_sink, rope_time, rope_space, k_offset, k_ring, k_scale)

    def _launch(k_sink, rope_time, rope_space, k_offset: Tensor | None, k_ring, k_scale: Tensor | None) -> None:
        layers, sinks, tokens, heads, head_dim = k_sink.shape
        size, rows = heads * head_dim, layers * sinks * tokens
        if rows == 0:
            return
        with torch.cuda.device_of(k_sink):
            # Not fused where it ends in integers: the product is rounded before it is rounded to one.
            _kernel[(rows,)](
                k_sink, rope_time, rope_space, k_offset, k_ring, k_scale, sinks * tokens, k_ring.shape[1] * tokens,
                tokens, size, rope_time.shape[1], PAIRS=head_dim // 2, BLOCK=triton.next_power_of_2(size),
                INT8=k_scale is not None, enable_fp_fusion=k_scale is None,
            )  # fmt: skip
