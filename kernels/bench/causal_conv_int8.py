"""Shapes and counts of causal_conv_int8: those of the decoder's layers that have a norm before them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..causal_conv import GROUP, GROUP_INT8, LARGEST, Kind, causal_conv
from ..causal_conv_int8 import pack_int8
from .case import Bench, Case
from .causal_conv import Layer
from .causal_conv import arguments as plain_arguments
from .causal_conv import decoder as plain_decoder

_ACT_SCALE = 1 / 16  # which cuts off next to nothing of what a norm and such gains leave


def decoder(height: int, width: int, latents: int = 3) -> list[Layer]:
    """The convolutions of int8 in a steady block; where there is a shortcut, it has been computed before."""
    layers = plain_decoder(height, width, latents)
    causal = [layer for layer in layers if layer.kind == Kind.CAUSAL and layer.channels[0] >= 96]
    return [replace(layer, residual=layer.channels[1] if layer.residual else 0) for layer in causal]


def arguments(layer: Layer, device: str, dtype: torch.dtype = torch.bfloat16) -> tuple:
    """Random arguments; frames lie in order. act is int8, but where raw is not there, which only pictures follow."""
    (height, width), (ci, co) = layer.size, layer.channels
    wide = torch.promote_types(dtype, torch.float32)

    def indices(count: int) -> Tensor:
        return torch.arange(count, dtype=torch.int32, device=device)

    def frames(channels: int, in_int8: bool = False) -> Tensor:
        group = GROUP_INT8 if in_int8 else GROUP
        kind = torch.int8 if in_int8 else dtype
        return torch.empty(layer.frames, channels // group, height, width, group, dtype=kind, device=device)

    in_int8 = layer.act and not (layer.residual and not layer.raw)
    weight, scale = pack_int8(torch.randn(co, ci, 3, 3, 3, device=device) * (27 * ci) ** -0.5)
    shape = layer.frames + 2, ci // GROUP_INT8, height, width, GROUP_INT8
    x = torch.randn(shape, dtype=torch.bfloat16, device=device).mul_(32).clamp_(-LARGEST, LARGEST)
    listed, bias = indices(layer.frames), torch.randn(co, device=device).to(wide)
    gain = torch.randn(co, device=device).mul_(0.1).add_(1).to(wide)
    return (
        x.to(torch.int8), indices(layer.frames + 2), weight, (scale / 32).to(wide), bias,
        frames(co).normal_() if layer.residual else None, listed if layer.residual else None,
        frames(co) if layer.raw else None, listed if layer.raw else None,
        frames(co, in_int8) if layer.act else None, listed if layer.act else None,
        gain if layer.act else None, _ACT_SCALE if in_int8 else 0.0,
        torch.zeros(1, dtype=torch.int64, device=device) if in_int8 else None,
    )  # fmt: skip


def case(layer: Layer, dtype: torch.dtype) -> Case:
    results = ", ".join(["raw"] * layer.raw + ["act"] * layer.act)
    shape = f"{layer.name}: {layer.frames}x{layer.size[0]}x{layer.size[1]} to {results}"
    (height, width), (ci, co) = layer.size, layer.channels
    act_bytes = 0 if not layer.act else 1 if layer.raw or not layer.residual else dtype.itemsize
    results_bytes = layer.frames * co * (dtype.itemsize * (layer.raw + bool(layer.residual)) + act_bytes)
    moved = height * width * ((layer.frames + 2) * ci + results_bytes) + 27 * ci * co
    return Case(shape, dtype, lambda device: arguments(layer, device, dtype), moved, layer.flops)


@functools.lru_cache(maxsize=1)
def _in_bfloat16(layer: Layer, device: torch.device) -> tuple:
    return plain_arguments(layer, str(device))


def peers() -> dict[str, Callable]:
    """The same in bfloat16; its arguments are drawn when it is called first, which is not timed."""

    def in_bfloat16(x, frames, weight, scale, bias, residual, residual_frames, raw, raw_frames, act, *rest) -> None:
        channels, count = len(bias), len(frames) - 2
        size, widths = (x.shape[2], x.shape[3]), (x.shape[1] * GROUP_INT8, channels)
        same = channels if residual is not None else 0
        outputs = raw is not None, act is not None
        causal_conv(*_in_bfloat16(Layer("", 1, Kind.CAUSAL, size, widths, count, same, *outputs), x.device))

    return {"bfloat16": in_bfloat16}


def _some(height: int, width: int) -> list[Layer]:
    """Those that take most of the time, the longest first, and some of each other size: all run in 20 seconds."""
    return [layer for layer in reversed(decoder(height, width)) if layer.act and (layer.times > 1 or not layer.raw)]


BENCH = Bench(
    real=[case(layer, torch.bfloat16) for layer in _some(60, 104)],
    small=[case(Layer("small", 1, Kind.CAUSAL, (16, 24), (96, 96), 2, act=True), torch.float32)],
    peers=peers,
    time_reference=False,
)
