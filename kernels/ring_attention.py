"""ring_attention: softmax(q kT / sqrt(d)) v over the first tokens of a ring, read in place."""

import os

import torch
from torch import Tensor

from . import native
from .attention import attend, expect_queries
from .checks import expect, on_gpu
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
    k, v = k_ring.flatten(0, 1), v_ring.flatten(0, 1)
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
    expect("k_ring", k_ring, (None, None, *q.shape[1:]), q.dtype, q.device)
    expect("v_ring", v_ring, tuple(k_ring.shape), q.dtype, q.device)
    if k_ring.shape[0] * k_ring.shape[1] == 0:
        raise ValueError(f"k_ring must not be empty, got {list(k_ring.shape)}")
    expect("valid", valid, (1,), torch.int32, q.device)


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
    @triton.jit(do_not_specialize=["rows", "tokens"])
    def _kernel(
        q, k_ring, v_ring, valid, out, rows, tokens, q_stride, heads, scale_log2,
        DIM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        tile, head, size = tl.program_id(0), tl.program_id(1), heads * DIM
        row, channel = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
        live = (row < rows)[:, None]
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
            scores = tl.where(seen, _product(query, tl.trans(key), WIDE) * scale_log2, -float("inf"))
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
        rows, heads, dim = q.shape
        out = q.new_empty(q.shape)
        narrow = q.dtype == torch.bfloat16
        tile, keys = (128, 64) if narrow else (64, 32)
        if rows == 0:
            return out
        scale_log2 = 1.4426950408889634 / dim**0.5  # exp(x / sqrt(d)) = exp2(scale_log2 x)
        with torch.cuda.device_of(q):
            _kernel[(triton.cdiv(rows, tile), heads)](
                q, k_ring, v_ring, valid, out, rows, k_ring.shape[0] * k_ring.shape[1], q.stride(0), heads, scale_log2,
                DIM=dim, ROWS=tile, KEYS=keys, WIDE=INTERPRETED or not narrow,
                num_warps=8 if narrow else 4, num_stages=3 if narrow else 2,
            )  # fmt: skip
        return out
