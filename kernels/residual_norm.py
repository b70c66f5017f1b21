"""residual_norm: a sub-layer's result added to the residual stream, and the norm that the next sub-layer reads."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .checks import expect, expect_float, on_gpu
from .quantize import empty_int8, quantize_groups
from .registry import op
from .triton_import import tl, triton


@op(mutates=("x",))
def residual_norm(
    x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, offset: float, eps: float
) -> Tensor:
    """``x += y * gate``, then ``LN(x) * (offset + scale) + shift``, the statistics over the last dimension.

    x and y [N, D], contiguous; only x is written. gate [Gg, D], or None for 1; shift and scale [G, D]; their rows may
    have any stride, and row g of G serves x's rows g*N/G up to (g+1)*N/G. offset 1 is a modulation (docs/model.md 2.2,
    steps 1 and 6); offset 0 is an affine norm, whose gain and bias are scale and shift (step 5).
    Returns [N, D] in x's dtype: bfloat16, float32 or float64. Raises ValueError naming the argument that does not fit.
    """
    _check(x, y, gate, shift, scale)
    return _added_and_normed(x, y, gate, shift, scale, offset, eps).to(x.dtype)


@op(mutates=("x",))
def residual_norm_int8(
    x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, offset: float, eps: float
) -> tuple[Tensor, Tensor]:
    """``residual_norm``, whose result goes to ``quantize(..., 1)`` without the rounding between the two.

    x is written as by ``residual_norm``. Returns (values [N, D] int8, scale [1, N] float32), as ``quantize`` does.
    Raises ValueError naming the argument that does not fit.
    """
    _check(x, y, gate, shift, scale)
    return quantize_groups(_added_and_normed(x, y, gate, shift, scale, offset, eps), 1)


def _added_and_normed(
    x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, offset: float, eps: float
) -> Tensor:
    # Precision: float32 inside; x is rounded once, and the norm reads the rounded x, as the published order does; its
    # result is rounded once, too. That order also rounds y * gate, the norm, offset + scale and the product.
    wide = torch.promote_types(x.dtype, torch.float32)
    rows, size = x.shape
    update = y.to(wide)
    if gate is not None:
        update = (update.view(len(gate), rows // len(gate), size) * gate.to(wide)[:, None]).view(rows, size)
    x.copy_(x.to(wide) + update)
    normed = F.layer_norm(x.to(wide), (size,), eps=eps).view(len(shift), rows // len(shift), size)
    return (normed * (offset + scale.to(wide)[:, None]) + shift.to(wide)[:, None]).view(rows, size)


def _check(x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor) -> None:
    expect_float("x", x)
    expect("x", x, (None, None), x.dtype, x.device)
    expect("y", y, tuple(x.shape), x.dtype, x.device)
    if gate is not None:
        _check_groups("gate", gate, x)
    _check_groups("shift", shift, x)
    expect("scale", scale, (shift.shape[0], x.shape[1]), x.dtype, x.device, dense_from=1)


def _check_groups(name: str, t: Tensor, x: Tensor) -> None:
    expect(name, t, (None, x.shape[1]), x.dtype, x.device, dense_from=1)
    if t.shape[0] == 0 or x.shape[0] % t.shape[0]:
        raise ValueError(f"{name} must have a row count that divides x's {x.shape[0]} rows, got {t.shape[0]}")


def _fits_cuda(x, y, gate, shift, scale, offset, eps) -> bool:
    rows = [x, y, shift, scale] + ([] if gate is None else [gate])
    return (
        native.takes(x)
        and all(t.dim() == 2 for t in rows)
        and x.shape[1] <= 1536
        and x.is_contiguous()
        and native.rows_of_vectors(*rows)
    )


@residual_norm.impl("cuda", when=_fits_cuda)
def _cuda(x, y, gate, shift, scale, offset, eps) -> Tensor:
    return torch.ops.longlive_C.residual_norm(x, y, gate, shift, scale, offset, eps)


@residual_norm_int8.impl("cuda", when=_fits_cuda)
def _cuda_int8(x, y, gate, shift, scale, offset, eps) -> tuple[Tensor, Tensor]:
    return torch.ops.longlive_C.residual_norm_int8(x, y, gate, shift, scale, offset, eps)


if triton:
    from .quantize import store_row

    # Not specialised: what varies from pass to pass must not wait for a compiler in the middle of a stream.
    @triton.jit(do_not_specialize=["gate_rows", "group_rows"])
    def _kernel(
        x, y, gate, shift, scale, out, out_scale, gate_stride, shift_stride, scale_stride, gate_rows, group_rows, size,
        offset, eps, GATED: tl.constexpr, INT8: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        group = row // group_rows
        column = tl.arange(0, BLOCK)
        live = column < size
        here = row * size + column
        update = tl.load(y + here, mask=live, other=0.0).to(tl.float32)
        if GATED:
            g = tl.load(gate + row // gate_rows * gate_stride + column, mask=live, other=0.0)
            update *= g.to(tl.float32)
        # Precision: rounded here, and the norm reads what was stored.
        total = (tl.load(x + here, mask=live, other=0.0).to(tl.float32) + update).to(x.dtype.element_ty)
        tl.store(x + here, total, mask=live)
        wide = total.to(tl.float32)
        mean = tl.sum(wide, axis=0) / size
        centred = tl.where(live, wide - mean, 0.0)
        inverse = tl.rsqrt(tl.sum(centred * centred, axis=0) / size + eps)
        a = tl.load(scale + group * scale_stride + column, mask=live, other=0.0).to(tl.float32)
        b = tl.load(shift + group * shift_stride + column, mask=live, other=0.0).to(tl.float32)
        store_row(centred * inverse * (offset + a) + b, out, out_scale, row, column, size, live, INT8)

    @residual_norm.impl("triton", when=on_gpu)
    def _triton(x, y, gate, shift, scale, offset, eps) -> Tensor:
        _check(x, y, gate, shift, scale)
        out = torch.empty_like(x)
        _launch(x, y, gate, shift, scale, offset, eps, out, None)
        return out

    @residual_norm_int8.impl("triton", when=on_gpu)
    def _triton_int8(x, y, gate, shift, scale, offset, eps) -> tuple[Tensor, Tensor]:
        _check(x, y, gate, shift, scale)
        values, row_scale = empty_int8(x, 1)
        _launch(x, y, gate, shift, scale, offset, eps, values, row_scale)
        return values, row_scale

    def _launch(x, y, gate, shift, scale, offset, eps, out: Tensor, out_scale: Tensor | None) -> None:
        rows, size = x.shape
        if rows == 0:
            return
        gated, int8 = gate is not None, out_scale is not None
        gates = gate if gated else shift  # a stand-in that is never read
        with torch.cuda.device_of(x):
            _kernel[(rows,)](
                x, y, gates, shift, scale, out, out_scale if int8 else out,
                gates.stride(0), shift.stride(0), scale.stride(0), rows // len(gates), rows // len(shift), size,
                offset, eps, GATED=gated, INT8=int8, BLOCK=triton.next_power_of_2(size),
            )  # fmt: skip
