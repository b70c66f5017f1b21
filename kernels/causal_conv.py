"""causal_conv: the video autoencoder's convolutions, with what follows each of them in the network.

Activations are [frames, C / 8, H, W, 8]: a pixel's channels lie in groups of eight. A list of frame indices says which
of a tensor's frames are read or written, in which order, so history is never copied: it stays where it was written.
"""

from __future__ import annotations

import functools
import math
import os
from enum import IntEnum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .checks import expect, expect_float, on_gpu
from .registry import op
from .triton_import import tl, triton

GROUP = 8  # channels that lie together: 16 bytes of a pixel in bfloat16
GROUP_INT8 = 16  # the same of int8
PIXEL = 16  # channels that the three of a picture are padded to
_CHUNK = 32  # channels whose weights lie together
_PART = 192  # channels of the result that are computed together where they divide it
_RUN = 32  # channels of the result that are permuted among themselves
_EPS = 1e-24  # of |x|^2: the network's norm divides by max(|x|, 1e-12)
LARGEST = 127  # of int8 values; -128 does not occur
LEAST_SCALE = 0.2785 / LARGEST  # of SiLU in int8: nowhere is it below -0.2785


class Kind(IntEnum):
    """What a convolution does, and the shape of its weight."""

    CAUSAL = 0  # [Co, Ci, 3, 3, 3]: over a frame and the two before it, zero-padded in space
    POINT = 1  # [Co, Ci, 1, 1, 1]
    TIME = 2  # [2 Co, Ci, 3, 1, 1]: over time alone; a frame becomes two, each from one half of the channels
    UP = 3  # [Co, Ci, 3, 3]: of frames upsampled twice to the nearest neighbour, zero-padded


_SLICES: dict[int, int] = {Kind.CAUSAL: 3, Kind.POINT: 1, Kind.TIME: 3, Kind.UP: 1}  # input frames of a result
_TAPS: dict[int, int] = {Kind.CAUSAL: 9, Kind.POINT: 1, Kind.TIME: 1, Kind.UP: 4}  # in each of them
_RESULTS: dict[int, int] = {Kind.CAUSAL: 1, Kind.POINT: 1, Kind.TIME: 2, Kind.UP: 4}  # of a pixel


def to_groups(x: Tensor, group: int = GROUP) -> Tensor:
    """A view of [T, H, W, C] as [T, C / group, H, W, group]."""
    return x.unflatten(-1, (-1, group)).movedim(3, 1)


def from_groups(x: Tensor) -> Tensor:
    """The inverse of ``to_groups``, contiguous."""
    return x.movedim(1, 3).flatten(3).contiguous()


def pack(kind: Kind, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """The weights in the order in which the kernel reads them: [parts, size], in ``weight``'s dtype.

    ``weight`` is shaped as ``kind`` says. ``residual`` [Co, Cr], of CAUSAL and POINT only, multiplies what is added to
    the result: the identity, or a 1x1x1 convolution. Taps of UP that fall on the same pixel are added up first.
    Raises ValueError naming the argument that does not fit.
    """
    kind = Kind(kind)
    spatial = {Kind.CAUSAL: (3, 3, 3), Kind.POINT: (1, 1, 1), Kind.TIME: (3, 1, 1), Kind.UP: (3, 3)}[kind]
    expect("weight", weight, (None, None, *spatial), weight.dtype, weight.device, dense_from=1)
    channels = weight.shape[0] // (2 if kind == Kind.TIME else 1)
    width = _width(channels)
    if kind == Kind.UP:
        rows, taps = _fold(weight).flatten(0, 2), 4
    else:
        rows, taps = weight, _TAPS[kind]
    rows = rows.reshape(len(rows), weight.shape[1], _SLICES[kind], taps)
    streams = [_stream(rows, width)]
    if residual is not None:
        if kind not in (Kind.CAUSAL, Kind.POINT):
            raise ValueError(f"residual must be None for {kind.name}, got {list(residual.shape)}")
        expect("residual", residual, (channels, None), weight.dtype, weight.device, dense_from=1)
        streams.append(_stream(residual[:, :, None, None], width))
    return torch.cat(streams, dim=1)


def _width(channels: int) -> int:
    """Channels of a part."""
    if channels == 0 or channels % GROUP:
        raise ValueError(f"weight must give a multiple of {GROUP} channels, got {channels}")
    return channels if channels % _PART else _PART


def _fold(weight: Tensor) -> Tensor:
    """[Co, Ci, 3, 3] on an upsampled frame to [2, 2, Co, Ci, 2, 2] on the frame itself, a kernel for each output pixel.

    After nearest-neighbour upsampling an output pixel sees 2 x 2 distinct inputs: the same result for 4/9 of the FLOPs.
    """

    def rows(w: Tensor, dim: int) -> Tensor:
        a, b, c = w.unbind(dim)
        return torch.stack((torch.stack((a, b + c), dim), torch.stack((a + b, c), dim)))

    # Precision: up to four taps are summed in float32 and rounded once; on an upsampled frame, none would be.
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return rows(rows(wide, 3), 3).to(weight.dtype)


def _stream(w: Tensor, width: int, group: int = GROUP) -> Tensor:
    """[parts * width, Ci, slices, taps] to [parts, slices, chunks, taps, 32 / group, width, group], flat.

    Ci is padded with zeros; the rows of a part are permuted.
    """
    w = F.pad(w, (0, 0, 0, 0, 0, -w.shape[1] % _CHUNK))
    w = _permuted(w.unflatten(1, (-1, _CHUNK // group, group)).unflatten(0, (-1, width)), 1)
    return w.permute(0, 5, 2, 6, 3, 1, 4).flatten(1)


def _unstream(stream: Tensor, channels: int, slices: int, taps: int, width: int, group: int = GROUP) -> Tensor:
    """The inverse of ``_stream``: [parts * width, channels, slices, taps]."""
    w = _permuted(stream.view(len(stream), slices, -1, taps, _CHUNK // group, width, group), 5)
    return w.permute(0, 5, 2, 4, 6, 1, 3).flatten(2, 4).flatten(0, 1)[:, :channels]


def _permuted(w: Tensor, dim: int) -> Tensor:
    """Row 32 b + 8 i + 2 t + j of the result is row 32 b + 8 t + 2 i + j of w, and the other way round.

    A tensor core leaves columns 8 i + 2 t + j of a product in thread t of a quad: so these are consecutive channels.
    Rows whose number is no multiple of 32 stay.
    """
    if w.shape[dim] % _RUN:
        return w
    return w.unflatten(dim, (-1, 4, 4, 2)).transpose(dim + 1, dim + 2).flatten(dim, dim + 3)


@op(mutates=("raw", "act", "saturated"))
def causal_conv(
    x: Tensor,
    frames: Tensor,
    weight: Tensor,
    bias: Tensor,
    kind: int,
    residual: Tensor | None = None,
    residual_frames: Tensor | None = None,
    raw: Tensor | None = None,
    raw_frames: Tensor | None = None,
    act: Tensor | None = None,
    act_frames: Tensor | None = None,
    gain: Tensor | None = None,
    act_scale: float = 0.0,
    saturated: Tensor | None = None,
) -> None:
    """``y = conv(x) + bias (+ residual)`` into ``raw``, and ``SiLU(norm(y) * gain)`` into ``act``.

    - x [S, Ci / 8, H, W, 8], contiguous: bfloat16, float32 or float64. frames, int32: the indices in x of the frames to
      read, for CAUSAL and TIME two more than are convolved, those before the first; below zero: a frame of zeros.
    - weight: see ``pack``; kind: a ``Kind``. bias [Co], of TIME [2 Co], float32 (float64 with float64).
    - residual [S', Cr / 8, H, W, 8], if weight was packed with one, read at residual_frames [T] (as frames).
    - raw, act [S'', Co / 8, H', W', 8], either or both; results are written at raw_frames, act_frames [T'], nowhere
      else. T' = T and [H', W'] = [H, W], but TIME has 2 T frames and UP twice the height and width.
      raw may be residual itself, at the same indices, if it is added as it is: with the identity for ``pack``.
    - gain [Co], like bias, with act: norm(y) = y / max(|y|_2, 1e-12) * sqrt(Co) over the channels (docs/model.md 7.2).
    - act may be int8 [S'', Co / 16, H', W', 16], for ``causal_conv_int8`` to read: rint(SiLU(...) / act_scale), at most
      127. act_scale is at least 0.2785 / 127; saturated [1], int64, is increased by the number of values that would be
      larger or are not finite.

    All lists of indices are int32, contiguous, on x's device, and are read when the operator runs: a captured graph
    serves any. Indices must not repeat within an output, nor may what is read be written, but for residual and raw.
    Raises ValueError naming the argument that does not fit.
    """
    channels, width = _check(x, frames, weight, bias, kind, residual, residual_frames)
    outputs = _Outputs(raw, raw_frames, act, act_frames, gain, act_scale, saturated)
    doubled, scale = (2 if kind == Kind.TIME else 1), (2 if kind == Kind.UP else 1)
    count, size = len(frames) - _history(kind), (scale * x.shape[2], scale * x.shape[3])
    outputs.check(channels, doubled * count, size, x.dtype, x.device)
    # Precision: y is summed in float32, with bias and residual, and rounded once; the norm reads the rounded y, and act
    # is rounded once. The published order also rounds before the residual sum, and the norm before SiLU.
    wide = torch.promote_types(x.dtype, torch.float32)
    main = weight.shape[1] - (0 if residual is None else width * _padded(residual))
    taps = _taps(weight[:, :main].to(wide), x.shape[1] * GROUP, kind, width)
    y = _convolve(_read(x, frames, wide), taps, kind) + bias.view(1, -1, 1, 1)
    if kind == Kind.TIME:
        y = y.unflatten(1, (2, channels)).flatten(0, 1)
    if residual is not None and residual_frames is not None:
        point = _unstream(weight[:, main:].to(wide), residual.shape[1] * GROUP, 1, 1, width)
        y += F.conv2d(_read(residual, residual_frames, wide), point)
    outputs.write(y.to(x.dtype))


class _Outputs(NamedTuple):
    """Where results go, as arguments of the convolutions: see ``causal_conv``."""

    raw: Tensor | None
    raw_frames: Tensor | None
    act: Tensor | None
    act_frames: Tensor | None
    gain: Tensor | None
    act_scale: float
    saturated: Tensor | None

    def check(self, channels: int, count: int, size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Raise ValueError naming the argument that does not fit: for ``count`` frames of ``size``."""
        if self.raw is None and self.act is None:
            raise ValueError("raw and act must not both be None")
        if self.raw is not None:
            expect("raw", self.raw, (None, channels // GROUP, *size, GROUP), dtype, device)
            _check_indices("raw_frames", self.raw_frames, device, count)
        if self.act is None:
            return
        in_int8 = self.act.dtype == torch.int8
        group = GROUP_INT8 if in_int8 else GROUP
        shape = None, channels // group, *size, group
        expect("act", self.act, shape, torch.int8 if in_int8 else dtype, device)
        _check_indices("act_frames", self.act_frames, device, count)
        if self.gain is None:
            raise ValueError("gain must not be None where act is not")
        expect("gain", self.gain, (channels,), torch.promote_types(dtype, torch.float32), device)
        if in_int8:
            if channels % GROUP_INT8:
                raise ValueError(f"act must not be int8 of {channels} channels, no multiple of {GROUP_INT8}")
            if not LEAST_SCALE <= self.act_scale < math.inf:
                raise ValueError(f"act_scale must be at least {LEAST_SCALE:.6f}, got {self.act_scale}")
            if self.saturated is None:
                raise ValueError("saturated must not be None where act is int8")
            expect("saturated", self.saturated, (1,), torch.int64, device)

    def write(self, y: Tensor) -> None:
        """y [T, C, H, W], in the dtype of raw, which the norm reads."""
        if self.raw is not None and self.raw_frames is not None:
            _write(self.raw, self.raw_frames, y)
        if self.act is None or self.act_frames is None:
            return
        channels, wide = y.shape[1], torch.promote_types(y.dtype, torch.float32)
        normed = F.rms_norm(y.movedim(1, -1).to(wide), (channels,), self.gain, eps=_EPS / channels)
        act = F.silu(normed).movedim(-1, 1)
        if self.saturated is not None and self.act.dtype == torch.int8:
            act = _whole_steps(act, self.act_scale, self.saturated)
        _write(self.act, self.act_frames, act.to(self.act.dtype))


def _whole_steps(act: Tensor, scale: float, saturated: Tensor) -> Tensor:
    """SiLU's results as whole numbers of ``scale``, at most 127; ``saturated`` is increased by those that are cut."""
    steps = act * (1 / scale)
    over = ~(steps < LARGEST + 0.5)
    saturated += over.sum()
    return steps.round().where(~over, LARGEST)


def _taps(stream: Tensor, channels: int, kind: int, width: int) -> Tensor:
    """What ``pack`` made of a weight: [rows, channels, slices, taps]."""
    return _unstream(stream, channels, _SLICES[kind], _TAPS[kind], width)


def _read(x: Tensor, frames: Tensor, dtype: torch.dtype) -> Tensor:
    """[T, C, H, W]"""
    found = x[frames.clamp(min=0)].where((frames >= 0).view(-1, 1, 1, 1, 1), 0)
    return found.movedim(-1, 2).flatten(1, 2).to(dtype)


def _write(t: Tensor, frames: Tensor, y: Tensor) -> None:
    t[frames] = y.unflatten(1, (-1, t.shape[-1])).movedim(2, -1)


def _convolve(x: Tensor, taps: Tensor, kind: int) -> Tensor:
    """x [T + history, Ci, H, W] and taps [rows, Ci, slices, taps] to [T, rows, H, W], or [T, Co, 2 H, 2 W]."""
    if kind == Kind.UP:
        (frames, _, height, width), padded = x.shape, F.pad(x, (1, 1, 1, 1))
        kernels = taps.view(2, 2, -1, x.shape[1], 2, 2)
        y = x.new_empty(frames, kernels.shape[2], height, 2, width, 2)
        for i in range(2):
            for j in range(2):
                y[:, :, :, i, :, j] = F.conv2d(padded, kernels[i, j])[:, :, i : i + height, j : j + width]
        return y.flatten(4, 5).flatten(2, 3)
    side = 3 if kind == Kind.CAUSAL else 1
    y = F.conv3d(x.transpose(0, 1)[None], taps.unflatten(-1, (side, side)), padding=(0, side // 2, side // 2))
    return y[0].transpose(0, 1)


def _padded(x: Tensor) -> int:
    """Channels of x, in whole chunks."""
    channels = x.shape[1] * x.shape[-1]
    return channels + -channels % _CHUNK


def _history(kind: int) -> int:
    """Frames that are read before the first one that is convolved."""
    return 2 if _SLICES[kind] == 3 else 0


def _check(
    x: Tensor,
    frames: Tensor,
    weight: Tensor,
    bias: Tensor,
    kind: int,
    residual: Tensor | None,
    residual_frames: Tensor | None,
) -> tuple[int, int]:
    """Channels of a frame of the output, and of a part."""
    if kind not in list(Kind):
        raise ValueError(f"kind must be a Kind, got {kind}")
    expect_float("x", x)
    expect("x", x, (None, None, None, None, GROUP), x.dtype, x.device)
    count = _check_frames(frames, _history(kind), x.device)
    expect("bias", bias, (None,), torch.promote_types(x.dtype, torch.float32), x.device)
    channels = len(bias) // (2 if kind == Kind.TIME else 1)
    width = _width(channels)
    parts = channels // width * _RESULTS[kind]
    size = _padded(x) * _SLICES[kind] * _TAPS[kind]
    if residual is not None:
        expect("residual", residual, (None, None, *x.shape[2:]), x.dtype, x.device)
        _check_indices("residual_frames", residual_frames, x.device, count)
        size += _padded(residual)
    expect("weight", weight, (parts, size * width), x.dtype, x.device)
    return channels, width


def _check_frames(frames: Tensor, history: int, device: torch.device) -> int:
    """How many frames are convolved."""
    _check_indices("frames", frames, device)
    count = len(frames) - history
    if count < 1:
        raise ValueError(f"frames must have at least {history + 1} indices, got {len(frames)}")
    return count


def _check_indices(name: str, indices: Tensor | None, device: torch.device, count: int | None = None) -> None:
    if indices is None:
        raise ValueError(f"{name} must not be None")
    expect(name, indices, (count,), torch.int32, device)


def _fits_cuda(
    x, frames, weight, bias, kind, residual=None, residual_frames=None, raw=None, raw_frames=None, act=None,
    act_frames=None, gain=None, act_scale=0.0, saturated=None,
) -> bool:  # fmt: skip
    if x.dtype != torch.bfloat16 or not native.on_hopper(x):
        return False
    channels = len(bias) // (2 if kind == Kind.TIME else 1)
    if act is not None and channels > (2 * _PART if kind == Kind.CAUSAL else _PART):  # the norm spans two parts at most
        return False
    if kind == Kind.UP:
        return channels in (96, _PART)
    return channels % _PART == 0 or (kind == Kind.CAUSAL and channels == 96)


@causal_conv.impl("cuda", when=_fits_cuda)
def _cuda(
    x, frames, weight, bias, kind, residual=None, residual_frames=None, raw=None, raw_frames=None, act=None,
    act_frames=None, gain=None, act_scale=0.0, saturated=None,
) -> None:  # fmt: skip
    torch.ops.longlive_C.causal_conv(
        x, frames, weight, bias, kind, residual, residual_frames, raw, raw_frames, act, act_frames, gain, act_scale,
        saturated, _EPS,
    )  # fmt: skip


if triton:
    from .int8_linear import packed_row

    # Triton's interpreter has no product of bfloat16.
    INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

    @triton.jit
    def _whole_steps_of(y, live, saturated, inverse, MOST: tl.constexpr):
        """``_whole_steps`` of what is ``live``, as int8."""
        steps = y * inverse
        over = (steps < MOST + 0.5) == 0
        count = tl.sum((over & live).to(tl.int64))
        if count != 0:
            tl.atomic_add(saturated, count)
        whole = tl.where(over, MOST, steps) + 12582912.0 - 12582912.0  # which leaves a float32 no bits below 1
        return whole.to(tl.int8)

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

    # Not specialised: what varies with the picture must not wait for a compiler in the middle of a stream.
    @triton.jit(do_not_specialize=["pixels"])
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
        if WIDE:
            return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
        return tl.dot(a, b, total)

    @triton.jit
    def _accumulate(
        total, rest, x, groups, before, middle, frame, residual, residual_groups, residual_frame,
        weight, row, rest_row, row_live, rest_live, width, pixel, height, columns, top, left,
        SLICES: tl.constexpr, SIDE: tl.constexpr, RESIDUAL: tl.constexpr, REST: tl.constexpr, STEP: tl.constexpr,
        SMALL: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        """Add the products with a part's weights, in their order: slices, chunks, taps; then the residual's chunks.

        ``top`` and ``left`` are where the first tap reads, relative to a pixel. ``frame`` is what the last slice reads,
        of three ``before`` and ``middle`` what those before it do.
        """
        TAPS: tl.constexpr = SIDE * SIDE
        TOGETHER: tl.constexpr = STEP // 32  # chunks
        k = tl.arange(0, STEP)
        area = height * columns
        at = pixel[:, None] * 8 + (k // 8 * (area * 8) + k % 8)[None]
        part = (k // 8 * (width * 8) + k % 8)[None]
        y, column = pixel // columns, pixel % columns
        steps = (groups * 8 + STEP - 1) // STEP
        products = SLICES * steps * TAPS
        every = products
        if RESIDUAL:
            every += (residual_groups * 8 + STEP - 1) // STEP
        for i in range(0, every):
            tap, step, here = i - i // TAPS * TAPS, i // TAPS % steps, frame
            if SLICES == 3:
                source = i // TAPS // steps
                here = tl.where(source == 0, before, tl.where(source == 1, middle, frame))
            down, right = top + tap // SIDE, left + tap % SIDE
            chunk = i // TAPS * TOGETHER * TAPS + tap
            apart, of, wide = TAPS - 1, x, groups
            if RESIDUAL:
                added = i >= products
                step, here = tl.where(added, i - products, step), tl.where(added, residual_frame, here)
                down, right = tl.where(added, 0, down), tl.where(added, 0, right)
                chunk = tl.where(added, i * TOGETHER, chunk)
                apart, wide = tl.where(added, 0, TAPS - 1), tl.where(added, residual_groups, groups)
                of = tl.where(added, residual, x)
            inside = pixel < tl.where(here >= 0, area, 0)
            if SIDE > 1:
                inside &= (y + down >= 0) & (y + down < height) & (column + right >= 0) & (column + right < columns)
            mask = inside[:, None] & (k // 8 < wide - step * (STEP // 8))[None]
            origin = of + (here.to(tl.int64) * wide + step * (STEP // 8)) * (area * 8) + (down * columns + right) * 8
            left_side = tl.load(origin + at, mask=mask, other=0.0, cache_modifier=".ca")
            stream = weight + chunk * (32 * width)
            within = part
            if TOGETHER > 1:  # a tap's weights of the next chunk lie behind all taps of this one
                within += (k // 32 * (apart * 32 * width))[None]
            at_row = stream + ((row * 8)[:, None] + within)
            right_side = tl.load(at_row, mask=row_live[:, None], other=0.0, cache_modifier=".ca" if SMALL else ".cg")
            total = _product(left_side, tl.trans(right_side), total, WIDE)
            if REST:
                at_row = stream + ((rest_row * 8)[:, None] + within)
                right_side = tl.load(
                    at_row, mask=rest_live[:, None], other=0.0, cache_modifier=".ca" if SMALL else ".cg"
                )
                rest = _product(left_side, tl.trans(right_side), rest, WIDE)
        return total, rest

    # Not specialised: what varies with the picture must not wait for a compiler in the middle of a stream.
    @triton.jit(do_not_specialize=["height", "columns", "count"])
    def _kernel(
        x, frames, weight, bias, residual, residual_frames, raw, raw_frames, act, act_frames, gain, saturated,
        height, columns, count, groups, residual_groups, channels, width, span, part_size, inverse, eps,
        SLICES: tl.constexpr, SIDE: tl.constexpr, RESULTS: tl.constexpr, PERMUTED: tl.constexpr,
        RESIDUAL: tl.constexpr, RAW: tl.constexpr, ACT: tl.constexpr, INT8: tl.constexpr, MOST: tl.constexpr,
        PIXELS: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, STEP: tl.constexpr,
        SMALL: tl.constexpr, WIDE: tl.constexpr,
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
        packed, rest_packed = row, rest_row
        if PERMUTED:
            packed, rest_packed = packed_row(row), packed_row(rest_row)
        total = tl.zeros((PIXELS, FIRST), tl.float32)
        rest = tl.zeros((PIXELS, REST if REST else 16), tl.float32)
        before = tl.load(frames + t)
        middle, last = before, before
        if SLICES == 3:
            middle, last = tl.load(frames + t + 1), tl.load(frames + t + 2)
        top, left = -(SIDE // 2), -(SIDE // 2)
        if SIDE == 2:  # UP: the pixel above and to the left, or this one
            top, left = result // 2 - 1, result % 2 - 1
        weight += part.to(tl.int64) * part_size
        residual_frame = last
        if RESIDUAL:
            residual_frame = tl.load(residual_frames + t)
        total, rest = _accumulate(
            total, rest, x, groups, before, middle, last, residual, residual_groups, residual_frame,
            weight, packed, rest_packed, row_live, rest_live, width, pixel, height, columns, top, left,
            SLICES, SIDE, RESIDUAL, REST, STEP, SMALL, WIDE,
        )  # fmt: skip

        channel, rest_channel = part % parts * width + row, part % parts * width + rest_row
        area, out_frame = height * columns, t
        if RESULTS == 2:  # TIME
            out_frame = 2 * t + result
            bias += result * channels
        if RESULTS == 4:  # UP
            area *= 4
            pixel = (pixel // columns * 2 + result // 2) * (2 * columns) + pixel % columns * 2 + result % 2
        dtype: tl.constexpr = x.dtype.element_ty
        size = channels.to(tl.int64) * area
        total = (total + tl.load(bias + channel, mask=row_live, other=0.0)[None]).to(dtype)
        mask, rest_mask = live[:, None] & row_live[None], live[:, None] & rest_live[None]
        if REST:
            rest = (rest + tl.load(bias + rest_channel, mask=rest_live, other=0.0)[None]).to(dtype)
        if RAW:
            to = tl.load(raw_frames + out_frame)
            tl.store(_tile_at(raw, to, size, channel, pixel, area, 8), total, mask=mask)
            if REST:
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

    class _Tile(NamedTuple):
        """What a program computes, and how: ``span`` channels of PIXELS pixels, in blocks of FIRST and REST."""

        span: int
        PIXELS: int
        FIRST: int
        REST: int
        STEP: int
        num_warps: int
        num_stages: int

        @classmethod
        def of(cls, width: int, depth: int, residual: int, narrow: bool, shared: int) -> _Tile:
            """For parts of ``width`` channels, ``depth`` and ``residual`` padded ones read; ``shared`` bytes a CTA."""
            most = _PART if narrow else 64
            span = width if width <= most else most if narrow and width % most == 0 else 64
            first = max(16, 1 << (span.bit_length() - 1))
            rest = 0 if span <= first else max(16, triton.next_power_of_2(span - first))
            pixels, bytes_each = (128, 2) if narrow else (32, 4)
            # More shared memory than this leaves no first-level cache, where most taps find what others have read. Two
            # small tiles run side by side: the epilogue of one overlaps the products of the other.
            large = narrow and span > 96
            space = min(shared, 160 * 1024) // (1 if large else 2)
            row = (pixels + first + rest) * bytes_each
            hopper = shared > 200 * 1024  # or Blackwell's tensor memory; else operands and sums share the registers
            long = 2 * _CHUNK if hopper and 4 * row * 2 * _CHUNK <= space else _CHUNK
            step = long if depth % long == residual % long == 0 else _CHUNK
            fitting = space // (row * step) + (not hopper)  # where registers hold one of the stages
            return cls(span, pixels, first, rest, step, 8 if large else 4, min(4, fitting))

    def _static(
        kind: int, width: int, tile: _Tile, residual: bool, raw: bool, act: bool, in_int8: bool, narrow: bool
    ) -> dict[str, int]:
        """What the kernel is compiled for."""
        return {
            "SLICES": _SLICES[kind],
            "SIDE": math.isqrt(_TAPS[kind]),
            "RESULTS": _RESULTS[kind],
            "PERMUTED": width % _RUN == 0,
            "RESIDUAL": residual,
            "RAW": raw,
            "ACT": act,
            "INT8": in_int8,
            "MOST": LARGEST,
            "PIXELS": tile.PIXELS,
            "FIRST": tile.FIRST,
            "REST": tile.REST,
            "STEP": tile.STEP,
            "SMALL": tile.num_warps < 8,  # tiles side by side may find their weights in the first-level cache
            "WIDE": INTERPRETED or not narrow,
        }

    @functools.cache
    def _shared_memory(device: torch.device) -> int:
        """Bytes that a CTA may have; where nothing is a GPU, those of the smallest."""
        if device.type != "cuda":
            return 99 * 1024
        return torch.cuda.get_device_properties(device).shared_memory_per_block_optin

    def _launch_norm(
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

    def _fits_triton(x: Tensor, frames: Tensor, weight: Tensor, bias: Tensor, *rest, **named) -> bool:
        # A program counts in int32 within a frame, of which UP's results are four times as large.
        return on_gpu(x) and 4 * len(bias) * x.shape[2:4].numel() < 2**31

    @causal_conv.impl("triton", when=_fits_triton)
    def _triton(
        x, frames, weight, bias, kind, residual=None, residual_frames=None, raw=None, raw_frames=None, act=None,
        act_frames=None, gain=None, act_scale=0.0, saturated=None,
    ) -> None:  # fmt: skip
        channels, width = _check(x, frames, weight, bias, kind, residual, residual_frames)
        doubled, scale = (2 if kind == Kind.TIME else 1), (2 if kind == Kind.UP else 1)
        count, (height, columns) = len(frames) - _history(kind), x.shape[2:4]
        outputs = _Outputs(raw, raw_frames, act, act_frames, gain, act_scale, saturated)
        outputs.check(channels, doubled * count, (scale * height, scale * columns), x.dtype, x.device)
        narrow = x.dtype == torch.bfloat16
        depth, extra = _padded(x), 0 if residual is None else _padded(residual)
        tile = _Tile.of(width, depth, extra, narrow, _shared_memory(x.device))
        fused = act is not None and tile.span == channels  # else no program has all channels, which the norm needs
        if act is not None and not fused and raw is None:
            raw = x.new_empty(doubled * count, channels // GROUP, scale * height, scale * columns, GROUP)
            raw_frames = torch.arange(len(raw), dtype=torch.int32, device=x.device)
        in_int8 = act is not None and fused and act.dtype == torch.int8
        programs = triton.cdiv(width, tile.span) * len(weight) * count * triton.cdiv(height * columns, tile.PIXELS)
        if programs == 0:
            return
        unused = frames
        with torch.cuda.device_of(x):
            _kernel[(programs,)](
                x, frames, weight, bias, x if residual is None else residual,
                unused if residual is None else residual_frames, unused if raw is None else raw,
                unused if raw is None else raw_frames, act if fused else unused, act_frames if fused else unused,
                gain if fused else unused, saturated if in_int8 else unused,
                height, columns, count, x.shape[1], 0 if residual is None else residual.shape[1], channels, width,
                tile.span, weight.shape[1], 1 / act_scale if in_int8 else 0.0, _EPS / channels,
                **_static(kind, width, tile, residual is not None, raw is not None, fused, in_int8, narrow),
                num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
        if not (fused or raw is None or act is None or act_frames is None or gain is None):
            _launch_norm(raw, raw_frames, gain, act, act_frames, act_scale, saturated)
