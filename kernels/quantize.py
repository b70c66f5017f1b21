"""quantize: activations as int8, with a scale for each row or for each group of a row's columns."""

import torch
from torch import Tensor

from . import native
from .checks import expect, expect_float, on_gpu
from .registry import op
from .triton_import import tl, triton

LARGEST = 127  # of the values; -128 does not occur
SMALLEST = 2.0**-100  # magnitudes below it count as zero: 127 / amax then stays finite, and no value is subnormal


@op()
def quantize(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Symmetric int8: ``x[n, k]`` is about ``values[n, k] * scale[g, n]``, with g the group of column k.

    x [N, K], contiguous, bfloat16, float32 or float64; ``groups`` divides K into equal groups of columns. All is
    float32: amax is a group's largest magnitude, ``scale = amax / 127``, ``values = rint(x * (127 / amax))``, both
    quotients rounded to nearest, halves of rint to even. A group with amax < 2^-100 has scale 0 and values 0. A group
    with NaN has scale NaN, one with an infinity an infinite scale; their values mean nothing.
    Returns (values [N, K] int8, scale [groups, N] float32). Raises ValueError naming the argument that does not fit.
    """
    _check(x, groups)
    return quantize_groups(x, groups)


def quantize_groups(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The arithmetic of ``quantize``, for operators that end in it."""
    grouped = x.float().view(x.shape[0], groups, x.shape[1] // groups)
    amax = grouped.abs().amax(dim=-1)
    amax = amax.where(~(amax < SMALLEST), 0)  # NaN stays
    steps = torch.full_like(amax, LARGEST)  # by a number torch multiplies by its reciprocal, which rounds twice
    inverse = (steps / amax).where(amax > 0, 0)
    values = (grouped * inverse[..., None]).round_().to(torch.int8)
    return values.view(x.shape), (amax / steps).T.contiguous()


def empty_int8(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """What ``quantize`` returns for x, not written yet."""
    return torch.empty_like(x, dtype=torch.int8), torch.empty(groups, len(x), dtype=torch.float32, device=x.device)


def expect_groups(groups: int, size: int, name: str) -> None:
    """Raise ValueError unless ``groups`` divides ``size`` things, called ``name``, into groups that are not empty."""
    if groups < 1 or size < 1 or size % groups:
        raise ValueError(f"groups must divide the {size} {name}, got {groups}")


def _check(x: Tensor, groups: int) -> None:
    expect_float("x", x)
    expect("x", x, (None, None), x.dtype, x.device)
    expect_groups(groups, x.shape[1], "columns of x")


def _fits_cuda(x: Tensor, groups: int) -> bool:
    # Of several groups Triton is faster.
    return (
        groups == 1
        and native.takes(x)
        and x.dim() == 2
        and x.is_contiguous()
        and 0 < x.shape[1] <= 1536
        and all(n % 16 == 0 for n in (x.data_ptr(), x.shape[1] * x.element_size()))
    )


@quantize.impl("cuda", when=_fits_cuda)
def _cuda(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    _check(x, groups)
    return torch.ops.longlive_C.quantize(x, groups)


if triton:

    @triton.jit
    def largest(wide, axis: tl.constexpr):
        """The largest magnitude; NaN if there is one, since as integers magnitudes are ordered and NaN comes last."""
        bits = tl.max(wide.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=axis)
        amax = tl.cast(bits, tl.float32, bitcast=True)
        return tl.where(amax < 2.0**-100, 0.0, amax)

    @triton.jit
    def inverse_of(amax):
        return tl.where(amax > 0, tl.div_rn(127.0, tl.where(amax > 0, amax, 1.0)), 0.0)

    @triton.jit
    def rounded(scaled):
        """To int8, halves to even: 1.5 * 2^23 leaves a float32 no bits below 1; its last eight are the result."""
        return (scaled + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)

    @triton.jit
    def store_row(result, out, scale, row, column, size, live, INT8: tl.constexpr):
        """A row of a norm's results: as they are, or as int8 with their scale."""
        here = out + row * size + column
        if INT8:
            amax = largest(tl.where(live, result, 0.0), 0)
            tl.store(here, rounded(result * inverse_of(amax)), mask=live)
            tl.store(scale + row, tl.div_rn(amax, 127.0))
        else:
            tl.store(here, result, mask=live)

    # Not specialised: what varies with the picture must not wait for a compiler in the middle of a stream.
    @triton.jit(do_not_specialize=["rows"])
    def _kernel(x, values, scale, rows, groups, size, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0)
        group, column = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS), tl.arange(0, BLOCK)
        live = (group < groups)[:, None] & (column < size)
        here = row.to(tl.int64) * groups * size + group[:, None] * size + column
        wide = tl.load(x + here, mask=live, other=0.0).to(tl.float32)
        amax = largest(wide, 1)
        tl.store(values + here, rounded(wide * inverse_of(amax)[:, None]), mask=live)
        tl.store(scale + group.to(tl.int64) * rows + row, tl.div_rn(amax, 127.0), mask=group < groups)

    @quantize.impl("triton", when=on_gpu)
    def _triton(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        _check(x, groups)
        rows, size = x.shape[0], x.shape[1] // groups
        values, scale = empty_int8(x, groups)
        if rows == 0:
            return values, scale
        block = triton.next_power_of_2(size)
        together = min(triton.next_power_of_2(groups), max(1, 2048 // block))
        with torch.cuda.device_of(x):
            # Not fused: the product is rounded before it is rounded to an integer.
            _kernel[(rows, triton.cdiv(groups, together))](
                x, values, scale, rows, groups, size, GROUPS=together, BLOCK=block, enable_fp_fusion=False
            )
        return values, scale
