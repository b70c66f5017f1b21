"""dequantize_weight: the plain weight that an int8 product multiplies with, in a float dtype."""

import torch
from torch import Tensor

from .checks import is_cuda
from .int8_linear import expect_weight, pack
from .registry import op
from .triton_import import tl, triton

_DTYPES = (torch.bfloat16, torch.float32)


@op()
def dequantize_weight(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``pack(weight)[m, k] * weight_scale[m]``, in float32, rounded once to ``dtype``.

    weight [M, K] int8, packed, M a multiple of 32, and weight_scale [M] float32 are what
    ``int8_linear.quantize_weight`` returns, both contiguous. ``pack`` is its own inverse. ``dtype`` is bfloat16 or
    float32. Returns [M, K] in the plain order of channels.
    Raises ValueError naming the argument that does not fit.
    """
    _check(weight, weight_scale, dtype)
    return (pack(weight) * weight_scale[:, None]).to(dtype)


def _check(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> None:
    expect_weight(weight, weight_scale, None, weight.device)
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be bfloat16 or float32, got {dtype}")


if triton:
    from .int8_linear import packed_row

    _ROWS, _BLOCK = 8, 512

    @triton.jit
    def _kernel(weight, weight_scale, out, rows, size, ROWS: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        live = (row < rows)[:, None] & (column < size)
        values = tl.load(weight + packed_row(row).to(tl.int64)[:, None] * size + column, mask=live, other=0)
        scale = tl.load(weight_scale + row, mask=row < rows, other=0.0)
        plain = values.to(tl.float32) * scale[:, None]
        tl.store(out + row.to(tl.int64)[:, None] * size + column, plain.to(out.dtype.element_ty), mask=live)

    @dequantize_weight.impl("triton", when=is_cuda)
    def _triton(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
        _check(weight, weight_scale, dtype)
        rows, size = weight.shape
        out = torch.empty(rows, size, dtype=dtype, device=weight.device)
        if out.numel():
            grid = triton.cdiv(rows, _ROWS), triton.cdiv(size, _BLOCK)
            with torch.cuda.device_of(weight):
                _kernel[grid](weight, weight_scale, out, rows, size, ROWS=_ROWS, BLOCK=_BLOCK, num_warps=4)
        return out
