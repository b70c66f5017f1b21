"""ring_attention: softmax(q kT / sqrt(d)) v over runs of tokens of a ring, read in place."""

import contextlib
import os

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import native
from .checks import expect, expect_float, on_gpu
from .registry import forced, op

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

_LIBRARY_ORDER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


@op()
def ring_attention(q: Tensor, k_ring: Tensor, v_ring: Tensor, ranges: Tensor, split: int | None = None) -> Tensor:
    """``softmax(q kT / sqrt(hd)) v`` over the tokens in ``ranges``; no mask beside them, so their order is irrelevant.

    - q [N, H, hd], rows of any stride; k_ring, v_ring [slots, S, H, hd], contiguous; one dtype: bfloat16, float32 or
      float64.
    - ranges [G, 2, 2], int32, contiguous, on q's device: two runs [begin, end) of tokens of the ring, counted over all
      its slots, for each of G = 1 or 2 groups of queries. Runs of a group must not overlap; one or both may be empty,
      and what lies outside of the ring is left out. They are read when the operator runs: a captured graph serves all.
      On the CPU they are known to the host, which is what the library needs, also for a q on a GPU.
    - split: queries [0, split) are the first group, the others the second; N, or None, where there is one group.

    Tokens outside of a group's ranges may hold anything, NaN too. Without any token the result is zero. Returns
    [N, H, hd], contiguous. Raises ValueError naming the argument that does not fit.
    """
    split = _check(q, k_ring, v_ring, ranges, split)
    k, v = k_ring.flatten(0, 1), v_ring.flatten(0, 1)
    token = torch.arange(k.shape[0], device=q.device)
    out = []
    for rows, runs in zip(_groups(q, ranges, split), ranges.to(q.device).unbind(), strict=True):
        seen = ((token >= runs[:, :1]) & (token < runs[:, 1:])).any(dim=0)
        meant = seen[:, None, None]
        out.append(_attend(rows, k.where(meant, 0), v.where(meant, 0), seen[None]).where(seen.any(), 0))
    return torch.cat(out)


def home_of_ranges(keys: Tensor) -> torch.device:
    """Where the ranges of ``keys`` [N, ...] should lie: beside them, for our kernels, or on the host, for the library,
    which is ahead where keys are few, as a prompt's are (docs/performance.md).
    """
    few = len(keys) < 1024 and keys.dtype == torch.bfloat16
    return torch.device("cpu") if few and forced() in (None, "library") else keys.device


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask)[0].transpose(0, 1).contiguous()


def _groups(q: Tensor, ranges: Tensor, split: int) -> tuple[Tensor, ...]:
    return (q,) if ranges.shape[0] == 1 else (q[:split], q[split:])


def _check(q: Tensor, k_ring: Tensor, v_ring: Tensor, ranges: Tensor, split: int | None) -> int:
    expect_float("q", q)
    expect("q", q, (None, None, None), q.dtype, q.device, dense_from=1)
    if q.shape[1] > 1 and q.stride(1) != q.shape[2]:
        raise ValueError(f"q must have contiguous rows, got strides {q.stride()}")
    expect("k_ring", k_ring, (None, None, *q.shape[1:]), q.dtype, q.device)
    expect("v_ring", v_ring, tuple(k_ring.shape), q.dtype, q.device)
    if k_ring.shape[0] * k_ring.shape[1] == 0:
        raise ValueError(f"k_ring must not be empty, got {list(k_ring.shape)}")
    expect("ranges", ranges, (None, 2, 2), torch.int32, q.device if ranges.is_cuda else ranges.device)
    if ranges.shape[0] not in (1, 2):
        raise ValueError(f"ranges must have 1 or 2 groups, got {ranges.shape[0]}")
    rows, groups = q.shape[0], ranges.shape[0]
    if groups == 2 and split is None:
        raise ValueError("split must say where the second group of ranges begins, got None")
    split = rows if split is None else split
    if not (0 <= split <= rows if groups == 2 else split == rows):
        wanted = f"lie in 0..{rows}" if groups == 2 else f"be {rows} or None"
        raise ValueError(f"split must {wanted}, got {split}")
    return split


def _fits_library(q: Tensor, k_ring: Tensor, v_ring: Tensor, ranges: Tensor, split: int | None = None) -> bool:
    # Ranges on the device have to be waited for: only where nothing else is wanted.
    known = not ranges.is_cuda or forced() == "library"
    return known and (q.dtype == torch.bfloat16 if q.is_cuda else q.dtype.is_floating_point)


@ring_attention.impl("library", when=_fits_library)
def _library(q: Tensor, k_ring: Tensor, v_ring: Tensor, ranges: Tensor, split: int | None = None) -> Tensor:
    split = _check(q, k_ring, v_ring, ranges, split)
    out = []
    for rows, runs in zip(_groups(q, ranges, split), ranges.tolist(), strict=True):
        k, v = (_gather(ring.flatten(0, 1), runs) for ring in (k_ring, v_ring))
        # torch's own order puts FlashAttention-2 first; on Hopper cuDNN is far ahead of it.
        with sdpa_kernel(_LIBRARY_ORDER, set_priority=True) if q.is_cuda else contextlib.nullcontext():
            out.append(_attend(rows, k, v) if len(k) and len(rows) else torch.zeros_like(rows))
    return out[0] if len(out) == 1 else torch.cat(out)


def _gather(tokens: Tensor, runs: list[list[int]]) -> Tensor:
    """The runs' tokens; a view where they are one run."""
    parts = [tokens[max(begin, 0) : max(end, 0)] for begin, end in runs]
    parts = [part for part in parts if len(part)] or parts[:1]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _fits_kernel(q: Tensor, k_ring: Tensor, v_ring: Tensor, ranges: Tensor, split: int | None = None) -> bool:
    return (
        q.dtype == torch.bfloat16
        and native.on_hopper(q)
        and ranges.is_cuda
        and q.dim() == 3
        and q.shape[2] == 128
        and q.stride(2) == 1
        and native.rows_of_vectors(q)
        and all(t.is_contiguous() and t.data_ptr() % 16 == 0 for t in (k_ring, v_ring))
    )


@ring_attention.impl("cuda", when=_fits_kernel)
def _cuda(q: Tensor, k_ring: Tensor, v_ring: Tensor, ranges: Tensor, split: int | None = None) -> Tensor:
    split = _check(q, k_ring, v_ring, ranges, split)
    return torch.ops.longlive_C.ring_attention(q, k_ring, v_ring, ranges, split)


if triton:
    # Triton's interpreter has no product of bfloat16.
    INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

    @triton.jit
    def _product(a, b, WIDE: tl.constexpr):
        if WIDE:
            return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
        return tl.dot(a, b)

    # Not specialised: what varies with the picture and the stream must not wait for a compiler in the middle of it.
    @triton.jit(do_not_specialize=["rows", "split", "tokens"])
    def _kernel(
        q, k_ring, v_ring, ranges, out, rows, split, tokens, q_stride, heads, scale_log2,
        DIM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        tile, head, size = tl.program_id(0), tl.program_id(1), heads * DIM
        first_tiles = tl.cdiv(split, ROWS)
        second = tile >= first_tiles
        row = tl.where(second, split + (tile - first_tiles) * ROWS, tile * ROWS) + tl.arange(0, ROWS)
        channel = tl.arange(0, DIM)
        live = (row < tl.where(second, rows, split))[:, None]
        row = row.to(tl.int64)[:, None]
        query = tl.load(q + row * q_stride + head * DIM + channel, mask=live, other=0.0)
        ranges += tl.where(second, 4, 0)
        # Precision: float32, but for the weights of the values, which are of their dtype. The largest score starts
        # finite: rows without keys then meet no difference of infinities.
        largest = tl.full((ROWS,), -3.0e38, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        sums = tl.zeros((ROWS, DIM), tl.float32)
        for run in tl.static_range(2):
            begin = tl.maximum(tl.load(ranges + 2 * run), 0)
            end = tl.minimum(tl.load(ranges + 2 * run + 1), tokens)
            for start in range(begin, end, KEYS):
                token = start + tl.arange(0, KEYS)
                meant = token < end
                place = token.to(tl.int64)[:, None] * size + head * DIM + channel
                key = tl.load(k_ring + place, mask=meant[:, None], other=0.0)
                scores = tl.where(meant, _product(query, tl.trans(key), WIDE) * scale_log2, -float("inf"))
                before = largest
                largest = tl.maximum(before, tl.max(scores, axis=1))
                weights = tl.exp2(scores - largest[:, None])
                shrink = tl.exp2(before - largest)
                total = total * shrink + tl.sum(weights, axis=1)
                value = tl.load(v_ring + place, mask=meant[:, None], other=0.0)
                sums = sums * shrink[:, None] + _product(weights.to(value.dtype), value, WIDE)
        result = sums / tl.where(total == 0, 1.0, total)[:, None]
        tl.store(out + row * size + head * DIM + channel, result.to(out.dtype.element_ty), mask=live)

    def _fits_triton(q: Tensor, k_ring: Tensor, v_ring: Tensor, ranges: Tensor, split: int | None = None) -> bool:
        return on_gpu(q) and ranges.is_cuda and q.shape[-1] in (16, 32, 64, 128)

    @ring_attention.impl("triton", when=_fits_triton)
    def _triton(q: Tensor, k_ring: Tensor, v_ring: Tensor, ranges: Tensor, split: int | None = None) -> Tensor:
        split = _check(q, k_ring, v_ring, ranges, split)
        rows, heads, dim = q.shape
        out = q.new_empty(q.shape)
        narrow = q.dtype == torch.bfloat16
        tile, keys = (128, 64) if narrow else (64, 32)
        tiles = triton.cdiv(split, tile) + triton.cdiv(rows - split, tile)
        if tiles == 0:
            return out
        scale_log2 = 1.4426950408889634 / dim**0.5  # exp(x / sqrt(d)) = exp2(scale_log2 x)
        with torch.cuda.device_of(q):
            _kernel[(tiles, heads)](
                q, k_ring, v_ring, ranges, out, rows, split, k_ring.shape[0] * k_ring.shape[1], q.stride(0), heads,
                scale_log2, DIM=dim, ROWS=tile, KEYS=keys, WIDE=INTERPRETED or not narrow,
                num_warps=8 if narrow else 4, num_stages=3 if narrow else 2,
            )  # fmt: skip
        return out
