"""Calls the emulated kernel on CPU tensors: as ``causal_conv``, or by ``pixels`` as ``conv_pixels``."""

import ctypes as c
from dataclasses import dataclass

import torch
from torch import Tensor

from longlive_optimized.kernels.causal_conv import GROUP, Kind


class FrameList(c.Structure):
    """As in csrc/conv/plan.h."""

    _fields_ = (("data", c.c_void_p), ("count", c.c_int64), ("channels", c.c_int), ("indices", c.c_void_p))


class Call(c.Structure):
    """As in csrc/conv/plan.h."""

    _fields_ = (
        *((name, c.c_int) for name in ("op", "frames", "height", "width", "channels")),
        ("x", FrameList), ("residual", FrameList),
        ("weight", c.c_void_p), ("bias", c.c_void_p), ("gain", c.c_void_p),
        ("raw", FrameList), ("act", FrameList), ("pixels", c.c_void_p), ("as_bytes", c.c_bool), ("eps", c.c_float),
    )  # fmt: skip


def frame_list(t: Tensor | None, indices: Tensor | None) -> FrameList:
    return FrameList() if t is None else FrameList(t.data_ptr(), t.shape[0], t.shape[1] * GROUP, indices.data_ptr())


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
                 act=None, act_frames=None, gain=None):  # fmt: skip
        channels = len(bias) // (2 if kind == Kind.TIME else 1)
        self._run(
            x, frames, weight, bias, kind,
            residual=frame_list(residual, residual_frames), raw=frame_list(raw, raw_frames),
            act=frame_list(act, act_frames), gain=None if gain is None else gain.data_ptr(), eps=1e-24 / channels,
        )  # fmt: skip

    def pixels(self, x, frames, weight, bias, out):
        self._run(x, frames, weight, bias, Kind.CAUSAL, pixels=out.data_ptr(), as_bytes=out.dtype == torch.uint8)
