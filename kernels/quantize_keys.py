"""quantize_keys: rotated keys as int8 into a ring, with one scale for the same head of KEY_RUN tokens in a row."""

import torch
from torch import Tensor

from . import native
from .checks import expect, expect_float, on_gpu
from .quantize import quantize_groups
from .registry import op
from .triton_import import tl, triton

KEY_RUN = 8  # tokens that share a scale: the products of as many keys lie side by side where attention scales them


@op(mutates=("k_ring", "k_scale"))
def quantize_keys(k: Tensor, k_offset: Tensor, k_ring: Tensor, k_scale: Tensor, slots: Tensor) -> None:
    """Write rotated keys into a ring of int8: ``k_ring[slots[f]] = rint(mix(k[f] - k_offset) / scale)``.

    F frames of S tokens, S a multiple of 8; H heads of hd channels; a ring of R frames:

    - k [F, S, H, hd]: bfloat16, float32 or float64.
    - k_offset [H, hd], float32: what is taken from every key first. The softmax of attention does not see it: it adds
      the same to all scores of a query. A Hadamard matrix then mixes the channels of each head (``mix``), as those of
      the queries, which leaves their products alone. Both serve to make keys even.
    - k_ring [R, S, H, hd], int8: frame f is written to slot slots[f]; nothing else is touched.
    - k_scale [H, G], float32, G at least R * S / 8: ``k_scale[h, g]`` is of head h of tokens 8g to 8g + 7, counted over
      all slots of the ring; only those of the written frames are written.
    - slots [F], int64, on the same device; distinct and in [0, R): not checked, that would wait for the device.

    The arithmetic is ``quantize``'s, of 8 tokens' channels of a head as one run: scale = amax / 127 and values =
    rint(x * (127 / amax)) in float32; zeros have scale 0. A NaN or an infinity shows in the scale of its run, whose
    values then mean nothing, and in no other. Raises ValueError naming the argument that does not fit.
    """
    _check(k, k_offset, k_ring, k_scale, slots)
    store_keys(k, k_offset, k_ring, k_scale, slots)


def store_keys(k: Tensor, k_offset: Tensor, k_ring: Tensor, k_scale: Tensor, slots: Tensor) -> None:
    """The arithmetic of ``quantize_keys``, for operators that end in it."""
    values, scale = as_int8(k, k_offset)
    k_ring.index_copy_(0, slots, values)
    _scales_by_slot(k_scale, k_ring).index_copy_(1, slots, scale)


def dequantize_keys(k_ring: Tensor, k_scale: Tensor, k_offset: Tensor, dtype: torch.dtype) -> Tensor:
    """The keys that a ring of int8 stands for, [R, S, H, hd] of ``dtype``; arguments as in ``quantize_keys``.

    Its inverse, but for the rounding: a mixed channel is off by half its scale at most. Computed in float32 or wider,
    rounded once. Raises ValueError naming the argument that does not fit.
    """
    expect("k_ring", k_ring, (None,) * 4, torch.int8, k_ring.device)
    expect_int8_keys(k_ring, k_scale, k_offset)
    tokens = k_ring.shape[1]
    scale = _scales_by_slot(k_scale, k_ring).to(torch.promote_types(dtype, torch.float32)).permute(1, 2, 0)
    runs = k_ring.unflatten(1, (tokens // KEY_RUN, KEY_RUN)) * scale[:, :, None, :, None]
    return (mix(runs.flatten(1, 2)) + k_offset).to(dtype)


def _scales_by_slot(k_scale: Tensor, k_ring: Tensor) -> Tensor:
    """k_scale [H, G] of k_ring [R, S, H, hd] as [H, R, S / 8], a view."""
    slots, tokens = k_ring.shape[:2]
    return k_scale[:, : slots * tokens // KEY_RUN].unflatten(1, (slots, -1))


def as_int8(keys: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [F, S, H, hd] minus offset [H, hd], mixed, as int8, and their scales [H, F, S / 8]."""
    frames, tokens, heads, head_dim = keys.shape
    wide = keys.to(torch.promote_types(keys.dtype, torch.float32))
    runs = mix(wide - offset).view(frames * tokens // KEY_RUN, KEY_RUN, heads, head_dim).transpose(1, 2)
    values, scale = quantize_groups(runs.flatten(1), heads)
    return values.view(runs.shape).transpose(1, 2).reshape(keys.shape), scale.view(heads, frames, tokens // KEY_RUN)


def mix(x: Tensor) -> Tensor:
    """x [.., hd] times a Hadamard matrix of n channels over sqrt(n), n the largest power of two that divides hd.

    Element i of a run of n channels becomes ``sum_j (-1)^popcount(i & j) x_j / sqrt(n)``: large channels are spread
    over all, and products of two vectors, both mixed, are as before. Mixed twice, x is itself. Source: QuaRot, arXiv
    2404.00456.
    """
    shape = x.shape
    size = shape[-1] & -shape[-1]
    step = 1
    while step < size:
        a, b = x.reshape(*shape[:-1], shape[-1] // (2 * step), 2, step).unbind(-2)
        x = torch.stack((a + b, a - b), dim=-2)
        step *= 2
    return x.reshape(shape) * size**-0.5


def expect_int8_keys(k_ring: Tensor, k_scale: Tensor, k_offset: Tensor) -> None:
    """Raise ValueError unless k_scale and k_offset fit k_ring [.., R, S, H, hd], which may have layers in front."""
    *layers, _, _, heads, head_dim = k_ring.shape
    expect("k_offset", k_offset, (*layers, heads, head_dim), torch.float32, k_ring.device)
    expect_key_scales(k_ring, k_scale)


def expect_key_scales(k_ring: Tensor, k_scale: Tensor) -> None:
    """Raise ValueError unless k_scale [.., H, G] has room for the scales of k_ring [.., R, S, H, hd]."""
    *layers, ring, tokens, heads, _ = k_ring.shape
    if tokens % KEY_RUN:
        raise ValueError(f"k_ring must have a multiple of {KEY_RUN} tokens a frame, got {tokens}")
    expect("k_scale", k_scale, (*layers, heads, None), torch.float32, k_ring.device)
    runs = ring * tokens // KEY_RUN
    if k_scale.shape[-1] < runs:
        raise ValueError(f"k_scale must have at least {runs} scales a head, got {k_scale.shape[-1]}")


def whole_warps(x: Tensor) -> bool:
    """Whether 16 bytes of x for each of a warp's 32 lanes are whole heads, whose channels the lanes exchange."""
    return x.dtype == torch.float32 or x.shape[-2] % 2 == 0


def _check(k: Tensor, k_offset: Tensor, k_ring: Tensor, k_scale: Tensor, slots: Tensor) -> None:
    expect_float("k", k)
    expect("k", k, (None,) * 4, k.dtype, k.device)
    frames, tokens, heads, head_dim = k.shape
    expect("k_ring", k_ring, (None, tokens, heads, head_dim), torch.int8, k.device)
    expect_int8_keys(k_ring, k_scale, k_offset)
    expect("slots", slots, (frames,), torch.int64, k.device)
    if frames > k_ring.shape[0]:
        raise ValueError(f"k must have at most k_ring's {k_ring.shape[0]} frames, got {frames}")


def _fits_cuda(k: Tensor, k_offset: Tensor, k_ring: Tensor, k_scale: Tensor, slots: Tensor) -> bool:
    return (
        native.takes(k)
        and k.dim() == 4
        and k.shape[3] == 128
        and k.shape[2] <= 12
        and whole_warps(k)
        and all(t.data_ptr() % 16 == 0 for t in (k, k_offset, k_ring))
    )


@quantize_keys.impl("cuda", when=_fits_cuda)
def _cuda(k: Tensor, k_offset: Tensor, k_ring: Tensor, k_scale: Tensor, slots: Tensor) -> None:
    torch.ops.longlive_C.quantize_keys(k, k_offset, k_ring, k_scale, slots)


if triton:
    from .quantize import inverse_of, largest, rounded

    @triton.jit
    def store_heads(
        x, out, size, scale, scale_of_head, RUN: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
        SHARED: tl.constexpr,
    ):  # fmt: skip
        """x [HEADS * RUN, DIM], heads of tokens in a row, mixed, as int8 at ``out``, where tokens are ``size`` apart.

        A head's scales in a row at ``scale``, or the one that they share; those of the next ``scale_of_head`` further.
        """
        for _ in tl.static_range(DIM.bit_length() - 1):  # pyright: ignore[reportAttributeAccessIssue, reportGeneralTypeIssues]
            # One bit of a channel's number, the lowest, whose place the next one takes: after all they are in order.
            a, b = tl.split(tl.reshape(x, (HEADS * RUN, DIM // 2, 2)))
            x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), (HEADS * RUN, DIM))
        x *= DIM**-0.5
        row, channel = tl.arange(0, HEADS * RUN), tl.arange(0, DIM)
        head, token = row // RUN, row % RUN
        amax = largest(x, 1)
        if SHARED:
            shared = largest(tl.reshape(amax, (HEADS, RUN)), 1)
            tl.store(scale + tl.arange(0, HEADS) * scale_of_head, tl.div_rn(shared, 127.0))
            amax = tl.reshape(tl.broadcast_to(shared[:, None], (HEADS, RUN)), (HEADS * RUN,))
        else:
            tl.store(scale + head * scale_of_head + token, tl.div_rn(amax, 127.0))
        here = token[:, None] * size + head[:, None] * DIM + channel
        tl.store(out + here, rounded(x * inverse_of(amax)[:, None]))

    # Not specialised: a stream whose window grows must not wait for a compiler.
    @triton.jit(do_not_specialize=["scales"])
    def _kernel(k, k_offset, k_ring, k_scale, slots, runs, scales, size, RUN: tl.constexpr, DIM: tl.constexpr):
        run, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
        home = tl.load(slots + run // runs) * runs + run % runs
        token, channel = tl.arange(0, RUN)[:, None], head * DIM + tl.arange(0, DIM)
        key = tl.load(k + (run * RUN + token) * size + channel).to(tl.float32) - tl.load(k_offset + channel)
        out, scale = k_ring + home * RUN * size + head * DIM, k_scale + head.to(tl.int64) * scales + home
        store_heads(key, out, size, scale, 0, RUN, 1, DIM, SHARED=True)

    def fits_triton(k: Tensor, *rest) -> bool:
        """Whether ``store_head`` takes the heads of k [.., hd], an operator's first argument."""
        return on_gpu(k) and k.shape[-1].bit_count() == 1

    @quantize_keys.impl("triton", when=fits_triton)
    def _triton(k: Tensor, k_offset: Tensor, k_ring: Tensor, k_scale: Tensor, slots: Tensor) -> None:
        _check(k, k_offset, k_ring, k_scale, slots)
        frames, tokens, heads, head_dim = k.shape
        runs = tokens // KEY_RUN
        if frames * runs == 0:
            return
        with torch.cuda.device_of(k):
            # Not fused: the product is rounded before it is rounded to an integer. One warp: it mixes without barriers.
            _kernel[(frames * runs, heads)](
                k, k_offset, k_ring, k_scale, slots, runs, k_scale.shape[1], heads * head_dim,
                RUN=KEY_RUN, DIM=head_dim, num_warps=1, enable_fp_fusion=False,
            )  # fmt: skip
