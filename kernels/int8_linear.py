"""int8_linear, int8_linear_gelu: products of int8 activations and int8 weights, whose integer sums are exact."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .checks import expect, is_cuda
from .quantize import expect_groups, quantize_groups
from .registry import op
from .triton_import import INTERPRETED, generation, tl, triton

PACK = 32  # rows of a weight that are permuted among themselves
_DEEPEST = (2**31 - 1) // 128**2  # columns whose products sum to an int32, whatever the values
_EXACT = 2**24 // 128**2  # columns whose products sum to a float32 without rounding
_BITS_EXACT = 2**22 // 128**2  # columns whose products sum to at most 2^22 in magnitude
STEP = 128  # columns that the CUDA kernel takes at a time: a group is a multiple
GELU_GROUP = 256  # channels that share a scale of GELU's result: a work tile's in CUDA, at most a program's in Triton


def pack(weight: Tensor) -> Tensor:
    """The rows of ``weight`` [M, K] in the order that the products read: its own inverse.

    Row ``32 b + 8 i + 2 t + j`` of the result is row ``32 b + 8 t + 2 i + j`` of ``weight``; i and t are 0 to 3, j is 0
    or 1. A tensor core leaves columns 8 i + 2 t + j of a product in thread t of a quad: of a packed weight these are
    consecutive channels, stored in one piece. Raises ValueError unless M is a multiple of 32.
    """
    if weight.dim() != 2 or weight.shape[0] % PACK:
        raise ValueError(f"weight must be [M, K], M a multiple of {PACK}, got {list(weight.shape)}")
    return weight.reshape(-1, 4, 4, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A plain weight [M, K] of floats as the products take it: (packed int8 [M, K], float32 scale of each row [M]).

    Raises ValueError unless M is a multiple of 32.
    """
    values, scale = quantize_groups(weight, 1)  # no kernel need be compiled for it
    return pack(values), scale[0]


def _fake(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    _check(x, x_scale, weight, weight_scale, bias)
    return bias.new_empty(x.shape[0], weight.shape[0])


@op(fake=_fake)
def int8_linear(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    """``(sum_g x_scale[g, n] * sum_{k in group g} x[n, k] w[m, k]) * weight_scale[m] + bias[m]``.

    - x [N, K] int8 and x_scale [G, N] float32, as ``quantize`` returns them: G equal groups of columns, each of at
      most 131071.
    - weight [M, K] int8, packed by ``pack``: w is the plain weight. M is a multiple of 32.
    - weight_scale [M] float32 and bias [M], bfloat16 or float32, in the plain order of channels.

    All contiguous. The integer sums are exact; the rest is float32, rounded once at the end. A scale that is not finite
    makes its row's results NaN or infinite. Returns [N, M] in bias's dtype. Raises ValueError naming the argument that
    does not fit.
    """
    _check(x, x_scale, weight, weight_scale, bias)
    return _linear(x, x_scale, weight, weight_scale, bias).to(bias.dtype)


def _fake_gelu(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    _check_gelu(x, x_scale, weight, weight_scale, bias, groups)
    rows = x.shape[0]
    return x.new_empty(rows, weight.shape[0]), x_scale.new_empty(groups, rows)


@op(fake=_fake_gelu)
def int8_linear_gelu(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """``quantize(GELU(int8_linear(...)), groups)`` without a rounding before the last; GELU by its tanh approximation.

    The arguments are those of ``int8_linear``; ``groups`` divides M evenly. Returns (values [N, M] int8, scale
    [groups, N] float32), as ``quantize`` does. Raises ValueError naming the argument that does not fit.
    """
    _check_gelu(x, x_scale, weight, weight_scale, bias, groups)
    return quantize_groups(F.gelu(_linear(x, x_scale, weight, weight_scale, bias), approximate="tanh"), groups)


def _linear(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    """[N, M] in float32."""
    groups, plain = len(x_scale), pack(weight)
    total = x_scale.new_zeros(x.shape[0], len(plain))
    for scale, a, b in zip(x_scale, x.chunk(groups, dim=1), plain.chunk(groups, dim=1), strict=True):
        total += scale[:, None] * _integer_product(a, b)
    return total * weight_scale + bias.float()


def _integer_product(a: Tensor, b: Tensor) -> Tensor:
    """``a b^T`` of int8 matrices: the exact sums, int32."""
    if a.is_cpu and len(a) and a.shape[1] > 1 and _int_mm_is_exact():  # of one column it returns something else
        return torch._int_mm(a, b.T)
    total = torch.zeros(len(a), len(b), dtype=torch.int32, device=a.device)
    for c, d in zip(a.split(_EXACT, dim=1), b.split(_EXACT, dim=1), strict=True):
        total += (c.float() @ d.float().T).int()
    return total


@functools.cache
def _int_mm_is_exact() -> bool:
    """Whether torch's integer product, seven times faster, can be used: without VNNI a CPU saturates sums of two."""
    ends = torch.tensor([127, -128], dtype=torch.int8, device="cpu").repeat_interleave(64).expand(64, 128).contiguous()
    try:
        return bool((torch._int_mm(ends, ends.T) == 64 * (127**2 + 128**2)).all())
    except (AttributeError, RuntimeError):
        return False


def expect_weight(weight: Tensor, weight_scale: Tensor, depth: int | None, device: torch.device) -> None:
    """Raise ValueError unless weight [M, depth] and weight_scale [M] are such as ``quantize_weight`` returns."""
    expect("weight", weight, (None, depth), torch.int8, device)
    if weight.shape[0] % PACK:
        raise ValueError(f"weight must have a multiple of {PACK} rows, got {weight.shape[0]}")
    expect("weight_scale", weight_scale, (weight.shape[0],), torch.float32, device)


def _check(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> None:
    expect("x", x, (None, None), torch.int8, x.device)
    expect("x_scale", x_scale, (None, x.shape[0]), torch.float32, x.device)
    groups, depth = x_scale.shape[0], x.shape[1]
    if groups < 1 or depth < 1 or depth % groups:
        raise ValueError(f"x_scale must have a row count that divides x's {depth} columns, got {groups}")
    if depth // groups > _DEEPEST:
        raise ValueError(f"x must have at most {_DEEPEST} columns for each row of x_scale, got {depth // groups}")
    expect_weight(weight, weight_scale, depth, x.device)
    if bias.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"bias must be bfloat16 or float32, got {bias.dtype}")
    expect("bias", bias, (weight.shape[0],), bias.dtype, x.device)


def _check_gelu(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, groups: int) -> None:
    _check(x, x_scale, weight, weight_scale, bias)
    expect_groups(groups, weight.shape[0], "rows of weight")


def _fits_cuda(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> bool:
    return (
        native.on_hopper(x)
        and bias.dtype == torch.bfloat16
        and x.dim() == x_scale.dim() == 2
        and len(x_scale) > 0
        and x.shape[1] % (STEP * len(x_scale)) == 0
        and all(t.is_contiguous() and t.data_ptr() % 16 == 0 for t in (x, weight, weight_scale, bias))
    )


@int8_linear.impl("cuda", when=_fits_cuda)
def _cuda(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    _check(x, x_scale, weight, weight_scale, bias)
    return torch.ops.longlive_C.int8_linear(x, x_scale, weight, weight_scale, bias)


def _fits_cuda_gelu(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, groups: int
) -> bool:
    fits = _fits_cuda(x, x_scale, weight, weight_scale, bias)
    return fits and len(x_scale) == 1 and len(weight) == GELU_GROUP * groups


@int8_linear_gelu.impl("cuda", when=_fits_cuda_gelu)
def _cuda_gelu(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    _check_gelu(x, x_scale, weight, weight_scale, bias, groups)
    # Precision: GELU in half precision, from the float32 sum; its scales are at least 2^-15.
    return torch.ops.longlive_C.int8_linear_gelu(x, x_scale, weight, weight_scale, bias, groups)


if triton:
    from triton.language.extra import libdevice
    from triton.tools.tensor_descriptor import TensorDescriptor

    from .quantize import inverse_of, largest, rounded

    _INTERPRETED = tl.constexpr(INTERPRETED)  # which knows no libdevice

    @triton.jit
    def packed_row(channel):
        """Where ``pack`` has put a channel's row."""
        return channel // 32 * 32 + channel // 2 % 4 * 8 + channel // 8 % 4 * 2 + channel % 2

    class _Tile(NamedTuple):
        """What a program computes, and how: BLOCK channels of ROWS rows, STEP columns of x at a time."""

        ROWS: int
        BLOCK: int
        STEP: int
        num_warps: int
        num_stages: int
        registers: int | None = None  # of a thread, at most
        bits: bool = False  # sums of a group become floats by their bits
        copied: bool = False  # the copy engine (TMA) brings x and weight

        @classmethod
        def of(
            cls, capability: tuple[int, int], channels: int, groups: int, depth: int, width: int | None, aligned: bool
        ) -> _Tile:
            """For x of so many groups of ``depth`` columns; programs of ``width`` channels, or, with None, of as many
            as is fast. ``aligned``: rows of x and weight begin at multiples of 16 bytes."""
            # Two programs a multiprocessor: one's products fill the other's waits. GELU's group takes a whole one.
            hopper = capability[0] == 9
            if hopper and aligned and (tile := cls._copied(channels, groups, depth, width)):
                return tile
            step, stages = (128, 3) if hopper else (64, 4)
            bits = capability == (8, 0)  # where the conversion takes four times an addition
            if width is None:
                two = hopper and groups == 1  # sums of a group in integers, and in floats: one
                return cls(128, 128, step, 8, stages, registers=128 if two else None, bits=bits)
            block = max(16, triton.next_power_of_2(width))
            if groups > 1 and block > 128:  # sums of integers and of floats
                return cls(64, block, 64, 8, 4, bits=bits)
            return cls(128, block, step, 8, 3, bits=bits)

        @classmethod
        def _copied(cls, channels: int, groups: int, depth: int, width: int | None) -> _Tile | None:
            """The same with TMA: of whole tiles of channels, and steps that are a group or a part of the only one."""
            if groups > 1:
                whole = width is None and depth in (128, 256) and channels % 128 == 0
                return cls(128, 128, depth, 8, 3, copied=True) if whole else None
            if depth % 128:
                return None
            if width == 256:
                return cls(128, 256, 128, 8, 4, copied=True)
            whole = width is None and channels % 128 == 0
            return cls(128, 128, 128, 8, 3, registers=128, copied=True) if whole else None

    @triton.jit
    def _operands(a, b, start, step, depth, EVEN: tl.constexpr):
        """Columns from ``start`` on, of ``depth``: beyond them zeros."""
        if EVEN:
            return tl.load(a + start + step), tl.load(b + start + step)
        inside = start + step < depth
        return tl.load(a + start + step, mask=inside, other=0), tl.load(b + start + step, mask=inside, other=0)

    @triton.jit
    def _as_float(sums, BITS: tl.constexpr):
        return sums.to(tl.float32, bitcast=True) - 12582912.0 if BITS else sums.to(tl.float32)

    @triton.jit
    def _gelu(x):
        """``x / (1 + exp(-2 sqrt(2 / pi) (x + 0.044715 x^3)))``, with an exponential to the base of two."""
        z = x * (-2.302208198144325 - 0.10294324007853835 * (x * x))
        if _INTERPRETED:
            return x / (1 + tl.exp2(z))
        else:
            return libdevice.fast_dividef(x, 1 + libdevice.exp2(z))  # pyright: ignore[reportOperatorIssue]

    @triton.jit
    def _place(rows_of_tiles, parts):
        """A program's tile of rows, and of channels. Those that run at once share few of both: these stay in L2."""
        first = tl.program_id(0)
        return tl.swizzle2d(first // parts, first % parts, rows_of_tiles, parts, 8)

    @triton.jit
    def _finish(
        total, weight_scale, bias, out, out_scale, rows, channels, row, channel, live, part, GELU: tl.constexpr,
    ):  # fmt: skip
        """The product's scales and bias, GELU, and the store; ``live``: which channels."""
        here = row < rows
        total *= tl.load(weight_scale + channel, mask=live, other=0.0)
        total += tl.load(bias + channel, mask=live, other=0.0).to(tl.float32)
        at, mask = row.to(tl.int64)[:, None] * channels + channel, here[:, None] & live
        if GELU:
            total = _gelu(total)
            amax = largest(tl.where(live[None], total, 0.0), 1)
            tl.store(out + at, rounded(total * inverse_of(amax)[:, None]), mask=mask)
            tl.store(out_scale + part * rows + row, tl.div_rn(amax, 127.0), mask=here)
        else:
            tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)

    # Not specialised: what varies with the picture must not wait for a compiler in the middle of a stream.
    @triton.jit(do_not_specialize=["rows"])
    def _kernel(
        x, x_scale, weight, weight_scale, bias, out, out_scale, rows, groups, depth, channels, width,
        GELU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, GROUPED: tl.constexpr,
        EVEN: tl.constexpr, BITS: tl.constexpr,
    ):  # fmt: skip
        parts = tl.cdiv(channels, width)
        tile, part = _place(tl.num_programs(0) // parts, parts)
        row, column, step = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK), tl.arange(0, STEP)[None]
        channel = part * width + column
        here, live = row < rows, (column < width) & (channel < channels)
        # What is beyond the last row or channel is computed from that one, and not stored.
        a = x + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * (groups * depth)
        b = weight + packed_row(tl.minimum(channel, channels - 1)).to(tl.int64)[:, None] * (groups * depth)
        # A sum of at most 2^22, added to the bits of 1.5 * 2^23, leaves those of 1.5 * 2^23 plus the sum.
        NONE: tl.constexpr = 0x4B400000 if BITS else 0  # pyright: ignore[reportAssignmentType]
        sums = tl.full((ROWS, BLOCK), NONE, tl.int32)
        if GROUPED:
            total = tl.zeros((ROWS, BLOCK), tl.float32)
            steps = tl.cdiv(depth, STEP)
            for i in range(0, groups * steps):
                group, start = i // steps, i % steps * STEP
                left, right = _operands(a + group * depth, b + group * depth, start, step, depth, EVEN)
                sums = tl.dot(left, tl.trans(right), sums, out_dtype=tl.int32)
                if start + STEP >= depth:
                    scale = tl.load(x_scale + group * rows + row, mask=here, other=0.0)
                    total += scale[:, None] * _as_float(sums, BITS)
                    sums = tl.full((ROWS, BLOCK), NONE, tl.int32)
        else:
            for start in range(0, depth, STEP):
                left, right = _operands(a, b, start, step, depth, EVEN)
                sums = tl.dot(left, tl.trans(right), sums, out_dtype=tl.int32)
            total = tl.load(x_scale + row, mask=here, other=0.0)[:, None] * sums.to(tl.float32)
        _finish(total, weight_scale, bias, out, out_scale, rows, channels, row, channel, live, part, GELU)

    @triton.jit(do_not_specialize=["rows"])
    def _copied_kernel(
        x, x_scale, weight, weight_scale, bias, out, out_scale, rows, groups, depth, channels,
        GELU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, GROUPED: tl.constexpr,
    ):  # fmt: skip
        """The same of x and weight as descriptors, for the copy engine (TMA). A group is a step, or the only one."""
        parts = channels // BLOCK
        tile, part = _place(tl.num_programs(0) // parts, parts)
        first_row, first_channel = tile * ROWS, part * BLOCK
        row, channel = first_row + tl.arange(0, ROWS), first_channel + tl.arange(0, BLOCK)
        here = row < rows
        if GROUPED:
            total = tl.zeros((ROWS, BLOCK), tl.float32)
            for group in range(0, groups):
                scale = tl.load(x_scale + group * rows + row, mask=here, other=0.0)
                left, right = x.load([first_row, group * STEP]), weight.load([first_channel, group * STEP])
                sums = tl.dot(left, tl.trans(right), out_dtype=tl.int32)
                total += scale[:, None] * sums.to(tl.float32)
        else:
            sums = tl.zeros((ROWS, BLOCK), tl.int32)
            for start in range(0, depth, STEP):
                left, right = x.load([first_row, start]), weight.load([first_channel, start])
                sums = tl.dot(left, tl.trans(right), sums, out_dtype=tl.int32)
            total = tl.load(x_scale + row, mask=here, other=0.0)[:, None] * sums.to(tl.float32)
        # Channels are still as ``pack`` has left them.
        total = tl.permute(tl.reshape(total, (ROWS, BLOCK // 32, 4, 4, 2)), (0, 1, 3, 2, 4))
        total = tl.reshape(total, (ROWS, BLOCK))
        every = tl.full((BLOCK,), True, tl.int1)
        _finish(total, weight_scale, bias, out, out_scale, rows, channels, row, channel, every, part, GELU)

    def _tile_for(x: Tensor, weight: Tensor, groups: int, width: int | None) -> _Tile:
        aligned = all(n % 16 == 0 for n in (x.data_ptr(), weight.data_ptr(), x.shape[1]))
        return _Tile.of(generation(x.device), len(weight), groups, x.shape[1] // groups, width, aligned)

    @int8_linear.impl("triton", when=is_cuda)
    def _triton(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
        _check(x, x_scale, weight, weight_scale, bias)
        tile = _tile_for(x, weight, len(x_scale), None)
        return _launch(tile, x, x_scale, weight, weight_scale, bias)

    def _launch(tile: _Tile, x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
        out = bias.new_empty(len(x), len(weight))
        _run(tile, x, x_scale, weight, weight_scale, bias, out, None, tile.BLOCK)
        return out

    def _fits_triton(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, groups: int):
        return x.is_cuda and len(weight) <= GELU_GROUP * groups

    @int8_linear_gelu.impl("triton", when=_fits_triton)
    def _triton_gelu(
        x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, groups: int
    ) -> tuple[Tensor, Tensor]:
        _check_gelu(x, x_scale, weight, weight_scale, bias, groups)
        tile = _tile_for(x, weight, len(x_scale), len(weight) // groups)
        return _launch_gelu(tile, x, x_scale, weight, weight_scale, bias, groups)

    def _launch_gelu(
        tile: _Tile, x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, groups: int
    ) -> tuple[Tensor, Tensor]:
        values = x.new_empty(len(x), len(weight))
        scale = x_scale.new_empty(groups, len(x))
        _run(tile, x, x_scale, weight, weight_scale, bias, values, scale, len(weight) // groups)
        return values, scale

    def _run(tile: _Tile, x, x_scale, weight, weight_scale, bias, out, out_scale: Tensor | None, width: int) -> None:
        """A program has ``width`` channels of a tile of rows: with out_scale a group of the result."""
        rows, channels, groups = len(x), len(weight), len(x_scale)
        if rows == 0 or channels == 0:
            return
        depth = x.shape[1] // groups
        gelu = out_scale is not None
        shape = {"GELU": gelu, "ROWS": tile.ROWS, "BLOCK": tile.BLOCK, "STEP": tile.STEP, "GROUPED": groups > 1}
        options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "maxnreg": tile.registers}
        grid = (triton.cdiv(rows, tile.ROWS) * triton.cdiv(channels, width),)
        with torch.cuda.device_of(x):
            if tile.copied:
                a = TensorDescriptor.from_tensor(x, [tile.ROWS, tile.STEP])
                b = TensorDescriptor.from_tensor(weight, [tile.BLOCK, tile.STEP])
                _copied_kernel[grid](
                    a, x_scale, b, weight_scale, bias, out, out_scale if gelu else out, rows, groups, depth, channels,
                    **shape, **options, enable_fp_fusion=True,
                )  # fmt: skip
            else:
                _kernel[grid](
                    x, x_scale, weight, weight_scale, bias, out, out_scale if gelu else out,
                    rows, groups, depth, channels, width, **shape, EVEN=depth % tile.STEP == 0,
                    BITS=tile.bits and groups > 1 and depth <= _BITS_EXACT, **options, enable_fp_fusion=True,
                )  # fmt: skip
