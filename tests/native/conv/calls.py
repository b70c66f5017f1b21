"""Calls the emulated kernel on CPU tensors: as ``causal_conv``, or by ``pixels`` as ``conv_pixels``."""

import ctypes as c
from dataclasses import dataclass

import torch
from torch import Tensor

from longlive_optimized.kernels.causal_conv import GROUP, Kind


class Tensor4(c.Structure):
    """As in csrc/conv/plan.h."""

    _fields_ = (("data", c.c_void_p), ("count", c.c_int64), ("channels", c.c_int), ("places", c.c_void_p))


class Call(c.Structure):
    """As in csrc/conv/plan.h."""

    _fields_ = (
        *((name, c.c_int) for name in ("op", "frames", "height", "width", "channels")),
        ("x", Tensor4), ("residual", Tensor4),
        ("weight", c.c_void_p), ("part_size", c.c_int64), ("bias", c.c_void_p), ("gain", c.c_void_p),
        ("raw", Tensor4), ("act", Tensor4), ("pixels", c.c_void_p), ("as_bytes", c.c_bool), ("eps", c.c_float),
    )  # fmt: skip


def tensor4(t: Tensor | None, places: Tensor | None) -> Tensor4:
    return Tensor4() if t is None else Tensor4(t.data_ptr(), t.shape[0], t.shape[1] * GROUP, places.data_ptr())


@dataclass
class Emulated:
    """The kernel as built by ``emulate.build``, under one schedule."""

    library: c.CDLL
    tiles: int = 0  # see entry.cpp
    processors: int = 2
    lateness: int = 1  # of copies and products: 0 at once, 1 at random, 2 as late as possible
    seed: int = 0

    def _run(self, x, frames, weight, bias, kind, **rest):
        history = 2 if kind in (Kind.CAUSAL, Kind.TIME) else 0
        call = Call(
            op=kind, frames=len(frames) - history, height=x.shape[2], width=x.shape[3],
            channels=len(bias) // (2 if kind == Kind.TIME else 1), x=tensor4(x, frames), weight=weight.data_ptr(),
            part_size=weight.shape[1], bias=bias.data_ptr(), **rest,
        )  # fmt: skip
        assert self.library.call_size() == c.sizeof(Call)
        assert self.library.convolve_once(c.byref(call), self.tiles, self.processors, self.lateness, self.seed)

    def __call__(self, x, frames, weight, bias, kind, residual=None, residual_frames=None, raw=None, raw_frames=None,
                 act=None, act_frames=None, gain=None):  # fmt: skip
        channels = len(bias) // (2 if kind == Kind.TIME else 1)
        self._run(
            x, frames, weight, bias, kind, residual=tensor4(residual, residual_frames), raw=tensor4(raw, raw_frames),
            act=tensor4(act, act_frames), gain=None if gain is None else gain.data_ptr(), eps=1e-24 / channels,
        )  # fmt: skip

    def pixels(self, x, frames, weight, bias, out):
        self._run(x, frames, weight, bias, Kind.CAUSAL, pixels=out.data_ptr(), as_bytes=out.dtype == torch.uint8)
