"""modulate_norm: layer norm without affine, then the block's scale and shift, in one pass; also with an int8 result."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .checks import expect, expect_float, on_gpu
from .quantize import empty_int8, quantize_groups
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
    return quantize_groups(_modulated(x, shift, scale, eps), 1)


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


@modulate_norm_int8.impl("cuda", when=_fits_cuda)
def _cuda_int8(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.ops.longlive_C.modulate_norm_int8(x, shift, scale, eps)


if triton:
    from .quantize import store_row

    # Not specialised: what varies from pass to pass must not wait for a compiler in the middle of a stream.
    @triton.jit(do_not_specialize=["group_rows"])
    def _kernel(
        x, shift, scale, out, out_scale, shift_stride, scale_stride, group_rows, size, eps,
        INT8: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
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
        result = centred * inverse * (1 + a) + b
        store_row(result, out, out_scale, row, column, size, live, INT8)

    @modulate_norm.impl("triton", when=on_gpu)
    def _triton(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
        _check(x, shift, scale)
        out = torch.empty_like(x)
        _launch(x, shift, scale, eps, out, None)
        return out

    @modulate_norm_int8.impl("triton", when=on_gpu)
    def _triton_int8(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        _check(x, shift, scale)
        values, row_scale = empty_int8(x, 1)
        _launch(x, shift, scale, eps, values, row_scale)
        return values, row_scale

    def _launch(x: Tensor, shift: Tensor, scale: Tensor, eps: float, out: Tensor, out_scale: Tensor | None) -> None:
        rows, size = x.shape
        int8 = out_scale is not None
        if rows == 0:
            return
        with torch.cuda.device_of(x):
            _kernel[(rows,)](
                x, shift, scale, out, out_scale if int8 else out, shift.stride(0), scale.stride(0),
                rows // shift.shape[0], size, eps, INT8=int8, BLOCK=triton.next_power_of_2(size),
            )  # fmt: skip
