"""Calls one build of the kernel from Python: the emulated one on CPU tensors, or the GPU's.

``Build(path)(...)`` takes ``causal_conv``'s arguments, or ``conv_pixels``' by ``pixels``.
"""

import ctypes as c

import torch


class Tensor4(c.Structure):
    _fields_ = (("data", c.c_void_p), ("count", c.c_int64), ("channels", c.c_int), ("places", c.c_void_p))


class Call(c.Structure):
    _fields_ = (
        *((name, c.c_int) for name in ("op", "frames", "height", "width", "channels")),
        ("x", Tensor4), ("residual", Tensor4),
        ("weight", c.c_void_p), ("part_size", c.c_int64), ("bias", c.c_void_p), ("gain", c.c_void_p),
        ("raw", Tensor4), ("act", Tensor4), ("pixels", c.c_void_p), ("as_bytes", c.c_bool), ("eps", c.c_float),
    )  # fmt: skip


def tensor4(t, places):
    if t is None:
        return Tensor4()
    return Tensor4(t.data_ptr(), t.shape[0], t.shape[1] * 8, places.data_ptr())


class Build:
    def __init__(self, path, variant=0, processors=132, lateness=1, seed=0):
        self.library = c.CDLL(str(path))
        assert self.library.call_size() == c.sizeof(Call), (self.library.call_size(), c.sizeof(Call))
        self.options = variant, processors, lateness, seed

    def _run(self, x, frames, weight, bias, kind, **rest):
        history = 2 if kind in (0, 2) else 0
        call = Call(
            op=kind, frames=len(frames) - history, height=x.shape[2], width=x.shape[3],
            channels=len(bias) // (2 if kind == 2 else 1), x=tensor4(x, frames), weight=weight.data_ptr(),
            part_size=weight.shape[1], bias=bias.data_ptr(), **rest,
        )  # fmt: skip
        stream = c.c_void_p(torch.cuda.current_stream().cuda_stream if x.is_cuda else 0)
        status = self.library.convolve_once(c.byref(call), *self.options, stream)
        assert status == 0, status

    def __call__(self, x, frames, weight, bias, kind, residual=None, residual_frames=None, raw=None, raw_frames=None,
                 act=None, act_frames=None, gain=None):  # fmt: skip
        channels = len(bias) // (2 if kind == 2 else 1)
        self._run(
            x, frames, weight, bias, kind, residual=tensor4(residual, residual_frames), raw=tensor4(raw, raw_frames),
            act=tensor4(act, act_frames), gain=None if gain is None else gain.data_ptr(), eps=1e-24 / channels,
        )  # fmt: skip

    def pixels(self, x, frames, weight, bias, out):
        self._run(x, frames, weight, bias, 0, pixels=out.data_ptr(), as_bytes=out.dtype == torch.uint8)
