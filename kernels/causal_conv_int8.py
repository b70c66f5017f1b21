"""causal_conv_int8: the video autoencoder's 3x3x3 convolutions of int8, with what follows each of them in the network.

What they read is SiLU of a norm: bounded, so that one scale serves a layer (docs/int8.md). Zero is zero, so that the
padding in space and time is, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import native
from .causal_conv import (
    _EPS,
    _PART,
    GROUP,
    GROUP_INT8,
    Kind,
    _check_frames,
    _check_indices,
    _convolve,
    _Outputs,
    _padded,
    _read,
    _stream,
    _unstream,
    _width,
)
from .checks import expect, expect_float
from .quantize import quantize_groups
from .registry import op
from .triton_import import triton

_DEEPEST = (2**31 - 1) // (27 * 128**2)  # channels of the input whose products sum to an int32, whatever the values


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` [Co, Ci, 3, 3, 3] of floats in int8, in the order in which the kernel reads it, and its scales.

    Each output channel has a scale, the largest magnitude over 127 (``quantize``). Returns (packed [parts, size] int8,
    scale [Co] float32). Raises ValueError naming ``weight`` if its shape does not fit, Ci and Co being multiples of 16.
    """
    expect_float("weight", weight)
    expect("weight", weight, (None, None, 3, 3, 3), weight.dtype, weight.device, dense_from=1)
    if weight.shape[1] % GROUP_INT8 or weight.shape[0] % GROUP_INT8:
        raise ValueError(f"weight must have multiples of {GROUP_INT8} channels, got {list(weight.shape)}")
    values, scale = quantize_groups(weight.flatten(1), 1)
    return _stream(values.unflatten(1, (-1, 3, 9)), _width(len(weight)), GROUP_INT8), scale[0]


@op(mutates=("raw", "act", "saturated"))
def causal_conv_int8(
    x: Tensor,
    frames: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
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
    """``y = conv(x) * scale + bias (+ residual)`` into ``raw``, and ``SiLU(norm(y) * gain)`` into ``act``.

    - x [S, Ci / 16, H, W, 16] int8, contiguous, as ``causal_conv`` or this operator writes it, Ci at most 4854.
      frames [2 + T], int32: the indices in x of the two frames before the first that is convolved, then of these; below
      zero: a frame of zeros.
    - weight: see ``pack_int8``. scale [Co]: the weight's times that of x. Both it and bias [Co] are float32, or float64
      with outputs of float64.
    - residual [S', Co / 8, H, W, 8], read at residual_frames [T] (as frames); it may be raw, at the same indices.
    - raw, act, gain, act_scale and saturated: see ``causal_conv``. residual, raw and an act that is not int8 have the
      same dtype; it is bfloat16 where none of them is there.

    The convolution's sums are exact integers. Raises ValueError naming the argument that does not fit.
    """
    outputs = _Outputs(raw, raw_frames, act, act_frames, gain, act_scale, saturated)
    dtype = _check(x, frames, weight, scale, bias, residual, residual_frames, outputs)
    # Precision: the integer sum is exact, the rest is float32, rounded once; the norm reads the rounded y.
    width = _width(len(bias))
    taps = _unstream(weight.double(), x.shape[1] * GROUP_INT8, 3, 9, width, GROUP_INT8)
    y = _convolve(_read(x, frames, torch.float64), taps, Kind.CAUSAL).to(bias.dtype)
    y = y * scale.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
    if residual is not None and residual_frames is not None:
        y += _read(residual, residual_frames, bias.dtype)
    outputs.write(y.to(dtype))


def _dtype(residual: Tensor | None, raw: Tensor | None, act: Tensor | None, bias: Tensor) -> torch.dtype:
    """That of y once it is rounded."""
    for t in (raw, residual, act):
        if t is not None and t.dtype != torch.int8:
            return t.dtype
    return torch.bfloat16 if bias.dtype == torch.float32 else bias.dtype


def _check(
    x: Tensor,
    frames: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    residual_frames: Tensor | None,
    outputs: _Outputs,
) -> torch.dtype:
    """That of y once it is rounded."""
    dtype = _dtype(residual, outputs.raw, outputs.act, bias)
    expect("x", x, (None, None, None, None, GROUP_INT8), torch.int8, x.device)
    if x.shape[1] * GROUP_INT8 > _DEEPEST:
        raise ValueError(f"x must have at most {_DEEPEST} channels, got {x.shape[1] * GROUP_INT8}")
    count = _check_frames(frames, 2, x.device)
    wide = torch.promote_types(dtype, torch.float32)
    expect("bias", bias, (None,), wide, x.device)
    channels = len(bias)
    if channels == 0 or channels % GROUP_INT8:
        raise ValueError(f"bias must have a multiple of {GROUP_INT8} channels, got {channels}")
    expect("scale", scale, (channels,), wide, x.device)
    width = _width(channels)
    expect("weight", weight, (channels // width, _padded(x) * 27 * width), torch.int8, x.device)
    if residual is not None:
        expect("residual", residual, (None, channels // GROUP, *x.shape[2:4], GROUP), dtype, x.device)
        _check_indices("residual_frames", residual_frames, x.device, count)
    outputs.check(channels, count, (x.shape[2], x.shape[3]), dtype, x.device)
    return dtype


def _fits_cuda(
    x, frames, weight, scale, bias, residual=None, residual_frames=None, raw=None, raw_frames=None, act=None,
    act_frames=None, gain=None, act_scale=0.0, saturated=None,
) -> bool:  # fmt: skip
    if not native.on_hopper(x) or _dtype(residual, raw, act, bias) != torch.bfloat16:
        return False
    channels = len(bias)
    return channels in (96, _PART, 2 * _PART) or (act is None and channels % _PART == 0)


@causal_conv_int8.impl("cuda", when=_fits_cuda)
def _cuda(
    x, frames, weight, scale, bias, residual=None, residual_frames=None, raw=None, raw_frames=None, act=None,
    act_frames=None, gain=None, act_scale=0.0, saturated=None,
) -> None:  # fmt: skip
    # Precision: SiLU in half precision where act is int8, an error of a few hundredths of a step.
    torch.ops.longlive_C.causal_conv_int8(
        x, frames, weight, scale, bias, residual, residual_frames, raw, raw_frames, act, act_frames, gain, act_scale,
        saturated, _EPS,
    )  # fmt: skip


if triton:
    from .causal_conv_triton import counts_in_int32, launch

    def _fits_triton(x: Tensor, frames: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, *rest, **named) -> bool:
        return x.is_cuda and bias.dtype == torch.float32 and counts_in_int32(len(bias), x)

    @causal_conv_int8.impl("triton", when=_fits_triton)
    def _triton(
        x, frames, weight, scale, bias, residual=None, residual_frames=None, raw=None, raw_frames=None, act=None,
        act_frames=None, gain=None, act_scale=0.0, saturated=None,
    ) -> None:  # fmt: skip
        outputs = _Outputs(raw, raw_frames, act, act_frames, gain, act_scale, saturated)
        dtype = _check(x, frames, weight, scale, bias, residual, residual_frames, outputs)
        launch(Kind.CAUSAL, x, frames, weight, scale, bias, residual, residual_frames, outputs, dtype)
