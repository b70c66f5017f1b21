"""ring_attention_fp8: attention over the ring in 8 bits, queries and keys in int8, values in e4m3."""

import torch
from torch import Tensor

from . import native
from .checks import expect
from .quantize_keys import KEY_RUN, expect_key_scales
from .quantize_values import dequantize_values, expect_values
from .registry import op
from .ring_attention import _attend


def _fake(q, q_scale, k_ring, k_scale, v_ring, v_scale, v_offset, valid) -> Tensor:
    _check(q, q_scale, k_ring, k_scale, v_ring, v_scale, v_offset, valid)
    return q.new_empty(q.shape, dtype=torch.bfloat16)


@op(fake=_fake)
def ring_attention_fp8(
    q: Tensor,
    q_scale: Tensor,
    k_ring: Tensor,
    k_scale: Tensor,
    v_ring: Tensor,
    v_scale: Tensor,
    v_offset: Tensor,
    valid: Tensor,
) -> Tensor:
    """``ring_attention_int8`` of values in e4m3: ``softmax_j(...) (v_offset[h] + v_scale[h] * v[h, :, j])``.

    - q, q_scale, k_ring [slots, S, H, hd], k_scale and valid: as ``ring_attention_int8`` takes them.
    - v_ring [H, hd, P] float8_e4m3fn, contiguous, v_scale and v_offset [H, hd] float32: as ``quantize_values`` leaves
      them, P being at least slots * S. NaN among the values of valid tokens makes results NaN.

    Returns [N, H, hd] bfloat16, contiguous; zeros with valid <= 0. The kernel rounds p to e4m3 too, whose bits are
    linear in the score (docs/attention.md). Source: SageAttention2, arXiv 2411.10958, for integers in q kT beside e4m3
    in p v. Raises ValueError naming the argument that does not fit.
    """
    _check(q, q_scale, k_ring, k_scale, v_ring, v_scale, v_offset, valid)
    queries = q.float() * q_scale.T[..., None]
    keys = k_ring.flatten(0, 1).float()
    keys = keys * k_scale.repeat_interleave(KEY_RUN, dim=1)[:, : len(keys)].T[..., None]
    values = dequantize_values(v_ring, v_scale, v_offset, k_ring.shape[0], k_ring.shape[1], torch.float32).flatten(0, 1)
    return _attend(queries, keys, values, valid).bfloat16()


def _check(q, q_scale, k_ring, k_scale, v_ring, v_scale, v_offset, valid) -> None:
    expect("q", q, (None, None, None), torch.int8, q.device)
    rows, heads, head_dim = q.shape
    expect("q_scale", q_scale, (heads, rows), torch.float32, q.device)
    expect("k_ring", k_ring, (None, None, heads, head_dim), torch.int8, q.device)
    if k_ring.shape[0] * k_ring.shape[1] == 0:
        raise ValueError(f"k_ring must not be empty, got {list(k_ring.shape)}")
    expect_key_scales(k_ring, k_scale)
    expect("v_ring", v_ring, (heads, head_dim, None), torch.float8_e4m3fn, q.device)
    expect_values(v_ring, v_scale, v_offset, (heads, head_dim), k_ring.shape[0] * k_ring.shape[1])
    expect("valid", valid, (1,), torch.int32, q.device)


def _fits_cuda(q, q_scale, k_ring, k_scale, v_ring, v_scale, v_offset, valid) -> bool:
    return (
        native.on_hopper(q)
        and q.dim() == 3
        and q.shape[2] == 128
        and k_scale.shape[-1] % 4 == 0  # heads' scales start at multiples of 16 bytes
        and all(t.is_contiguous() and t.data_ptr() % 16 == 0 for t in (q, k_ring, k_scale, v_ring, v_scale, v_offset))
    )


@ring_attention_fp8.impl("cuda", when=_fits_cuda)
def _cuda(q, q_scale, k_ring, k_scale, v_ring, v_scale, v_offset, valid) -> Tensor:
    _check(q, q_scale, k_ring, k_scale, v_ring, v_scale, v_offset, valid)
    return torch.ops.longlive_C.ring_attention_fp8(q, q_scale, k_ring, k_scale, v_ring, v_scale, v_offset, valid)
