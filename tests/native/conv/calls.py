"""Calls the emulated kernel on CPU tensors: as ``causal_conv``, ``causal_conv_int8`` (``int8``) or ``conv_pixels``."""

import ctypes as c
from dataclasses import dataclass

import torch
from torch import Tensor

from longlive_optimized.kernels.causal_conv import Kind


class FrameList(c.Structure):
    """As in csrc/conv/plan.h."""

    _fields_ = (("data", c.c_void_p), ("count", c.c_int64), ("groups", c.c_int), ("indices", c.c_void_p))


class Call(c.Structure):
    """As in csrc/conv/plan.h."""

    _fields_ = (
        *((name, c.c_int) for name in ("op", "frames", "height", "width", "channels")),
        ("is_int8", c.c_bool), ("x", FrameList), ("residual", FrameList),
        *((name, c.c_void_p) for name in ("weight", "scale", "bias", "gain")),
        ("raw", FrameList), ("act", FrameList), ("act_inverse", c.c_float), ("saturated", c.c_void_p),
        ("pixels", c.c_void_p), ("as_bytes", c.c_bool), ("eps", c.c_float),
    )  # fmt: skip


def frame_list(t: Tensor | None, indices: Tensor | None) -> FrameList:
    return FrameList() if t is None else FrameList(t.data_ptr(), t.shape[0], t.shape[1], indices.data_ptr())


@dataclass
class Emulated:
    """The kernel as built by ``emulate.build``, under one random schedule."""

    library: c.CDLL
    subtiles: int = 0  # see entry.cpp
    processors: int = 2
    seed: int = 0

    def _run(self, x, frames, weight, bias, kind, **rest):
        history = 2 if kind in (Kind.CAUSAL, Kind.TIME) else 0
        call = Call(
            op=kind, frames=len(frames) - history, height=x.shape[2], width=x.shape[3],
            channels=len(bias) // (2 if kind == Kind.TIME else 1), x=frame_list(x, frames), weight=weight.data_ptr(),
            bias=bias.data_ptr(), **rest,
        )  # fmt: skip
        assert self.library.call_size() == c.sizeof(Call)
        assert self.library.convolve_once(c.byref(call), self.subtiles, self.processors, self.seed)

    def __call__(self, x, frames, weight, bias, kind, residual=None, residual_frames=None, raw=None, raw_frames=None,
                 act=None, act_frames=None, gain=None, act_scale=0.0, saturated=None, **rest):  # fmt: skip
        channels = len(bias) // (2 if kind == Kind.TIME else 1)
        in_int8 = act is not None and act.dtype == torch.int8
        self._run(
            x, frames, weight, bias, kind,
            residual=frame_list(residual, residual_frames), raw=frame_list(raw, raw_frames),
            act=frame_list(act, act_frames), gain=None if gain is None else gain.data_ptr(), eps=1e-24 / channels,
            act_inverse=1 / act_scale if in_int8 else 0, saturated=saturated.data_ptr() if in_int8 else None, **rest,
        )  # fmt: skip

    def int8(self, x, frames, weight, scale, bias, **rest):
        self(x, frames, weight, bias, Kind.CAUSAL, is_int8=True, scale=scale.data_ptr(), **rest)

    def pixels(self, x, frames, weight, bias, out):
        self._run(x, frames, weight, bias, Kind.CAUSAL, pixels=out.data_ptr(), as_bytes=out.dtype == torch.uint8)
