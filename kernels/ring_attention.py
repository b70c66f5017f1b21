"""ring_attention: softmax(q kT / sqrt(d)) v over the valid slots of a ring, read in place."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .registry import op

_LIBRARY_ORDER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


def _check(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: int) -> None:
    if q.ndim != 3:
        raise ValueError(f"q must be [tokens, heads, head_dim], got {tuple(q.shape)}")
    if k_ring.ndim != 4 or k_ring.shape[2:] != q.shape[1:]:
        raise ValueError(f"k_ring must be [slots, tokens, {q.shape[1]}, {q.shape[2]}], got {tuple(k_ring.shape)}")
    if v_ring.shape != k_ring.shape:
        raise ValueError(f"v_ring must have k_ring's shape {tuple(k_ring.shape)}, got {tuple(v_ring.shape)}")
    if not 1 <= valid <= k_ring.shape[0]:
        raise ValueError(f"valid must lie in 1..{k_ring.shape[0]}, got {valid}")


def _attend(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: int) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k_ring[:valid].flatten(0, 1), v_ring[:valid].flatten(0, 1)))
    return F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)


@op()
def ring_attention(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: int) -> Tensor:
    """softmax(q kT / sqrt(head_dim)) v over all tokens of slots [0, valid); no mask, so slot order is irrelevant.

    q [N, H, hd]; k_ring, v_ring [slots, S, H, hd] of q's dtype; result [N, H, hd].
    """
    _check(q, k_ring, v_ring, valid)
    return _attend(q, k_ring, v_ring, valid).contiguous()


def _library_takes(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: int) -> bool:
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)


@ring_attention.impl("library", when=_library_takes)
def _(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: int) -> Tensor:
    # torch's own order puts FlashAttention-2 first; on Hopper cuDNN is far ahead of it.
    _check(q, k_ring, v_ring, valid)
    with sdpa_kernel(_LIBRARY_ORDER, set_priority=True):
        return _attend(q, k_ring, v_ring, valid).contiguous()
