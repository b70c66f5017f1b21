"""dequantize_weight: the plain weight that an int8 product multiplies with, in a float dtype."""

import torch
from torch import Tensor

from .checks import expect
from .int8_linear import PACK, pack
from .registry import op
from .triton_import import tl, triton

_DTYPES = (torch.bfloat16, torch.float32)


@op()
def dequantize_weight(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``pack(weight)[m, k] * weight_scale[m]``, in float32, rounded once to ``dtype``.

    weight [M, K] int8, packed by ``int8_linear.pack``, M a multiple of 32; weight_scale [M] float32: contiguous, as
    ``int8_linear`` takes them. ``dtype`` is bfloat16 or float32. Returns [M, K] in the plain order of channels.
    Raises ValueError naming the argument that does not fit.
    """
    _check(weight, weight_scale, dtype)
    return (pack(weight) * weight_scale[:, None]).to(dtype)


def _check(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> None:
    expect("weight", weight, (None, None), torch.int8, weight.device)
    if weight.shape[0] % PACK:
        raise ValueError(f"weight must have a multiple of {PACK} rows, got {weight.shape[0]}")
    expect("weight_scale", weight_scale, (weight.shape[0],), torch.float32, weight.device)
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be bfloat16 or float32, got {dtype}")


if triton:
    _ROWS, _BLOCK = 8, 512

    @triton.jit
    def _kernel(weight, weight_scale, out, rows, size, ROWS: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        live = (row < rows)[:, None] & (column < size)
        packed = row // 32 * 32 + row // 2 % 4 * 8 + row // 8 % 4 * 2 + row % 2  # as ``pack`` has put it
        values = tl.load(weight + packed.to(tl.int64)[:, None] * size + column, mask=live, other=0)
        scale = tl.load(weight_scale + row, mask=row < rows, other=0.0)
        plain = values.to(tl.float32) * scale[:, None]
        tl.store(out + row.to(tl.int64)[:, None] * size + column, plain.to(out.dtype.element_ty), mask=live)

    def _on_gpu(weight: Tensor, *rest) -> bool:
        return weight.is_cuda

    @dequantize_weight.impl("triton", when=_on_gpu)
    def _triton(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
        _check(weight, weight_scale, dtype)
        rows, size = weight.shape
        out = torch.empty(rows, size, dtype=dtype, device=weight.device)
        if out.numel():
            grid = triton.cdiv(rows, _ROWS), triton.cdiv(size, _BLOCK)
            with torch.cuda.device_of(weight):
                _kernel[grid](weight, weight_scale, out, rows, size, ROWS=_ROWS, BLOCK=_BLOCK, num_warps=4)
        return out
