"""attention: softmax(q kT / sqrt(d)) v over dense keys, as cross-attention has them."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checks import expect, expect_float
from .registry import op

# torch's own order puts FlashAttention-2 first; on Hopper cuDNN is far ahead of it.
_LIBRARY_ORDER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


@op()
def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``softmax(q kT / sqrt(hd)) v`` over all keys.

    - q [N, H, hd], rows of any stride.
    - k, v [L, H, hd], contiguous, L > 0; all of one dtype: bfloat16, float32 or float64.

    Returns [N, H, hd], contiguous. Raises ValueError naming the argument that does not fit.
    """
    _check(q, k, v)
    return attend(q, k, v)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """torch's attention of q [N, H, hd] over k, v [L, H, hd]; mask [N or 1, L] is true where a query sees a key."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask)[0].transpose(0, 1).contiguous()


def expect_queries(q: Tensor) -> None:
    """Raise ValueError unless q is [N, H, hd] of a float dtype, a query's heads side by side."""
    expect_float("q", q)
    expect("q", q, (None, None, None), q.dtype, q.device, dense_from=1)
    if q.shape[1] > 1 and q.stride(1) != q.shape[2]:
        raise ValueError(f"q must have contiguous rows, got strides {q.stride()}")


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    expect_queries(q)
    expect("k", k, (None, *q.shape[1:]), q.dtype, q.device)
    expect("v", v, tuple(k.shape), q.dtype, q.device)
    if len(k) == 0:
        raise ValueError(f"k must not be empty, got {list(k.shape)}")


@attention.impl("library", when=lambda q, *rest: q.is_cuda and q.dtype == torch.bfloat16 and len(q) > 0)
def _library(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    _check(q, k, v)
    with sdpa_kernel(_LIBRARY_ORDER, set_priority=True):
        return attend(q, k, v)
