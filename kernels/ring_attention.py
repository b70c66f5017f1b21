"""ring_attention: softmax(q kT / sqrt(d)) v over the first tokens of a ring, read in place."""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import native
from .attention import attend, expect_queries
from .checks import expect, expect_float, on_gpu
from .quantize_keys import KEY_RUN, expect_key_scales
from .registry import op
from .triton_import import INTERPRETED, generation, multiprocessors, tl, triton


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
    _check_keys(q, k_ring, valid)
    expect("v_ring", v_ring, tuple(k_ring.shape), q.dtype, q.device)


def _check_keys(q: Tensor, k_ring: Tensor, valid: Tensor) -> None:
    expect("k_ring", k_ring, (None, None, *q.shape[1:]), q.dtype, q.device)
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
    queries, keys = _of_integers(q, q_scale, k_ring, k_scale, wide)
    return _attend(queries, keys, v_ring.flatten(0, 1).to(wide), valid).to(v_ring.dtype)


def _of_integers(
    q: Tensor, q_scale: Tensor, k_ring: Tensor, k_scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The queries [N, H, hd] and keys [slots * S, H, hd] that integers and their scales stand for."""
    keys = k_ring.flatten(0, 1).to(dtype)
    k_scales = k_scale.repeat_interleave(KEY_RUN, dim=1)[:, : len(keys)]
    return q.to(dtype) * q_scale.T[..., None], keys * k_scales.T[..., None]


def _check_integers(q: Tensor, q_scale: Tensor, k_ring: Tensor, k_scale: Tensor, valid: Tensor) -> None:
    expect("q", q, (None, None, None), torch.int8, q.device)
    _check_keys(q, k_ring, valid)
    rows, heads, _ = q.shape
    expect("q_scale", q_scale, (heads, rows), torch.float32, q.device)
    expect_key_scales(k_ring, k_scale)


def _check_int8(q: Tensor, q_scale: Tensor, k_ring: Tensor, k_scale: Tensor, v_ring: Tensor, valid: Tensor) -> None:
    _check_integers(q, q_scale, k_ring, k_scale, valid)
    expect_float("v_ring", v_ring)
    expect("v_ring", v_ring, tuple(k_ring.shape), v_ring.dtype, q.device)


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


def _fits_cuda_int8(q: Tensor, q_scale: Tensor, k_ring: Tensor, k_scale: Tensor, v_ring: Tensor, valid: Tensor) -> bool:
    return (
        v_ring.dtype == torch.bfloat16
        and native.on_hopper(q)
        and q.dim() == 3
        and q.shape[2] == 128
        and k_scale.shape[-1] % 4 == 0  # heads' scales start at multiples of 16 bytes
        and all(t.is_contiguous() and t.data_ptr() % 16 == 0 for t in (q, k_ring, k_scale, v_ring))
    )


@ring_attention_int8.impl("cuda", when=_fits_cuda_int8)
def _cuda_int8(q: Tensor, q_scale: Tensor, k_ring: Tensor, k_scale: Tensor, v_ring: Tensor, valid: Tensor) -> Tensor:
    _check_int8(q, q_scale, k_ring, k_scale, v_ring, valid)
    return torch.ops.longlive_C.ring_attention_int8(q, q_scale, k_ring, k_scale, v_ring, valid)


if triton:
    _LOG2_E = math.log2(math.e)  # exp(x / sqrt(d)) = exp2(_LOG2_E / sqrt(d) x)

    class _Tile(NamedTuple):
        """What a program computes, and how: ROWS queries of a head, KEYS keys at a time."""

        ROWS: int
        KEYS: int
        num_warps: int
        num_stages: int
        registers: int | None = None  # of a thread, at most
        half: bool = False  # int8's p and values, and a tile's sums of them, are float16
        bits: bool = False  # int8's sums become floats by their bits
        together: int | None = None  # int8's programs that a multiprocessor holds: their last wave is cut into pieces

        @classmethod
        def of(cls, capability: tuple[int, int], narrow: bool, in_int8: bool) -> _Tile:
            """For values of bfloat16, or else of float32."""
            if not narrow:
                return cls(64, 32, 4 if in_int8 else 8, 2)
            if not in_int8:
                return cls(128, 64, 8, 3)
            if capability[0] == 9:  # two programs share a multiprocessor: one's softmax overlaps the other's products
                return cls(128, 32, 8, 4, registers=128, together=2)
            # GeForce adds products to float32 at half the speed, and to float16 at full speed; Ampere's first chip
            # converts integers as slowly as it computes exponentials.
            half = capability in ((8, 6), (8, 9), (12, 0), (12, 1))
            return cls(128, 64, 8, 3, half=half, bits=capability == (8, 0))

    @triton.jit
    def _product(a, b, total, WIDE: tl.constexpr):
        if WIDE:
            return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
        return tl.dot(a, b, total)

    @triton.jit
    def _result(acc, row_sum, out, mask):
        """Rows without keys have sums of zero."""
        result = acc / tl.where(row_sum == 0, 1.0, row_sum)[:, None]
        tl.store(out, result.to(out.dtype.element_ty), mask=mask)

    @triton.jit
    def _add_keys(query, key, value, seen, row_max, row_sum, acc, factor, WIDE: tl.constexpr, MASKED: tl.constexpr):
        """A tile of keys, behind ``row_max``, the largest score so far: ``seen`` says which of them there are."""
        scores = _product(query, tl.trans(key), tl.zeros((query.shape[0], key.shape[0]), tl.float32), WIDE)
        if MASKED:
            scores = tl.where(seen, scores, -float("inf"))
        before = row_max
        row_max = tl.maximum(before, tl.max(scores, axis=1) * factor)
        # Precision: float32, but p is rounded to the values' dtype for p v.
        p = tl.exp2(scores * factor - row_max[:, None])
        rescale = tl.exp2(before - row_max)
        row_sum = row_sum * rescale + tl.sum(p, axis=1)
        return row_max, row_sum, _product(p.to(value.dtype), value, acc * rescale[:, None], WIDE)

    # Not specialised: what varies with the picture and the stream must not wait for a compiler in the middle of it.
    @triton.jit(do_not_specialize=["rows", "tokens"])
    def _kernel(
        q, k_ring, v_ring, valid, out, rows, tokens, q_stride, heads, scale_log2,
        DIM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        size, first = heads * DIM, tl.program_id(1) * DIM
        row, channel, token = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, KEYS)
        live = (row < rows)[:, None]
        row = row.to(tl.int64)[:, None]
        query = tl.load(q + row * q_stride + first + channel, mask=live, other=0.0)
        # Finite: rows without keys then meet no difference of infinities.
        row_max = tl.full((ROWS,), -3.0e38, tl.float32)
        row_sum = tl.zeros((ROWS,), tl.float32)
        acc = tl.zeros((ROWS, DIM), tl.float32)
        end = tl.maximum(tl.minimum(tl.load(valid), tokens), 0)
        at = token[:, None] * size + first + channel
        for _ in range(0, end // KEYS):
            key, value = tl.load(k_ring + at), tl.load(v_ring + at)
            row_max, row_sum, acc = _add_keys(
                query, key, value, None, row_max, row_sum, acc, scale_log2, WIDE, MASKED=False
            )
            k_ring += KEYS * size
            v_ring += KEYS * size
        if end % KEYS > 0:
            seen = token < end % KEYS
            key = tl.load(k_ring + at, mask=seen[:, None], other=0.0)
            value = tl.load(v_ring + at, mask=seen[:, None], other=0.0)
            row_max, row_sum, acc = _add_keys(
                query, key, value, seen, row_max, row_sum, acc, scale_log2, WIDE, MASKED=True
            )
        _result(acc, row_sum, out + row * size + first + channel, live)

    @triton.jit
    def _scores(query, key, factor, scale, RUN: tl.constexpr, BITS: tl.constexpr):
        """Logarithms to the base 2 of what the softmax sums, [ROWS, KEYS / RUN, RUN]: RUN keys share a scale."""
        ROWS: tl.constexpr = query.shape[0]
        KEYS: tl.constexpr = key.shape[0]
        if BITS:  # a sum of less than 2^22, added to the bits of 1.5 * 2^23, leaves those of 1.5 * 2^23 plus the sum
            sums = tl.dot(query, tl.trans(key), tl.full((ROWS, KEYS), 0x4B400000, tl.int32), out_dtype=tl.int32)
            products = tl.cast(sums, tl.float32, bitcast=True) - 12582912.0
        else:
            products = tl.dot(query, tl.trans(key), out_dtype=tl.int32).to(tl.float32)
        return tl.reshape(products, (ROWS, KEYS // RUN, RUN)) * (factor[:, None] * scale)[:, :, None]

    @triton.jit
    def _masked_scores(query, factor, keys, scales, at, left, RUN: tl.constexpr, BITS: tl.constexpr):
        """Scores of the ``left`` keys that there are at ``keys``, and which of them these are.

        Others have -3e38, which is finite, since a scale may be 0.
        """
        KEYS: tl.constexpr = at.shape[0]
        token, run = tl.arange(0, KEYS), tl.arange(0, KEYS // RUN)
        key = tl.load(keys + at, mask=(token < left)[:, None], other=0)
        scale = tl.load(scales + run, mask=run * RUN < left, other=0.0)
        seen = tl.reshape(token, (1, KEYS // RUN, RUN)) < left
        return tl.where(seen, _scores(query, key, factor, scale, RUN, BITS), -3.0e38), seen

    @triton.jit
    def _masked_values(values, at, left):
        return tl.load(values + at, mask=(tl.arange(0, at.shape[0]) < left)[:, None], other=0.0)

    @triton.jit
    def _add_values(p, value, acc, WIDE: tl.constexpr):
        """Adds p [ROWS, KEYS / RUN, RUN] times the values to the sums."""
        # Precision: p is rounded to the values' dtype; of halves a tile's sums are halves, too.
        p = tl.reshape(p.to(value.dtype), (p.shape[0], value.shape[0]))
        if value.dtype == tl.float16:
            return acc + tl.dot(p, value, out_dtype=tl.float16).to(tl.float32)
        return _product(p, value, acc, WIDE)

    @triton.jit
    def _add_below_maximum(scores, seen, value, row_max, row_sum, acc, WIDE: tl.constexpr, MASKED: tl.constexpr):
        """A tile of keys by the online softmax; a row's sums are added up at the end."""
        before = row_max
        row_max = tl.maximum(before, tl.max(tl.max(scores, axis=1), axis=1))
        p = tl.exp2(scores - row_max[:, None, None])
        if MASKED:
            p = tl.where(seen, p, 0.0)
        rescale = tl.exp2(before - row_max)[:, None]
        return row_max, row_sum * rescale + tl.sum(p, axis=1), _add_values(p, value, acc * rescale, WIDE)

    @triton.jit
    def _sums_int8(
        q, q_scale, k_ring, k_scale, v_ring, rows, size, end, first, last, tile, scale_log2,
        DIM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr, RUN: tl.constexpr,
        BITS: tl.constexpr,
    ):  # fmt: skip
        """Of a head's keys from step ``first`` to ``last``: the rows' shift, sums of p, and of p v."""
        HALF: tl.constexpr = v_ring.dtype.element_ty == tl.float16
        row, channel, run = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, KEYS // RUN)
        live = row < rows
        factor = tl.load(q_scale + row, mask=live, other=0.0) * scale_log2
        query = tl.load(q + row.to(tl.int64)[:, None] * size + channel, mask=live[:, None], other=0)
        at = tl.arange(0, KEYS)[:, None] * size + channel
        row_max = tl.full((ROWS,), -3.0e38, tl.float32)
        row_sum = tl.zeros((ROWS, RUN), tl.float32)
        acc = tl.zeros((ROWS, DIM), tl.float32)
        if not HALF:
            # p and its sums are floats, so any shift near a row's largest score serves: that of the first keys stands.
            scores, _ = _masked_scores(query, factor, k_ring, k_scale, at, end, RUN, BITS)
            row_max = tl.reshape(tl.max(tl.max(scores, axis=1), axis=1), (ROWS,)) + 32.0
        skipped = tl.cast(first, tl.int64) * KEYS * size
        k_ring, v_ring, k_scale = k_ring + skipped, v_ring + skipped, k_scale + first * (KEYS // RUN)
        keys, values, scale_at = k_ring, v_ring, k_scale
        end = tl.minimum(end, last * KEYS) - first * KEYS
        left = end % KEYS

        if HALF:  # halves have no room for anything but the maximum
            for _ in range(0, end // KEYS):
                key, scale, value = tl.load(keys + at), tl.load(scale_at + run), tl.load(values + at)
                scores = _scores(query, key, factor, scale, RUN, BITS)
                row_max, row_sum, acc = _add_below_maximum(
                    scores, None, value, row_max, row_sum, acc, WIDE, MASKED=False
                )
                keys += KEYS * size
                values += KEYS * size
                scale_at += KEYS // RUN
            if left > 0:
                scores, seen = _masked_scores(query, factor, keys, scale_at, at, left, RUN, BITS)
                value = _masked_values(values, at, left)
                row_max, row_sum, acc = _add_below_maximum(
                    scores, seen, value, row_max, row_sum, acc, WIDE, MASKED=True
                )
        else:
            shift = tl.reshape(row_max, (ROWS, 1, 1))
            for _ in range(0, end // KEYS):
                key, scale = tl.load(keys + at), tl.load(scale_at + run)
                p = tl.exp2(_scores(query, key, factor, scale, RUN, BITS) - shift)
                row_sum += tl.sum(p, axis=1)
                acc = _add_values(p, tl.load(values + at), acc, WIDE)
                keys += KEYS * size
                values += KEYS * size
                scale_at += KEYS // RUN
            if left > 0:
                scores, seen = _masked_scores(query, factor, keys, scale_at, at, left, RUN, BITS)
                p = tl.where(seen, tl.exp2(scores - shift), 0.0)
                row_sum += tl.sum(p, axis=1)
                acc = _add_values(p, _masked_values(values, at, left), acc, WIDE)
            largest = tl.cast(tl.max(tl.max(row_sum, axis=1), axis=0), tl.float32)
            if largest >= 2.0**64:  # a score far above the first ones: once more
                row_max = tl.full((ROWS,), -3.0e38, tl.float32)
                row_sum = tl.zeros((ROWS, RUN), tl.float32)
                acc = tl.zeros((ROWS, DIM), tl.float32)
                for start in tl.range(0, end, KEYS, num_stages=1):  # pyright: ignore[reportGeneralTypeIssues]
                    scores, seen = _masked_scores(query, factor, k_ring, k_scale, at, end - start, RUN, BITS)
                    value = _masked_values(v_ring, at, end - start)
                    row_max, row_sum, acc = _add_below_maximum(
                        scores, seen, value, row_max, row_sum, acc, WIDE, MASKED=True
                    )
                    k_ring += KEYS * size
                    v_ring += KEYS * size
                    k_scale += KEYS // RUN
        return row_max, tl.sum(row_sum, axis=1), acc

    @triton.jit
    def _piece(pieces, place, whole, parts, steps):
        """A program's tile, and its first and last step of KEYS keys."""
        shared = place >= whole
        here = pieces + 4 * (place - whole)
        tile = tl.where(shared, whole + tl.load(here, mask=shared, other=0), place)
        first = tl.load(here + 1, mask=shared, other=0) * steps // parts
        return tile, first, tl.load(here + 2, mask=shared, other=parts) * steps // parts

    @triton.jit(do_not_specialize=["rows", "tokens", "scales", "whole", "parts"])
    def _kernel_int8(
        q, q_scale, k_ring, k_scale, v_ring, valid, out, pieces, sums, rows, tokens, scales, heads, whole, parts,
        scale_log2,
        DIM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr, RUN: tl.constexpr,
        BITS: tl.constexpr, ALIGNED: tl.constexpr, SPLIT: tl.constexpr,
    ):  # fmt: skip
        """With SPLIT programs from ``whole`` on have pieces of a head's keys, whose sums ``_combine`` adds up."""
        if ALIGNED:  # says that it is a multiple of 4: then four scales are one copy
            scales = scales // 4 * 4
        size, row_tiles = heads * DIM, tl.cdiv(rows, ROWS)
        end = tl.maximum(tl.minimum(tl.load(valid), tokens), 0)
        place = tl.program_id(0)
        tile, first, last = place, 0, tl.cdiv(end, KEYS)
        if SPLIT:
            tile, first, last = _piece(pieces, place, whole, parts, last)
        head = (tile // row_tiles).to(tl.int64)
        here = head * DIM
        row_max, row_sum, acc = _sums_int8(
            q + here, q_scale + head * rows, k_ring + here, k_scale + head * scales, v_ring + here,
            rows, size, end, first, last, tile % row_tiles, scale_log2, DIM, ROWS, KEYS, WIDE, RUN, BITS,
        )  # fmt: skip
        row, channel = tl.arange(0, ROWS), tl.arange(0, DIM)
        if not SPLIT or place < whole:
            row += tile % row_tiles * ROWS
            _result(acc, row_sum, out + here + row.to(tl.int64)[:, None] * size + channel, (row < rows)[:, None])
        else:
            sums += tl.load(pieces + 4 * (place - whole) + 3) * (ROWS * (DIM + 2))
            tl.store(sums + row[:, None] * DIM + channel, acc)
            tl.store(sums + ROWS * DIM + row, row_sum)
            tl.store(sums + ROWS * (DIM + 1) + row, row_max)

    @triton.jit(do_not_specialize=["rows", "whole"])
    def _combine(
        sums, starts, out, rows, heads, whole, DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
    ):  # fmt: skip
        """The pieces' sums of tile ``whole`` + program, BLOCK rows, by each row's largest shift."""
        row_tiles, size, tile = tl.cdiv(rows, ROWS), heads * DIM, whole + tl.program_id(0)
        row, channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, DIM)
        row_max = tl.full((BLOCK,), -3.0e38, tl.float32)
        row_sum = tl.zeros((BLOCK,), tl.float32)
        acc = tl.zeros((BLOCK, DIM), tl.float32)
        first = tl.load(starts + tl.program_id(0))
        sums += first * (ROWS * (DIM + 2))
        for _ in range(first, tl.load(starts + tl.program_id(0) + 1)):
            before, own = row_max, tl.load(sums + ROWS * (DIM + 1) + row)
            row_max = tl.maximum(before, own)
            old, new = tl.exp2(before - row_max), tl.exp2(own - row_max)
            row_sum = row_sum * old + tl.load(sums + ROWS * DIM + row) * new
            acc = acc * old[:, None] + tl.load(sums + row[:, None] * DIM + channel) * new[:, None]
            sums += ROWS * (DIM + 2)
        row += tile % row_tiles * ROWS
        out += (tile // row_tiles).to(tl.int64) * DIM + row.to(tl.int64)[:, None] * size + channel
        _result(acc, row_sum, out, (row < rows)[:, None])

    class _Pieces(NamedTuple):
        """Tiles that are no whole wave of programs, cut into pieces: then all multiprocessors end at the same time."""

        whole: int  # tiles before these, a program each
        parts: int  # of a tile's keys: the unit of pieces
        pieces: Tensor  # int32 [pieces, 4], longest first: tile, first and last part, and where its sums go
        starts: Tensor  # int32 [tiles + 1]: where a tile's sums begin

        @classmethod
        @functools.cache
        def of(cls, tiles: int, wave: int, device: torch.device) -> _Pieces | None:
            """None where that would gain nothing. A piece is one program's share of all, or what a tile has of it."""
            rest = tiles % wave
            programs = min(wave, 8 * rest)
            if rest == 0 or 10 * rest > 9 * programs:
                return None
            common = math.gcd(rest, programs)
            share, parts = rest // common, programs // common
            ends = sorted({*range(0, rest * parts + 1, share), *range(0, rest * parts + 1, parts)})
            between = enumerate(itertools.pairwise(ends))
            found = [(a // parts, a % parts, (b - 1) % parts + 1, i) for i, (a, b) in between]
            starts = [ends.index(tile * parts) for tile in range(rest + 1)]
            found.sort(key=lambda piece: piece[1] - piece[2])
            as_tensor = functools.partial(torch.tensor, dtype=torch.int32, device=device)
            return cls(tiles - rest, parts, as_tensor(found), as_tensor(starts))

    def _fits_triton(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: Tensor) -> bool:
        return on_gpu(q) and q.shape[-1] in (16, 32, 64, 128)

    @ring_attention.impl("triton", when=_fits_triton)
    def _triton(q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: Tensor) -> Tensor:
        _check(q, k_ring, v_ring, valid)
        tile = _Tile.of(generation(q.device), q.dtype == torch.bfloat16, in_int8=False)
        return _launch(tile, q, k_ring, v_ring, valid)

    def _launch(tile: _Tile, q: Tensor, k_ring: Tensor, v_ring: Tensor, valid: Tensor) -> Tensor:
        rows, heads, dim = q.shape
        out = v_ring.new_empty(q.shape)
        if rows == 0:
            return out
        with torch.cuda.device_of(q):
            _kernel[(triton.cdiv(rows, tile.ROWS), heads)](
                q, k_ring, v_ring, valid, out,
                rows, k_ring.shape[0] * k_ring.shape[1], q.stride(0), heads, _LOG2_E / dim**0.5,
                DIM=dim, ROWS=tile.ROWS, KEYS=tile.KEYS, WIDE=INTERPRETED or q.dtype != torch.bfloat16,
                num_warps=tile.num_warps, num_stages=tile.num_stages, maxnreg=tile.registers, enable_fp_fusion=True,
            )  # fmt: skip
        return out

    def _fits_triton_int8(q, q_scale, k_ring, k_scale, v_ring, valid) -> bool:
        return on_gpu(v_ring) and q.shape[-1] in (32, 64, 128)

    @ring_attention_int8.impl("triton", when=_fits_triton_int8)
    def _triton_int8(
        q: Tensor, q_scale: Tensor, k_ring: Tensor, k_scale: Tensor, v_ring: Tensor, valid: Tensor
    ) -> Tensor:
        _check_int8(q, q_scale, k_ring, k_scale, v_ring, valid)
        tile = _Tile.of(generation(q.device), v_ring.dtype == torch.bfloat16, in_int8=True)
        return _launch_int8(tile, q, q_scale, k_ring, k_scale, v_ring, valid)

    def _launch_int8(
        tile: _Tile, q: Tensor, q_scale: Tensor, k_ring: Tensor, k_scale: Tensor, v_ring: Tensor, valid: Tensor
    ) -> Tensor:
        rows, heads, dim = q.shape
        out = v_ring.new_empty(q.shape)
        if rows == 0:
            return out
        # Precision: values beyond 65504 become infinite.
        values = v_ring.to(torch.float16) if tile.half else v_ring
        tokens, tiles = k_ring.shape[0] * k_ring.shape[1], triton.cdiv(rows, tile.ROWS) * heads
        split = _Pieces.of(tiles, tile.together * multiprocessors(q.device), q.device) if tile.together else None
        whole, pieces = (split.whole, len(split.pieces)) if split else (tiles, 0)
        sums = q_scale.new_empty(pieces, tile.ROWS, dim + 2)
        with torch.cuda.device_of(q):
            _kernel_int8[(whole + pieces,)](
                q, q_scale, k_ring, k_scale, values, valid, out, split.pieces if split else valid, sums,
                rows, tokens, k_scale.shape[1], heads, whole, split.parts if split else 1, _LOG2_E / dim**0.5,
                DIM=dim, ROWS=tile.ROWS, KEYS=tile.KEYS, WIDE=INTERPRETED or v_ring.dtype != torch.bfloat16,
                RUN=KEY_RUN, BITS=tile.bits, ALIGNED=k_scale.shape[1] % 4 == k_scale.data_ptr() % 16 == 0,
                SPLIT=split is not None,
                num_warps=tile.num_warps, num_stages=tile.num_stages, maxnreg=tile.registers, enable_fp_fusion=True,
            )  # fmt: skip
            if split:
                _combine[(tiles - whole, tile.ROWS // 16)](
                    sums, split.starts, out, rows, heads, whole, DIM=dim, ROWS=tile.ROWS, BLOCK=16,
                    enable_fp_fusion=True,
                )  # fmt: skip
        return out
