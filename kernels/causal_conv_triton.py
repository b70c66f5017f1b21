"""The video autoencoder's convolutions on Triton, for any CUDA GPU: an implicit GEMM with what follows as its epilogue.

One kernel serves ``causal_conv`` and ``causal_conv_int8``; its loop serves ``conv_pixels`` too.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from .causal_conv import (
    _EPS,
    _PART,
    _RESULTS,
    _RUN,
    _SLICES,
    _TAPS,
    GROUP,
    LARGEST,
    Kind,
    _check,
    _history,
    _Outputs,
    _padded,
    _width,
    causal_conv,
)
from .checks import on_gpu
from .int8_linear import packed_row
from .triton_import import INTERPRETED, tl, triton

_NONE = tl.constexpr(16)  # of a pixel's bits: clear, as there are at most nine taps


@triton.jit
def _whole_steps_of(y, live, saturated, inverse, MOST: tl.constexpr):
    """``_whole_steps`` of what is ``live``, as int8."""
    steps = y * inverse
    over = (steps < MOST + 0.5) == 0
    count = tl.sum((over & live).to(tl.int32)).to(tl.int64)
    if count != 0:
        tl.atomic_add(saturated, count)
    # 1.5 2^23 leaves a float32 no bits below 1: its last eight are the rounded number.
    return (tl.where(over, MOST, steps) + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def _tile_at(t, frame, size, channel, pixel, area, GROUP: tl.constexpr):
    """Addresses of [pixel, channel] in a frame of ``size`` elements, whose channels lie in groups."""
    at = (channel // GROUP * area)[None] + pixel[:, None]
    return t + frame.to(tl.int64) * size + at * GROUP + (channel % GROUP)[None]


@triton.jit
def _store_act(
    y, factor, gain, act, frame, size, channel, pixel, area, live, saturated, inverse,
    INT8: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """SiLU(y factor gain) into ``act``; y [pixels, channels] in float32."""
    z = y * factor[:, None] * gain[None]
    z = z * tl.sigmoid(z)
    if INT8:
        to = _tile_at(act, frame, size, channel, pixel, area, 16)
        tl.store(to, _whole_steps_of(z, live, saturated, inverse, MOST), mask=live)
    else:
        tl.store(_tile_at(act, frame, size, channel, pixel, area, 8), z.to(act.dtype.element_ty), mask=live)


# Not specialised: what varies with the picture, or with where a list begins, must not wait for a compiler in the middle
# of a stream.
@triton.jit(do_not_specialize=["pixels"], do_not_specialize_on_alignment=["x_frames", "act_frames", "saturated"])
def _norm_kernel(
    x, x_frames, gain, act, act_frames, saturated, pixels, groups, inverse, eps,
    LISTED: tl.constexpr, INT8: tl.constexpr, MOST: tl.constexpr, GROUPS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(1)
    pixel = (tl.program_id(0) * PIXELS + tl.arange(0, PIXELS))[None, :, None]
    group, channel = tl.arange(0, GROUPS)[:, None, None], tl.arange(0, 8)[None, None, :]
    live = (group < groups) & (pixel < pixels) & (channel < 8)
    size = (groups * pixels * 8).to(tl.int64)
    here = (group * pixels + pixel) * 8 + channel
    source = tl.load(x_frames + frame) if LISTED else frame
    wide = tl.load(x + source.to(tl.int64) * size + here, mask=live, other=0.0).to(tl.float32)
    squares = tl.sum(tl.sum(wide * wide, axis=2), axis=0)
    gains = tl.load(gain + group * 8 + channel, mask=(group < groups) & (channel < 8), other=0.0)
    z = wide * tl.rsqrt(squares / (groups * 8) + eps)[None, :, None] * gains
    y = z * tl.sigmoid(z)
    to = act + tl.load(act_frames + frame).to(tl.int64) * size
    if INT8:
        here = (group // 2 * pixels + pixel) * 16 + group % 2 * 8 + channel
        tl.store(to + here, _whole_steps_of(y, live, saturated, inverse, MOST), mask=live)
    else:
        tl.store(to + here, y, mask=live)


@triton.jit
def _product(a, b, total, WIDE: tl.constexpr):
    if a.dtype == tl.int8:
        return tl.dot(a, b, total, out_dtype=tl.int32)
    elif WIDE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    else:
        return tl.dot(a, b, total)


@triton.jit
def _no_sums(x, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    if x.dtype.element_ty == tl.int8:
        return tl.zeros((PIXELS, CHANNELS), tl.int32)
    else:  # not after the branch: all that stands there is compiled too
        return tl.zeros((PIXELS, CHANNELS), tl.float32)


@triton.jit
def _flat(cube):
    """[groups, pixels, values] as [pixels, groups * values]."""
    return tl.reshape(tl.permute(cube, (1, 0, 2)), (cube.shape[1], cube.shape[0] * cube.shape[2]))


@triton.jit
def _places(row, live, apart, width, GROUP: tl.constexpr, STEP: tl.constexpr, CUBES: tl.constexpr):
    """Where rows of the weights of a step lie, [rows, STEP], and whether they do."""
    if CUBES:
        group, value = tl.arange(0, STEP // GROUP)[:, None, None], tl.arange(0, GROUP)[None, None, :]
        row, live = row[None, :, None], live[None, :, None]
    else:
        k = tl.arange(0, STEP)
        group, value, row, live = (k // GROUP)[None], (k % GROUP)[None], row[:, None], live[:, None]
    half = group * GROUP // 32
    at = ((half * apart * (32 // GROUP) + group % (32 // GROUP)) * width + row) * GROUP + value
    if CUBES:
        at = tl.max_contiguous(at, [1, 2, GROUP])
    return at, live & (value >= 0)


@triton.jit
def _weights(stream, at, live, CUBES: tl.constexpr):
    found = tl.load(stream + at, mask=live, other=0, cache_modifier=".cg")
    return _flat(found) if CUBES else found


@triton.jit
def _seen(pixel, height, columns, top, left, SIDE: tl.constexpr):
    """A bit for each tap: whether it reads a pixel of the frame."""
    y, column = pixel // columns, pixel % columns
    bits = tl.zeros_like(pixel)
    for tap in tl.static_range(SIDE * SIDE):  # pyright: ignore[reportGeneralTypeIssues]
        down, right = y + (top + tap // SIDE), column + (left + tap % SIDE)
        inside = (down >= 0) & (down < height) & (right >= 0) & (right < columns) & (y < height)
        bits |= inside.to(tl.int32) << tap
    return bits


@triton.jit
def _pixels(
    i, steps, products, chunks, x, origins, absent, groups, at, seen, area, columns,
    SLICES: tl.constexpr, SIDE: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr, EVEN: tl.constexpr,
    RAGGED: tl.constexpr,
):  # fmt: skip
    """What the i-th step multiplies, [pixels, STEP]."""
    TAPS: tl.constexpr = SIDE * SIDE
    COPY: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
    copy = tl.arange(0, STEP // COPY)[:, None, None]
    half = copy * COPY // 32
    product = tl.zeros((1, 1, 1), tl.int32) + i
    if not EVEN:
        product += half * (products - steps)
    # Quotients of unsigned numbers take fewer instructions.
    chunk = product.to(tl.uint32) // TAPS
    tap = product.to(tl.uint32) - chunk * TAPS
    down, tap, chunk = (tap // SIDE).to(tl.int32), tap.to(tl.int32), chunk.to(tl.int32)
    if EVEN:
        chunk += half * (SLICES * chunks // 2)
    origin, bit, first = origins[0], absent[0], 0
    if SLICES == 3:
        late, later = chunk >= chunks, chunk >= 2 * chunks
        origin = tl.where(later, origins[2], tl.where(late, origins[1], origins[0]))
        bit = tl.where(later, absent[2], tl.where(late, absent[1], absent[0]))
        if RAGGED:
            first = tl.where(later, 2 * chunks, tl.where(late, chunks, 0))
    bit |= tap
    if not EVEN:  # one product is in both halves, but zero in the second
        bit = tl.where(half * (2 * steps - products) > i, _NONE, bit)
    inside = ((seen >> bit) & 1) != 0
    if RAGGED:
        inside &= (chunk - first) * (32 // GROUP) + copy * COPY % 32 // GROUP < groups
    origin += (chunk * (32 // GROUP) * area + down * (columns - SIDE) + tap) * GROUP
    origin = tl.multiple_of(origin, [GROUP, GROUP, GROUP])  # Triton 3.9 does not see it
    mask = inside & (tl.arange(0, COPY)[None, None, :] >= 0)
    return _flat(tl.load(x + origin + at, mask=mask, other=0, cache_modifier=".ca"))


@triton.jit
def accumulate(
    total, rest, x, groups, before, middle, frame, weight, row, rest_row, row_live, rest_live, width, pixel, height,
    columns, top, left, SLICES: tl.constexpr, SIDE: tl.constexpr, REST: tl.constexpr, GROUP: tl.constexpr,
    STEP: tl.constexpr, EVEN: tl.constexpr, RAGGED: tl.constexpr, WIDE: tl.constexpr, WEIGHT_CUBES: tl.constexpr,
):  # fmt: skip
    """Add the products with a part's weights, each of 32 channels of a tap, in their order: slices, chunks, taps.

    A step of 64 takes one of each half of that order; EVEN: both of the same tap, as where a step is of 32. RAGGED: the
    last chunk is not whole. ``top`` and ``left`` are where the first tap reads, relative to a pixel. ``frame`` is what
    the last slice reads, of three ``before`` and ``middle`` what those before it do. Pixels are loaded as [STEP / COPY,
    pixels, COPY], so that threads of a warp read pixels side by side; WEIGHT_CUBES: rows of the weights, too.
    """
    chunks, area = tl.cdiv(groups, 32 // GROUP), height * columns
    products = SLICES * SIDE * SIDE * chunks
    steps = tl.cdiv(products, STEP // 32)
    size = groups.to(tl.int64) * (area * GROUP)
    origins, absent = (frame * size,), (tl.where(frame < 0, _NONE, 0),)
    if SLICES == 3:  # a slice's channels begin where those of the one before it end
        skipped = chunks * 32 * area
        origins = before * size, middle * size - skipped, frame * size - 2 * skipped
        absent = tl.where(before < 0, _NONE, 0), tl.where(middle < 0, _NONE, 0), tl.where(frame < 0, _NONE, 0)
    seen = _seen(pixel, height, columns, top, left, SIDE)[None, :, None]
    COPY: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
    copy, value = tl.arange(0, STEP // COPY)[:, None, None], tl.arange(0, COPY)[None, None, :]
    place = (copy * COPY % 32 // GROUP * area + pixel[None, :, None] + (top * columns + left)) * GROUP
    # A warp takes copies along the axis that seems to have the next longest run: that of pixels, not of groups.
    at = tl.max_contiguous(place + copy % (GROUP // COPY) * COPY + value, [1, 2, COPY])
    stream, live = _places(row, row_live, products - steps, width, GROUP, STEP, WEIGHT_CUBES)
    rest_stream, every = _places(rest_row, rest_live, products - steps, width, GROUP, STEP, WEIGHT_CUBES)
    for i in range(0, steps):
        left_side = _pixels(
            i, steps, products, chunks, x, origins, absent, groups, at, seen, area, columns,
            SLICES, SIDE, GROUP, STEP, EVEN, RAGGED,
        )  # fmt: skip
        right_side = _weights(weight, stream, live, WEIGHT_CUBES)
        total = _product(left_side, tl.trans(right_side), total, WIDE)
        if REST:
            right_side = _weights(weight, rest_stream, every, WEIGHT_CUBES)
            rest = _product(left_side, tl.trans(right_side), rest, WIDE)
        weight += 32 * width
    return total, rest


@triton.jit
def _y_of(
    total, scale, bias, channel, live, residual, frame, size, pixel, area,
    ADDED: tl.constexpr, ROUNDED: tl.constexpr,
):  # fmt: skip
    """A block of results, rounded once; with ADDED the residual joins them here."""
    added = tl.load(bias + channel, mask=live, other=0.0)[None]
    if total.dtype == tl.int32:
        total = total.to(tl.float32) * tl.load(scale + channel, mask=live, other=0.0)[None]
    y = total + added
    if ADDED:
        at = _tile_at(residual, frame, size, channel, pixel, area, 8)
        there = (pixel < tl.where(frame >= 0, area, 0))[:, None] & live[None]
        y += tl.load(at, mask=there, other=0.0).to(tl.float32)
    return y.to(ROUNDED)


_NUMBERS = ["height", "columns", "count", "groups", "residual_groups"]
_LISTS = ["frames", "residual_frames", "raw_frames", "act_frames", "saturated"]


# Not specialised: as above.
@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_LISTS)
def _kernel(
    x, frames, weight, scale, bias, residual, residual_frames, raw, raw_frames, act, act_frames, gain, saturated,
    height, columns, count, groups, residual_groups, channels, width, span, part_size, inverse, eps,
    SLICES: tl.constexpr, SIDE: tl.constexpr, RESULTS: tl.constexpr, PERMUTED: tl.constexpr, GROUP: tl.constexpr,
    MULTIPLIED: tl.constexpr, ADDED: tl.constexpr, RAW: tl.constexpr, ACT: tl.constexpr, INT8: tl.constexpr,
    MOST: tl.constexpr, ROUNDED: tl.constexpr, FULL: tl.constexpr, PIXELS: tl.constexpr, FIRST: tl.constexpr,
    REST: tl.constexpr, STEP: tl.constexpr, EVEN: tl.constexpr, RAGGED: tl.constexpr, WIDE: tl.constexpr,
    WEIGHT_CUBES: tl.constexpr,
):  # fmt: skip
    # In this order programs that run side by side read the same input: spans of channels, then time, then space.
    spans = (width + span - 1) // span
    parts = channels // width
    per_pixel = spans * parts * RESULTS
    place, index = tl.program_id(0) % per_pixel, tl.program_id(0) // per_pixel
    part, t, tile = place // spans, index % count, index // count
    result, begin = part // parts, place % spans * span
    end = tl.minimum(begin + span, width)
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    live = pixel < height * columns

    row = begin + tl.arange(0, FIRST)
    rest_row = begin + FIRST + tl.arange(0, REST if REST else 16)
    row_live, rest_live = row < end, rest_row < end
    if FULL:
        row_live, rest_live = tl.full((FIRST,), True, tl.int1), tl.full((REST if REST else 16,), True, tl.int1)
    packed, rest_packed = row, rest_row
    if PERMUTED:
        packed, rest_packed = packed_row(row), packed_row(rest_row)
    total, rest = _no_sums(x, PIXELS, FIRST), _no_sums(x, PIXELS, REST if REST else 16)
    before = tl.load(frames + t)
    middle, last = before, before
    if SLICES == 3:
        middle, last = tl.load(frames + t + 1), tl.load(frames + t + 2)
    top, left = -(SIDE // 2), -(SIDE // 2)
    if SIDE == 2:  # UP: the pixel above and to the left, or this one
        top, left = result // 2 - 1, result % 2 - 1
    weight += part.to(tl.int64) * part_size
    total, rest = accumulate(
        total, rest, x, groups, before, middle, last, weight, packed, rest_packed, row_live, rest_live, width, pixel,
        height, columns, top, left, SLICES, SIDE, REST, GROUP, STEP, EVEN, RAGGED, WIDE, WEIGHT_CUBES,
    )  # fmt: skip
    residual_frame = last
    if MULTIPLIED or ADDED:
        residual_frame = tl.load(residual_frames + t)
    if MULTIPLIED:
        weight += SLICES * SIDE * SIDE * tl.cdiv(groups, 32 // GROUP) * 32 * width
        total, rest = accumulate(
            total, rest, residual, residual_groups, last, last, residual_frame, weight, packed, rest_packed, row_live,
            rest_live, width, pixel, height, columns, 0, 0, 1, 1, REST, GROUP, STEP, EVEN, RAGGED, WIDE, WEIGHT_CUBES,
        )  # fmt: skip

    channel, rest_channel = part % parts * width + row, part % parts * width + rest_row
    area, out_frame = height * columns, t
    if RESULTS == 2:  # TIME
        out_frame = 2 * t + result
        bias += result * channels
    if RESULTS == 4:  # UP
        area *= 4
        pixel = (pixel // columns * 2 + result // 2) * (2 * columns) + pixel % columns * 2 + result % 2
    size = channels.to(tl.int64) * area
    mask, rest_mask = live[:, None] & row_live[None], live[:, None] & rest_live[None]
    to = t
    if RAW:
        to = tl.load(raw_frames + out_frame)
    total = _y_of(total, scale, bias, channel, row_live, residual, residual_frame, size, pixel, area, ADDED, ROUNDED)
    if RAW:
        tl.store(_tile_at(raw, to, size, channel, pixel, area, 8), total, mask=mask)
    if REST:
        rest = _y_of(
            rest, scale, bias, rest_channel, rest_live, residual, residual_frame, size, pixel, area, ADDED, ROUNDED
        )
        if RAW:
            tl.store(_tile_at(raw, to, size, rest_channel, pixel, area, 8), rest, mask=rest_mask)
    if ACT:
        total = total.to(tl.float32)
        squares = tl.sum(total * total, axis=1)
        if REST:
            rest = rest.to(tl.float32)
            squares += tl.sum(rest * rest, axis=1)
        factor = tl.rsqrt(squares / channels + eps)
        to = tl.load(act_frames + out_frame)
        gains = tl.load(gain + channel, mask=row_live, other=0.0)
        _store_act(total, factor, gains, act, to, size, channel, pixel, area, mask, saturated, inverse, INT8, MOST)
        if REST:
            gains = tl.load(gain + rest_channel, mask=rest_live, other=0.0)
            _store_act(
                rest, factor, gains, act, to, size, rest_channel, pixel, area, rest_mask, saturated, inverse,
                INT8, MOST,
            )  # fmt: skip


class Tile(NamedTuple):
    """What a program computes, and how: ``span`` channels of PIXELS pixels, in blocks of FIRST and REST."""

    span: int
    PIXELS: int
    FIRST: int
    REST: int
    STEP: int
    WEIGHT_CUBES: bool
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, width: int, size: int, normed: bool, shared: int) -> Tile:
        """For parts of ``width`` channels whose values have ``size`` bytes; ``shared`` bytes of memory are a CTA's.

        ``normed``: all channels are in one part, and its norm may be an output.
        """
        narrow = size < 4
        most = _PART if narrow else 64
        span = width if width <= most else most if narrow and width % most == 0 else 64
        first = max(16, 1 << (span.bit_length() - 1))
        rest = 0 if span <= first else max(16, triton.next_power_of_2(span - first))
        hopper = shared > 200 * 1024  # or Blackwell's tensor memory; else operands and sums share the registers
        pixels = 128 if narrow else 32
        if hopper and narrow and not (size == 1 and normed and span > 96):  # where the epilogue has the registers
            pixels = 256
        # More shared memory than this leaves no first-level cache, where most taps find what others have read. Two
        # small tiles run side by side: the epilogue of one overlaps the products of the other.
        large = pixels == 256 or (narrow and span > 96)
        space = min(shared, 160 * 1024) // (1 if large else 2)
        step = 64 if size == 1 else 32
        fitting = space // ((pixels + first + rest) * size * step) + (not hopper)  # registers hold one of the stages
        return cls(span, pixels, first, rest, step, not hopper, 8 if large else 4, min(4, fitting))


def static(kind: int, x: Tensor, tile: Tile, residual: Tensor | None = None) -> dict[str, object]:
    """What the kernel's loop is compiled for; ``residual``: what is multiplied."""
    read = [x] if residual is None else [x, residual]
    return {
        "SLICES": _SLICES[kind],
        "SIDE": math.isqrt(_TAPS[kind]),
        "GROUP": x.shape[-1],
        "PIXELS": tile.PIXELS,
        "FIRST": tile.FIRST,
        "REST": tile.REST,
        "STEP": tile.STEP,
        "EVEN": tile.STEP == 32 or _SLICES[kind] * _padded(x) % 64 == 0,
        "RAGGED": any(_padded(t) != t.shape[1] * t.shape[-1] for t in read),
        "WIDE": INTERPRETED or x.element_size() == 4,
        "WEIGHT_CUBES": tile.WEIGHT_CUBES,
    }


def _static(
    kind: int, x: Tensor, width: int, tile: Tile, rounded: torch.dtype, residual: Tensor | None, raw: bool, act: bool,
    in_int8: bool,
) -> dict[str, object]:  # fmt: skip
    """What the kernel is compiled for; see ``launch``."""
    multiplied = x.element_size() > 1
    return static(kind, x, tile, residual if multiplied else None) | {
        "RESULTS": _RESULTS[kind],
        "PERMUTED": width % _RUN == 0,
        "MULTIPLIED": residual is not None and multiplied,
        "ADDED": residual is not None and not multiplied,
        "RAW": raw,
        "ACT": act,
        "INT8": in_int8,
        "MOST": LARGEST,
        "FULL": width % tile.span == 0 and tile.span == tile.FIRST + tile.REST,  # no channel is beyond a part's
        "ROUNDED": tl.bfloat16 if rounded == torch.bfloat16 else tl.float32,
    }


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a CTA may have; where nothing is a GPU, those of the smallest."""
    if device.type != "cuda":
        return 99 * 1024
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def launch_norm(
    x: Tensor,
    x_frames: Tensor | None,
    gain: Tensor,
    act: Tensor,
    act_frames: Tensor,
    act_scale: float,
    saturated: Tensor | None,
) -> None:
    """``act`` of x, all of its frames or those of a list: see ``causal_conv``."""
    _, groups, height, width, _ = x.shape
    in_int8 = act.dtype == torch.int8
    most = triton.next_power_of_2(max(groups, 1))
    together = max(1, 512 // most)
    if act_frames.numel() == 0 or x[:1].numel() == 0:
        return
    with torch.cuda.device_of(x):
        _norm_kernel[(triton.cdiv(height * width, together), len(act_frames))](
            x, act_frames if x_frames is None else x_frames, gain, act, act_frames,
            saturated if in_int8 else act_frames, height * width, groups,
            1 / act_scale if in_int8 else 0.0, _EPS / (groups * GROUP),
            LISTED=x_frames is not None, INT8=in_int8, MOST=LARGEST, GROUPS=most, PIXELS=together,
        )  # fmt: skip


def counts_in_int32(channels: int, x: Tensor) -> bool:
    """Whether a program's numbers within a frame fit; UP's results are four times as large."""
    return max(4 * channels, 3 * _padded(x)) * x.shape[2:4].numel() < 2**31


def launch(
    kind: int,
    x: Tensor,
    frames: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor,
    residual: Tensor | None,
    residual_frames: Tensor | None,
    outputs: _Outputs,
    dtype: torch.dtype,
) -> None:
    """Arguments that were checked: ``causal_conv``'s, or with ``scale`` those of ``causal_conv_int8``.

    ``dtype`` is that of the results before any are int8.
    """
    raw, raw_frames, act, act_frames, gain, act_scale, saturated = outputs
    doubled, larger = (2 if kind == Kind.TIME else 1), (2 if kind == Kind.UP else 1)
    channels = len(bias) // doubled
    width = _width(channels)
    count, (height, columns) = len(frames) - _history(kind), x.shape[2:4]
    tile = Tile.of(width, x.element_size(), act is not None and width == channels, shared_memory(x.device))
    fused = act is not None and tile.span == channels  # else no program has all channels, which the norm needs
    if act is not None and not fused and raw is None:
        shape = doubled * count, channels // GROUP, larger * height, larger * columns, GROUP
        raw = torch.empty(shape, dtype=dtype, device=x.device)
        raw_frames = torch.arange(len(raw), dtype=torch.int32, device=x.device)
    in_int8 = act is not None and fused and act.dtype == torch.int8
    programs = triton.cdiv(width, tile.span) * len(weight) * count * triton.cdiv(height * columns, tile.PIXELS)
    if programs == 0:
        return
    unused = weight  # always as aligned
    with torch.cuda.device_of(x):
        _kernel[(programs,)](
            x, frames, weight, unused if scale is None else scale, bias, x if residual is None else residual,
            unused if residual is None else residual_frames, unused if raw is None else raw,
            unused if raw is None else raw_frames, act if fused else unused, act_frames if fused else unused,
            gain if fused else unused, saturated if in_int8 else unused,
            height, columns, count, x.shape[1], 0 if residual is None else residual.shape[1], channels, width,
            tile.span, weight.shape[1], 1 / act_scale if in_int8 else 0.0, _EPS / channels,
            **_static(kind, x, width, tile, dtype, residual, raw is not None, fused, in_int8),
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    if not (fused or raw is None or act is None or act_frames is None or gain is None):
        launch_norm(raw, raw_frames, gain, act, act_frames, act_scale, saturated)


def _fits(x: Tensor, frames: Tensor, weight: Tensor, bias: Tensor, *rest, **named) -> bool:
    return on_gpu(x) and counts_in_int32(len(bias), x)


@causal_conv.impl("triton", when=_fits)
def _triton(
    x, frames, weight, bias, kind, residual=None, residual_frames=None, raw=None, raw_frames=None, act=None,
    act_frames=None, gain=None, act_scale=0.0, saturated=None,
) -> None:  # fmt: skip
    outputs = _Outputs(raw, raw_frames, act, act_frames, gain, act_scale, saturated)
    _check(x, frames, weight, bias, kind, residual, residual_frames, outputs)
    launch(kind, x, frames, weight, None, bias, residual, residual_frames, outputs, x.dtype)
