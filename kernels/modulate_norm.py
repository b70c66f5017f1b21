"""modulate_norm: layer norm without affine, then the block's scale and shift, in one pass; also with an int8 result."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .checks import expect, expect_float, on_gpu
from .quantize import quantize_runs
from .registry import op
from .triton_import import tl, triton


@op()
def modulate_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """``LN(x) * (1 + scale) + shift``, the statistics over the last dimension.

    x [N, D], contiguous; shift and scale [G, D], rows of any stride: row g serves x's rows g*N/G up to (g+1)*N/G.
    Returns [N, D] in x's dtype: bfloat16, float32 or float64. Raises ValueError naming the argument that does not fit.
    """
    _check(x, shift, scale)
    return _modulated(x, shift, scale, eps).to(x.dtype)


@op()
def modulate_norm_int8(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``quantize(modulate_norm(x, shift, scale, eps), 1)`` without the rounding between the two.

    Returns (values [N, D] int8, scale [1, N] float32), as ``quantize`` does. Raises ValueError naming the argument that
    does not fit.
    """
    _check(x, shift, scale)
    return quantize_runs(_modulated(x, shift, scale, eps), 1)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    # Precision: all in float32, rounded once at the end. The published order (docs/model.md 2.2) rounds to
    # bfloat16 four times: after the norm, 1 + scale, the product and the sum.
    wide = torch.promote_types(x.dtype, torch.float32)
    groups = shift.shape[0]
    rows = x.to(wide).view(groups, x.shape[0] // groups, x.shape[1])
    normed = F.layer_norm(rows, rows.shape[-1:], eps=eps)
    return (normed * (1 + scale.to(wide)[:, None]) + shift.to(wide)[:, None]).view(x.shape)


def _check(x: Tensor, shift: Tensor, scale: Tensor) -> None:
    expect_float("x", x)
    expect("x", x, (None, None), x.dtype, x.device)
    expect("shift", shift, (None, x.shape[1]), x.dtype, x.device, dense_from=1)
    expect("scale", scale, (shift.shape[0], x.shape[1]), x.dtype, x.device, dense_from=1)
    if shift.shape[0] == 0 or x.shape[0] % shift.shape[0]:
        raise ValueError(f"shift must have a row count that divides x's {x.shape[0]} rows, got {shift.shape[0]}")


def _fits_cuda(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> bool:
    return (
        native.takes(x)
        and x.dim() == shift.dim() == scale.dim() == 2
        and x.shape[1] <= 1536
        and x.is_contiguous()
        and native.rows_of_vectors(x, shift, scale)
    )


@modulate_norm.impl("cuda", when=_fits_cuda)
def _cuda(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return torch.ops.longlive_C.modulate_norm(x, shift, scale, eps)


if triton:
    # Not specialised: what varies from pass to pass must not wait for a compiler in the middle of a stream.
    @triton.jit(do_not_specialize=["group_rows"])
    def _kernel(x, shift, scale, out, shift_stride, scale_stride, group_rows, size, eps, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        group = row // group_rows
        column = tl.arange(0, BLOCK)
        live = column < size
        wide = tl.load(x + row * size + column, mask=live, other=0.0).to(tl.float32)
        mean = tl.sum(wide, axis=0) / size
        centred = tl.where(live, wide - mean, 0.0)
        inverse = tl.rsqrt(tl.sum(centred * centred, axis=0) / size + eps)
        a = tl.load(scale + group * scale_stride + column, mask=live, other=0.0).to(tl.float32)
        b = tl.load(shift + group * shift_stride + column, mask=live, other=0.0).to(tl.float32)
        # Precision: float32 up to here, rounded once by the store.
        tl.store(out + row * size + column, centred * inverse * (1 + a) + b, mask=live)

    @modulate_norm.impl("triton", when=on_gpu)
    def _triton(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
        _check(x, shift, scale)
        rows, size = x.shape
        out = torch.empty_like(x)
        strides = shift.stride(0), scale.stride(0)
        with torch.cuda.device_of(x):
            _kernel[(rows,)](
                x, shift, scale, out, *strides, rows // shift.shape[0], size, eps, BLOCK=triton.next_power_of_2(size)
            )
        return out
