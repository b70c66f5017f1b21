"""conv_pixels: the convolution that ends the video autoencoder, from grouped channels to pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .causal_conv import GROUP, PIXEL, Kind, _check_indices, _convolve, _padded, _read, _unstream, pack
from .checks import expect, expect_float, on_gpu
from .registry import op
from .triton_import import tl, triton


def pack_pixels(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` [3, Ci, 3, 3, 3] and ``bias`` [3], padded, as ``conv_pixels`` takes them."""
    expect("weight", weight, (3, None, 3, 3, 3), weight.dtype, weight.device, dense_from=1)
    expect("bias", bias, (3,), bias.dtype, weight.device)
    rows = F.pad(weight, (0, 0) * 4 + (0, PIXEL - 3))
    wide = torch.promote_types(weight.dtype, torch.float32)
    return pack(Kind.CAUSAL, rows), F.pad(bias, (0, PIXEL - 3)).to(wide)


@op(mutates=("out",))
def conv_pixels(x: Tensor, frames: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """The causal 3x3x3 convolution of x into pictures, ``out`` [T, H, W, 3].

    x [S, Ci / 8, H, W, 8] and frames [2 + T] are ``causal_conv``'s; weight and bias come from ``pack_pixels``. ``out``
    is contiguous, of x's dtype, or uint8: trunc(255 clamp(y / 2 + 1/2, 0, 1)) of y rounded to x's dtype.
    Raises ValueError naming the argument that does not fit.
    """
    _check(x, frames, weight, bias, out)
    wide = torch.promote_types(x.dtype, torch.float32)
    taps = _unstream(weight.to(wide), x.shape[1] * GROUP, 3, 9, PIXEL)
    y = (
        (_convolve(_read(x, frames, wide), taps, Kind.CAUSAL) + bias.view(1, -1, 1, 1))[:, :3]
        .movedim(1, -1)
        .to(x.dtype)
    )
    if out.dtype == torch.uint8:
        y = y.to(wide).mul(0.5).add_(0.5).clamp_(0, 1).mul_(255)
    out.copy_(y)


def _check(x: Tensor, frames: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    expect_float("x", x)
    expect("x", x, (None, None, None, None, GROUP), x.dtype, x.device)
    _check_indices("frames", frames, x.device)
    if len(frames) < 3:
        raise ValueError(f"frames must have at least 3 indices, got {len(frames)}")
    expect("weight", weight, (1, _padded(x) * 27 * PIXEL), x.dtype, x.device)
    expect("bias", bias, (PIXEL,), torch.promote_types(x.dtype, torch.float32), x.device)
    dtype = out.dtype if out.dtype == torch.uint8 else x.dtype
    expect("out", out, (len(frames) - 2, *x.shape[2:4], 3), dtype, x.device)


@conv_pixels.impl("cuda", when=lambda x, *rest: x.dtype == torch.bfloat16 and native.on_hopper(x))
def _cuda(x, frames, weight, bias, out) -> None:
    torch.ops.longlive_C.conv_pixels(x, frames, weight, bias, out)


if triton:
    from .causal_conv_triton import Tile, accumulate, counts_in_int32, shared_memory, static

    _NUMBERS = ["height", "columns", "count", "groups"]

    # Not specialised: what varies with the picture, or with where the list begins, must not wait for a compiler in the
    # middle of a stream.
    @triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=["frames"])
    def _kernel(
        x, frames, weight, bias, out, height, columns, count, groups,
        SLICES: tl.constexpr, SIDE: tl.constexpr, GROUP: tl.constexpr, PIXELS: tl.constexpr, FIRST: tl.constexpr,
        REST: tl.constexpr, STEP: tl.constexpr, EVEN: tl.constexpr, RAGGED: tl.constexpr, WIDE: tl.constexpr,
        WEIGHT_CUBES: tl.constexpr,
    ):  # fmt: skip
        t, tile = tl.program_id(0) % count, tl.program_id(0) // count
        pixel, channel = tile * PIXELS + tl.arange(0, PIXELS), tl.arange(0, FIRST)
        before, middle, last = tl.load(frames + t), tl.load(frames + t + 1), tl.load(frames + t + 2)
        live = channel < FIRST
        y, _ = accumulate(
            tl.zeros((PIXELS, FIRST), tl.float32), 0.0, x, groups, before, middle, last, weight, channel, channel, live,
            live, FIRST, pixel, height, columns, -1, -1,
            SLICES, SIDE, REST, GROUP, STEP, EVEN, RAGGED, WIDE, WEIGHT_CUBES,
        )  # fmt: skip
        y = (y + tl.load(bias + channel)[None]).to(x.dtype.element_ty)
        area = height * columns
        to = out + t.to(tl.int64) * (3 * area) + pixel[:, None] * 3 + channel[None]
        mask = (pixel < area)[:, None] & (channel < 3)[None]
        if out.dtype.element_ty == tl.uint8:
            shade = tl.clamp(y.to(tl.float32) * 0.5 + 0.5, 0.0, 1.0) * 255
            tl.store(to, shade.to(tl.uint8), mask=mask)
        else:
            tl.store(to, y, mask=mask)

    @conv_pixels.impl("triton", when=lambda x, *rest: on_gpu(x) and counts_in_int32(PIXEL, x))
    def _triton(x: Tensor, frames: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
        _check(x, frames, weight, bias, out)
        height, columns = x.shape[2:4]
        tile = Tile.of(PIXEL, x.element_size(), False, shared_memory(x.device))
        programs = len(out) * triton.cdiv(height * columns, tile.PIXELS)
        if programs == 0:
            return
        with torch.cuda.device_of(x):
            _kernel[(programs,)](
                x, frames, weight, bias, out, height, columns, len(out), x.shape[1],
                **static(Kind.CAUSAL, x, tile),
                num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
