"""causal_conv: the video autoencoder's convolutions, with what follows each of them in the network.

Activations are [frames, C / 8, H, W, 8]: a pixel's channels lie in groups of eight. A list of frame indices says which
of a tensor's frames are read or written, in which order, so history is never copied: it stays where it was written.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .checks import expect, expect_float
from .registry import op
from .triton_import import triton

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
    outputs = _Outputs(raw, raw_frames, act, act_frames, gain, act_scale, saturated)
    channels, width = _check(x, frames, weight, bias, kind, residual, residual_frames, outputs)
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
    outputs: _Outputs,
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
    doubled, scale = (2 if kind == Kind.TIME else 1), (2 if kind == Kind.UP else 1)
    outputs.check(channels, doubled * count, (scale * x.shape[2], scale * x.shape[3]), x.dtype, x.device)
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
    from . import causal_conv_triton  # noqa: F401
