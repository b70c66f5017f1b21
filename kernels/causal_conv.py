"""causal_conv: the video autoencoder's convolutions, with what follows each of them in the network.

Activations are [frames, C / 8, H, W, 8]: a pixel's channels lie in groups of eight. A list of frame indices says which
of a tensor's frames are read or written, in which order, so history is never copied: it stays where it was written.
"""

from __future__ import annotations

from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .checks import expect, expect_float
from .registry import op

GROUP = 8  # channels that lie together
PIXEL = 16  # channels that the three of a picture are padded to
_CHUNK = 32  # channels whose weights lie together
_PART = 192  # channels of the result that are computed together where they divide it
_BY_COLUMN = 96  # a part of CAUSAL so wide reads its input once for each column of taps
_EPS = 1e-24  # of |x|^2: the network's norm divides by max(|x|, 1e-12)


class Kind(IntEnum):
    """What a convolution does, and the shape of its weight."""

    CAUSAL = 0  # [Co, Ci, 3, 3, 3]: over a frame and the two before it, zero-padded in space
    POINT = 1  # [Co, Ci, 1, 1, 1]
    TIME = 2  # [2 Co, Ci, 3, 1, 1]: over time alone; a frame becomes two, each from one half of the channels
    UP = 3  # [Co, Ci, 3, 3]: of frames upsampled twice to the nearest neighbour, zero-padded


_SLICES: dict[int, int] = {Kind.CAUSAL: 3, Kind.POINT: 1, Kind.TIME: 3, Kind.UP: 1}  # input frames of a result
_TAPS: dict[int, int] = {Kind.CAUSAL: 9, Kind.POINT: 1, Kind.TIME: 1, Kind.UP: 4}  # in each of them
_RESULTS: dict[int, int] = {Kind.CAUSAL: 1, Kind.POINT: 1, Kind.TIME: 2, Kind.UP: 4}  # of a pixel


def to_groups(x: Tensor) -> Tensor:
    """[T, H, W, C] to [T, C / 8, H, W, 8], contiguous."""
    return x.unflatten(-1, (-1, GROUP)).movedim(3, 1).contiguous()


def from_groups(x: Tensor) -> Tensor:
    """The inverse of ``to_groups``."""
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
    if kind == Kind.CAUSAL and width == _BY_COLUMN:
        rows = rows.unflatten(3, (3, 3)).mT.flatten(2, 3)
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


def _stream(w: Tensor, width: int) -> Tensor:
    """[parts * width, Ci, slices, taps] to [parts, slices, chunks, taps, 4, width, 8], Ci padded with zeros; flat."""
    w = F.pad(w, (0, 0, 0, 0, 0, -w.shape[1] % _CHUNK))
    w = w.unflatten(1, (-1, _CHUNK // GROUP, GROUP)).unflatten(0, (-1, width))
    return w.permute(0, 5, 2, 6, 3, 1, 4).flatten(1)


def _unstream(stream: Tensor, channels: int, slices: int, taps: int, width: int) -> Tensor:
    """The inverse of ``_stream``: [parts * width, channels, slices, taps]."""
    w = stream.view(len(stream), slices, -1, taps, _CHUNK // GROUP, width, GROUP)
    return w.permute(0, 5, 2, 4, 6, 1, 3).flatten(2, 4).flatten(0, 1)[:, :channels]


@op(mutates=("raw", "act"))
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

    All lists of indices are int32, contiguous, on x's device, and are read when the operator runs: a captured graph
    serves any. Indices must not repeat within an output, nor may what is read be written, but for residual and raw.
    Raises ValueError naming the argument that does not fit.
    """
    channels, width = _check(
        x, frames, weight, bias, kind, residual, residual_frames, raw, raw_frames, act, act_frames, gain
    )
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
    y = y.to(x.dtype)
    if raw is not None and raw_frames is not None:
        _write(raw, raw_frames, y)
    if act is not None and act_frames is not None:
        normed = F.rms_norm(y.movedim(1, -1).to(wide), (channels,), gain, eps=_EPS / channels)
        _write(act, act_frames, F.silu(normed).movedim(-1, 1).to(x.dtype))


def _taps(stream: Tensor, channels: int, kind: int, width: int) -> Tensor:
    """What ``pack`` made of a weight: [rows, channels, slices, taps]."""
    if kind == Kind.CAUSAL and width == _BY_COLUMN:
        return _unstream(stream, channels, 9, 3, width).unflatten(2, (3, 3)).mT.flatten(3)
    return _unstream(stream, channels, _SLICES[kind], _TAPS[kind], width)


def _read(x: Tensor, frames: Tensor, dtype: torch.dtype) -> Tensor:
    """[T, C, H, W]"""
    found = x[frames.clamp(min=0)].where((frames >= 0).view(-1, 1, 1, 1, 1), 0)
    return found.movedim(-1, 2).flatten(1, 2).to(dtype)


def _write(t: Tensor, frames: Tensor, y: Tensor) -> None:
    t[frames] = y.unflatten(1, (-1, GROUP)).movedim(2, -1)


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
    return x.shape[1] * GROUP + -(x.shape[1] * GROUP) % _CHUNK


def _check(
    x: Tensor,
    frames: Tensor,
    weight: Tensor,
    bias: Tensor,
    kind: int,
    residual: Tensor | None,
    residual_frames: Tensor | None,
    raw: Tensor | None,
    raw_frames: Tensor | None,
    act: Tensor | None,
    act_frames: Tensor | None,
    gain: Tensor | None,
) -> tuple[int, int]:
    """Channels of a frame of the output, and of a part."""
    if kind not in list(Kind):
        raise ValueError(f"kind must be a Kind, got {kind}")
    expect_float("x", x)
    expect("x", x, (None, None, None, None, GROUP), x.dtype, x.device)
    history = 2 if _SLICES[kind] == 3 else 0
    _check_indices("frames", frames, x)
    count = len(frames) - history
    if count < 1:
        raise ValueError(f"frames must have at least {history + 1} indices, got {len(frames)}")
    wide = torch.promote_types(x.dtype, torch.float32)
    expect("bias", bias, (None,), wide, x.device)
    doubled = 2 if kind == Kind.TIME else 1
    channels = len(bias) // doubled
    width = _width(channels)
    parts = channels // width * _RESULTS[kind]
    size = _padded(x) * _SLICES[kind] * _TAPS[kind]
    if residual is not None:
        expect("residual", residual, (None, None, *x.shape[2:]), x.dtype, x.device)
        _check_indices("residual_frames", residual_frames, x, count)
        size += _padded(residual)
    expect("weight", weight, (parts, size * width), x.dtype, x.device)
    scale = 2 if kind == Kind.UP else 1
    shape = (None, channels // GROUP, scale * x.shape[2], scale * x.shape[3], GROUP)
    if raw is None and act is None:
        raise ValueError("raw and act must not both be None")
    for name, t, indices in (("raw", raw, raw_frames), ("act", act, act_frames)):
        if t is not None:
            expect(name, t, shape, x.dtype, x.device)
            _check_indices(f"{name}_frames", indices, x, doubled * count)
    if act is not None:
        if gain is None:
            raise ValueError("gain must not be None where act is not")
        expect("gain", gain, (channels,), wide, x.device)
    return channels, width


def _check_indices(name: str, indices: Tensor | None, x: Tensor, count: int | None = None) -> None:
    if indices is None:
        raise ValueError(f"{name} must not be None")
    expect(name, indices, (count,), torch.int32, x.device)


def _fits_cuda(
    x, frames, weight, bias, kind, residual=None, residual_frames=None, raw=None, raw_frames=None, act=None,
    act_frames=None, gain=None,
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
    act_frames=None, gain=None,
) -> None:  # fmt: skip
    torch.ops.longlive_C.causal_conv(
        x, frames, weight, bias, kind, residual, residual_frames, raw, raw_frames, act, act_frames, gain, _EPS
    )
