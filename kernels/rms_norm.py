"""rms_norm: the norm of cross-attention's queries and keys, over all channels."""

import torch
from torch import Tensor

from . import native
from .checks import expect, expect_float, on_gpu
from .registry import op
from .triton_import import tl, triton


@op()
def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * gain``, the mean over the last dimension.

    x [N, D], contiguous; gain [D]. Returns [N, D] in x's dtype: bfloat16, float32 or float64. Source:
    docs/model.md 2.2, step 2. Raises ValueError naming the argument that does not fit.
    """
    _check(x, gain)
    # Precision: float32, rounded once at the end. The published order rounds before the gain as well.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    inverse = (wide.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return (wide * inverse * gain.to(wide.dtype)).to(x.dtype)


def _check(x: Tensor, gain: Tensor) -> None:
    expect_float("x", x)
    expect("x", x, (None, None), x.dtype, x.device)
    expect("gain", gain, (x.shape[1],), x.dtype, x.device)


def _fits_cuda(x: Tensor, gain: Tensor, eps: float) -> bool:
    return (
        native.takes(x)
        and x.dim() == 2
        and x.shape[1] <= 1536
        and x.is_contiguous()
        and native.rows_of_vectors(x)
        and gain.data_ptr() % 16 == 0
    )


@rms_norm.impl("cuda", when=_fits_cuda)
def _cuda(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return torch.ops.longlive_C.rms_norm(x, gain, eps)


if triton:

    @triton.jit
    def _kernel(x, gain, out, size, eps, BLOCK: tl.constexpr):
        column = tl.arange(0, BLOCK)
        live = column < size
        here = tl.program_id(0).to(tl.int64) * size + column
        wide = tl.load(x + here, mask=live, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(wide * wide, axis=0) / size + eps)
        g = tl.load(gain + column, mask=live, other=0.0).to(tl.float32)
        # Precision: float32 up to here, rounded once by the store.
        tl.store(out + here, wide * inverse * g, mask=live)

    @rms_norm.impl("triton", when=on_gpu)
    def _triton(x: Tensor, gain: Tensor, eps: float) -> Tensor:
        _check(x, gain)
        rows, size = x.shape
        out = torch.empty_like(x)
        if rows:
            with torch.cuda.device_of(x):
                _kernel[(rows,)](x, gain, out, size, eps, BLOCK=triton.next_power_of_2(size))
        return out
