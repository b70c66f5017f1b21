"""modulate_norm: layer norm without affine, then the block's scale and shift, in one pass."""
import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import expect, expect_float
from .registry import op


@op()
def modulate_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """``LN(x) * (1 + scale) + shift``, the statistics over the last dimension.

    x [N, D], contiguous; shift and scale [G, D], rows of any stride: row g serves x's rows g*N/G up to (g+1)*N/G.
    Returns [N, D] in x's dtype: bfloat16, float32 or float64. Raises ValueError naming the argument that does not fit.
    """
    _check(x, shift, scale)
    # Precision: all in float32, rounded once at the end. The published order (longlive-model 2.2) rounds to bfloat16
    # after the norm, 1 + scale, the product and the sum; ours is never further from the exact value than the last of these.
    wide = torch.promote_types(x.dtype, torch.float32)
    groups = shift.shape[0]
    rows = x.to(wide).view(groups, x.shape[0] // groups, x.shape[1])
    normed = F.layer_norm(rows, rows.shape[-1:], eps=eps)
    return (normed * (1 + scale.to(wide)[:, None]) + shift.to(wide)[:, None]).to(x.dtype).view(x.shape)


def _check(x: Tensor, shift: Tensor, scale: Tensor) -> None:
    expect_float("x", x)
    expect("x", x, (None, None), x.dtype, x.device)
    expect("shift", shift, (None, x.shape[1]), x.dtype, x.device, dense_from=1)
    expect("scale", scale, (shift.shape[0], x.shape[1]), x.dtype, x.device, dense_from=1)
    if shift.shape[0] == 0 or x.shape[0] % shift.shape[0]:
        raise ValueError(f"shift must have a row count that divides x's {x.shape[0]} rows, got {shift.shape[0]}")
