"""ring_attention: softmax(q kT / sqrt(d)) v over the first tokens of a ring, read in place."""

import os

import torch
from torch import Tensor

from . import native
from .attention import attend, expect_queries
from .checks import expect, expect_float, on_gpu
from .quantize_keys import KEY_RUN, expect_key_scales
from .registry import op
from .triton_import import tl, triton


def _fake(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: Tensor) -> Tensor:
    _check(q, k_ring, v_ring, valid)
    return q.new_empty(q.shape)


@op(fake=_fake)
def ring_attention(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: Tensor) -> Tensor:
    """``softmax(q kT / sqrt(hd)) v`` over a ring's first tokens; no other mask, so their order is irrelevant.

    - q [N, H, hd], rows of any stride; k_ring, v_ring [slots, S, H, hd], contiguous; one dtype: bfloat16, float32 or
      float64.
    - valid [1], int32: tokens [0, valid) are attended to, counted over all slots; beyond the ring's slots * S there
      are none. It is read when the operator runs: a captured graph serves all.

    Tokens from ``valid`` on may hold anything, NaN too. With valid <= 0 the result is zero. Returns [N, H, hd],
    contiguous. Raises ValueError naming the argument that does not fit.
    """
    _check(q, k_ring, v_ring, valid)
    return _attend(q, k_ring.flatten(0, 1), v_ring.flatten(0, 1), valid)


def _attend(q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
    # A GPU must not be waited for: a graph may be being captured. On a CPU a slice is faster than a mask.
    return (_attend_masked if q.is_cuda else _attend_slice)(q, k, v, valid)


def _attend_masked(q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
    seen = torch.arange(len(k), device=q.device) < valid
    mask = seen[:, None, None]
    return attend(q, k.where(mask, 0), v.where(mask, 0), seen[None]).where(valid > 0, 0)


def _attend_slice(q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
    keys = int(valid)
    if keys <= 0 or not len(q):
        return q.new_zeros(q.shape)
    return attend(q, k[:keys], v[:keys])


def _check(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: Tensor) -> None:
    expect_queries(q)
    _check_ring(q, k_ring, v_ring, valid, q.dtype)


def _check_ring(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: Tensor, dtype: torch.dtype) -> None:
    expect("k_ring", k_ring, (None, None, *q.shape[1:]), q.dtype, q.device)
    expect("v_ring", v_ring, tuple(k_ring.shape), dtype, q.device)
    if k_ring.shape[0] * k_ring.shape[1] == 0:
        raise ValueError(f"k_ring must not be empty, got {list(k_ring.shape)}")
    expect("valid", valid, (1,), torch.int32, q.device)


def _fake_int8(q: Tensor, q_scale: Tensor, k_ring: Tensor, k_scale: Tensor, v_ring: Tensor, valid: Tensor) -> Tensor:
    _check_int8(q, q_scale, k_ring, k_scale, v_ring, valid)
    return v_ring.new_empty(q.shape)


@op(fake=_fake_int8)
def ring_attention_int8(
    q: Tensor, q_scale: Tensor, k_ring: Tensor, k_scale: Tensor, v_ring: Tensor, valid: Tensor
) -> Tensor:
    """``ring_attention`` of queries and keys in int8, and of plain values.

    ``softmax_j(q_scale[h, i] * k_scale[h, j / 8] * (q[i, h] . k[j, h]) / sqrt(hd)) v``, the products of integers exact:

    - q [N, H, hd] int8, contiguous; q_scale [H, N] float32, finite and not negative: of each token and head.
    - k_ring [slots, S, H, hd] int8, S a multiple of 8; k_scale [H, G] float32, of each head and each 8 tokens counted
      over all slots: the first slots * S / 8 of G; v_ring [slots, S, H, hd] bfloat16, float32 or float64; all
      contiguous.
    - valid [1], int32, as in ``ring_attention``: tokens from there on may hold anything, NaN too, and so may scales of
      which no token is valid. A scale of 0 makes scores 0.

    Returns [N, H, hd] of v_ring's dtype, contiguous; zeros with valid <= 0. Source: SageAttention, arXiv 2410.02367,
    for integers in q kT beside floating point in p v. Raises ValueError naming the argument that does not fit.
    """
    _check_int8(q, q_scale, k_ring, k_scale, v_ring, valid)
    wide = torch.promote_types(v_ring.dtype, torch.float32)
    queries = q.to(wide) * q_scale.T[..., None]
    keys = k_ring.flatten(0, 1).to(wide)
    keys = keys * k_scale.repeat_interleave(KEY_RUN, dim=1)[:, : len(keys)].T[..., None]
    return _attend(queries, keys, v_ring.flatten(0, 1).to(wide), valid).to(v_ring.dtype)


def _check_int8(q: Tensor, q_scale: Tensor, k_ring: Tensor, k_scale: Tensor, v_ring: Tensor, valid: Tensor) -> None:
    expect("q", q, (None, None, None), torch.int8, q.device)
    expect_float("v_ring", v_ring)
    _check_ring(q, k_ring, v_ring, valid, v_ring.dtype)
    rows, heads, _ = q.shape
    expect("q_scale", q_scale, (heads, rows), torch.float32, q.device)
    expect_key_scales(k_ring, k_scale)


def _fits_cuda(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: Tensor) -> bool:
    return (
        q.dtype == torch.bfloat16
        and native.on_hopper(q)
        and q.dim() == 3
        and q.shape[2] == 128
        and q.stride(2) == 1
        and native.rows_of_vectors(q)
        and all(t.is_contiguous() and t.data_ptr() % 16 == 0 for t in (k_ring, v_ring))
    )


@ring_attention.impl("cuda", when=_fits_cuda)
def _cuda(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: Tensor) -> Tensor:
    _check(q, k_ring, v_ring, valid)
    return torch.ops.longlive_C.ring_attention(q, k_ring, v_ring, valid)


if triton:
    # Triton's interpreter has no product of bfloat16.
    INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

    @triton.jit
    def _product(a, b, WIDE: tl.constexpr):
        if WIDE:
            return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
        return tl.dot(a, b)

    # Not specialised: what varies with the picture and the stream must not wait for a compiler in the middle of it.
    @triton.jit(do_not_specialize=["rows", "tokens", "scales"])
    def _kernel(
        q, q_scale, k_ring, k_scale, v_ring, valid, out, rows, tokens, scales, q_stride, heads, scale_log2,
        DIM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr, RUN: tl.constexpr,
    ):  # fmt: skip
        tile, head, size = tl.program_id(0), tl.program_id(1), heads * DIM
        row, channel = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
        live = (row < rows)[:, None]
        if RUN:
            scale_log2 *= tl.load(q_scale + head.to(tl.int64) * rows + row, mask=row < rows, other=0.0)[:, None]
            k_scale += head.to(tl.int64) * scales
        row = row.to(tl.int64)[:, None]
        query = tl.load(q + row * q_stride + head * DIM + channel, mask=live, other=0.0)
        # Precision: float32, but p is rounded to the values' dtype for p v. row_max starts finite: rows without keys
        # then meet no difference of infinities.
        row_max = tl.full((ROWS,), -3.0e38, tl.float32)
        row_sum = tl.zeros((ROWS,), tl.float32)
        acc = tl.zeros((ROWS, DIM), tl.float32)
        end = tl.minimum(tl.load(valid), tokens)
        for start in range(0, end, KEYS):
            token = start + tl.arange(0, KEYS)
            seen = token < end
            at = token.to(tl.int64)[:, None] * size + head * DIM + channel
            key = tl.load(k_ring + at, mask=seen[:, None], other=0.0)
            if RUN:
                products = tl.dot(query, tl.trans(key), out_dtype=tl.int32).to(tl.float32)
                products *= tl.load(k_scale + token // RUN, mask=seen, other=0.0)
            else:
                products = _product(query, tl.trans(key), WIDE)
            scores = tl.where(seen, products * scale_log2, -float("inf"))
            before = row_max
            row_max = tl.maximum(before, tl.max(scores, axis=1))
            p = tl.exp2(scores - row_max[:, None])
            rescale = tl.exp2(before - row_max)
            row_sum = row_sum * rescale + tl.sum(p, axis=1)
            value = tl.load(v_ring + at, mask=seen[:, None], other=0.0)
            acc = acc * rescale[:, None] + _product(p.to(value.dtype), value, WIDE)
        result = acc / tl.where(row_sum == 0, 1.0, row_sum)[:, None]
        tl.store(out + row * size + head * DIM + channel, result.to(out.dtype.element_ty), mask=live)

    def _fits_triton(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: Tensor) -> bool:
        return on_gpu(q) and q.shape[-1] in (16, 32, 64, 128)

    @ring_attention.impl("triton", when=_fits_triton)
    def _triton(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: Tensor) -> Tensor:
        _check(q, k_ring, v_ring, valid)
        return _launch(q, None, k_ring, None, v_ring, valid)

    def _fits_triton_int8(q, q_scale, k_ring, k_scale, v_ring, valid) -> bool:
        return on_gpu(v_ring) and q.shape[-1] in (32, 64, 128)

    @ring_attention_int8.impl("triton", when=_fits_triton_int8)
    def _triton_int8(
        q: Tensor, q_scale: Tensor, k_ring: Tensor, k_scale: Tensor, v_ring: Tensor, valid: Tensor
    ) -> Tensor:
        _check_int8(q, q_scale, k_ring, k_scale, v_ring, valid)
        return _launch(q, q_scale, k_ring, k_scale, v_ring, valid)

    def _launch(
        q: Tensor, q_scale: Tensor | None, k_ring: Tensor, k_scale: Tensor | None, v_ring: Tensor, valid: Tensor
    ) -> Tensor:
        rows, heads, dim = q.shape
        out = v_ring.new_empty(q.shape)
        narrow = v_ring.dtype == torch.bfloat16
        tile, keys = (128, 64) if narrow else (64, 32)
        if rows == 0:
            return out
        scales = 0 if k_scale is None else k_scale.shape[1]
        scale_log2 = 1.4426950408889634 / dim**0.5  # exp(x / sqrt(d)) = exp2(scale_log2 x)
        with torch.cuda.device_of(q):
            _kernel[(triton.cdiv(rows, tile), heads)](
                q, q_scale, k_ring, k_scale, v_ring, valid, out,
                rows, k_ring.shape[0] * k_ring.shape[1], scales, q.stride(0), heads, scale_log2,
                DIM=dim, ROWS=tile, KEYS=keys, WIDE=INTERPRETED or not narrow, RUN=KEY_RUN if scales else 0,
                num_warps=8 if narrow else 4, num_stages=3 if narrow else 2,
            )  # fmt: skip
        return out
