"""int8_block_linear: a product with a weight in int8 whose scales are those of blocks of 32 columns of a row."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import expect, on_gpu
from .quantize import LARGEST, SMALLEST
from .registry import op
from .triton_import import INTERPRETED, tl, triton

BLOCK = 32  # columns of a row that share a scale
_ROWS = 512  # of a weight that are expanded at a time: of 4096 columns 8 MiB in float32, which a cache holds


def quantize_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [M, K] of floats as (values [M, K] int8, scale [K / 32, M] bfloat16).

    ``scale = bfloat16(amax / 127)`` of a block's largest magnitude amax, and ``values = rint(w / scale)`` in float32,
    at most 127 in magnitude. A block with amax < 2^-100 has scale 0 and values 0; one with NaN or infinity has a scale
    that is not finite. Raises ValueError unless K is a multiple of 32.

    A scale in bfloat16 costs no accuracy that can be seen: its own rounding moves a step by at most 2^-9, and the
    values are made for the rounded scale. Float16 is no better, and small weights fall out of its range.
    """
    if weight.dim() != 2 or weight.shape[1] % BLOCK:
        raise ValueError(f"weight must be [M, K], K a multiple of {BLOCK}, got {list(weight.shape)}")
    blocks = weight.float().reshape(len(weight), -1, BLOCK)
    low, high = blocks.aminmax(dim=-1)
    amax = torch.maximum(-low, high)
    amax = amax.where(~(amax < SMALLEST), 0)  # NaN stays
    steps = torch.full_like(amax, LARGEST)  # by a number a GPU multiplies by its reciprocal, which rounds twice
    scale = (amax / steps).bfloat16()
    wide = scale.float()
    values = (blocks / wide.where(wide != 0, 1)[..., None]).round_().clamp_(-LARGEST, LARGEST)
    return values.to(torch.int8).reshape(weight.shape), scale.T.contiguous()


def expand_blocks(values: Tensor, scale: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """``values[m, k] * scale[k // 32, m]``, rounded once to ``dtype``: [M, K], in ``out`` if that is given.

    The product of two numbers of at most 8 significant bits is exact in float32. Any strides will do.
    """
    plain = torch.empty(values.shape, dtype=dtype, device=values.device) if out is None else out
    # In place, each in one pass: an operator of mixed types would go through its elements one by one.
    plain.copy_(values).view(len(values), -1, BLOCK).mul_(scale.T.to(dtype)[..., None])
    return plain


def _fake(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    _check(x, weight, weight_scale)
    return x.new_empty(len(x), len(weight))


@op(fake=_fake)
def int8_block_linear(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """``out[n, m] = sum_k x[n, k] w[m, k]``, where w is ``weight[m, k] * weight_scale[k // 32, m]`` in x's dtype.

    - x [N, K], bfloat16, float32 or float64, K a multiple of 32.
    - weight [M, K] int8 and weight_scale [K / 32, M] bfloat16, as ``quantize_blocks`` returns them.

    All contiguous. w is rounded once to x's dtype. Sums are at least float32, rounded once. Returns [N, M] in x's
    dtype. Raises ValueError naming the argument that does not fit.

    The reference expands some rows of the weight at a time, into one buffer: no more of it is ever wide, and what a
    processor has just expanded it multiplies from its cache.
    """
    _check(x, weight, weight_scale)
    out, plain = x.new_empty(len(x), len(weight)), x.new_empty(min(_ROWS, len(weight)), x.shape[1])
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        part = expand_blocks(weight[rows], weight_scale[:, rows], x.dtype, plain[: len(weight) - start])
        out[:, rows] = F.linear(x, part)
    return out


def _check(x: Tensor, weight: Tensor, weight_scale: Tensor) -> None:
    if x.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"x must be bfloat16, float32 or float64, got {x.dtype}")
    expect("x", x, (None, None), x.dtype, x.device)
    if x.shape[1] % BLOCK or not x.shape[1]:
        raise ValueError(f"x must have a multiple of {BLOCK} columns, got {x.shape[1]}")
    expect("weight", weight, (None, x.shape[1]), torch.int8, x.device)
    expect("weight_scale", weight_scale, (x.shape[1] // BLOCK, len(weight)), torch.bfloat16, x.device)


if triton:
    # Not specialised: the length of a prompt must not wait for a compiler in the middle of a stream.
    @triton.jit(do_not_specialize=["rows"])
    def _kernel(
        x, weight, weight_scale, out, rows, depth, channels,
        ROWS: tl.constexpr, CHANNELS: tl.constexpr, STEP: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        step, block = tl.arange(0, STEP), tl.arange(0, STEP // 32)
        here, live = (row < rows)[:, None], (channel < channels)[:, None]
        a = weight + channel.to(tl.int64)[:, None] * depth + step[None]
        s = weight_scale + block.to(tl.int64)[None] * channels + channel[:, None]
        b = x + row.to(tl.int64)[:, None] * depth + step[None]
        # The weight is the left factor: a prompt has few rows, and tensor cores take the left one from registers.
        total = tl.zeros((CHANNELS, ROWS), tl.float32)
        for start in range(0, depth, STEP):
            inside = (start + step < depth)[None]
            values = tl.load(a + start, mask=live & inside, other=0).to(tl.float32)
            scale = tl.load(s, mask=live & (start + block * 32 < depth)[None], other=0.0).to(tl.float32)
            plain = tl.reshape(values, (CHANNELS, STEP // 32, 32)) * scale[:, :, None]
            plain = tl.reshape(plain, (CHANNELS, STEP)).to(x.dtype.element_ty)
            right = tl.load(b + start, mask=here & inside, other=0.0)
            if WIDE:
                total = tl.dot(plain.to(tl.float32), tl.trans(right.to(tl.float32)), total, input_precision="ieee")
            else:
                total = tl.dot(plain, tl.trans(right), total)
            s += STEP // 32 * channels
        at = out + row.to(tl.int64)[None] * channels + channel[:, None]
        tl.store(at, total.to(out.dtype.element_ty), mask=(row < rows)[None] & live)

    def launch_of(rows: int, wide: bool = False) -> dict[str, int]:
        """The kernel's constants and options for so many rows of x: a prompt of any length has one of four kernels."""
        tile = next((tile for tile in (16, 32, 64) if rows <= tile), 128)
        sizes = {"ROWS": tile, "CHANNELS": 32 if tile == 16 else 64, "STEP": 128 if tile == 16 and not wide else 64}
        sizes |= {"WIDE": wide or INTERPRETED}
        return sizes | {"num_warps": 8 if tile == 128 else 4, "num_stages": 2 if wide else 4}

    @int8_block_linear.impl("triton", when=on_gpu)
    def _triton(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
        _check(x, weight, weight_scale)
        rows, channels = len(x), len(weight)
        out = x.new_empty(rows, channels)
        if rows and channels:
            launch = launch_of(rows, x.dtype != torch.bfloat16)
            grid = triton.cdiv(channels, launch["CHANNELS"]), triton.cdiv(rows, launch["ROWS"])
            with torch.cuda.device_of(x):
                _kernel[grid](x, weight, weight_scale, out, rows, x.shape[1], channels, **launch)
        return out
