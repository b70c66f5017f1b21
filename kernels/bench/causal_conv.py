"""Shapes, operations and baseline of causal_conv: the decoder's layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..causal_conv import GROUP, Kind, pack
from .case import Bench, Case


@dataclass(frozen=True)
class Layer:
    """``times`` such calls make up a block's decoding; ``frames`` go in; ``residual`` counts its channels."""

    name: str
    times: int
    kind: Kind
    size: tuple[int, int]
    channels: tuple[int, int]
    frames: int
    residual: int = 0
    raw: bool = False
    act: bool = False

    @property
    def outputs(self) -> int:
        """Frames that come out."""
        return self.frames * (2 if self.kind == Kind.TIME else 1)

    @property
    def flops(self) -> int:
        """As published: an addition is no product, but an upsampled frame is convolved with all nine taps."""
        (height, width), (ci, co) = self.size, self.channels
        taps = {Kind.CAUSAL: 27, Kind.POINT: 1, Kind.TIME: 6, Kind.UP: 36}[self.kind]
        shortcut = self.residual if self.residual != co else 0
        return 2 * self.frames * height * width * co * (ci * taps + shortcut)

    @property
    def bytes(self) -> int:
        (height, width), (ci, co) = self.size, self.channels
        taps = {Kind.CAUSAL: 27, Kind.POINT: 1, Kind.TIME: 6, Kind.UP: 16}[self.kind]
        history = 2 if self.kind in (Kind.CAUSAL, Kind.TIME) else 0
        inputs = (self.frames + history) * ci + self.frames * self.residual
        outputs = self.outputs * (4 if self.kind == Kind.UP else 1) * co * (self.raw + self.act)
        return 2 * (height * width * (inputs + outputs) + co * (ci * taps + self.residual))


def decoder(height: int, width: int, latents: int = 3) -> list[Layer]:
    """The convolutions of a steady block of latents ``height`` x ``width``; the last one is ``conv_pixels``."""
    sizes, t = [(height << i, width << i) for i in range(4)], latents
    both = {"raw": True, "act": True}

    def causal(level: int, name: str, times: int, ci: int, co: int, **rest) -> Layer:
        return Layer(name, times, Kind.CAUSAL, sizes[level], (ci, co), t * min(4, 1 << level), **rest)

    def second(level: int, times: int, width: int, **rest) -> Layer:
        return causal(level, f"second of a block, {width}", times, width, width, residual=width, **rest)

    return [
        causal(0, "conv1", 1, 16, 384, **both),
        causal(0, "first of a block, 384", 5, 384, 384, act=True),
        second(0, 3, 384, **both),
        second(0, 2, 384, raw=True),
        Layer("time, 384", 1, Kind.TIME, sizes[0], (384, 384), t, raw=True),
        Layer("up, 384 to 192", 1, Kind.UP, sizes[0], (384, 192), 2 * t, **both),
        causal(1, "first of a block, 192 to 384", 1, 192, 384, act=True),
        causal(1, "second of a block, shortcut", 1, 384, 384, residual=192, **both),
        causal(1, "first of a block, 384", 2, 384, 384, act=True),
        second(1, 1, 384, **both),
        second(1, 1, 384, raw=True),
        Layer("time, 384", 1, Kind.TIME, sizes[1], (384, 384), 2 * t, raw=True),
        Layer("up, 384 to 192", 1, Kind.UP, sizes[1], (384, 192), 4 * t, **both),
        causal(2, "first of a block, 192", 3, 192, 192, act=True),
        second(2, 2, 192, **both),
        second(2, 1, 192, raw=True),
        Layer("up, 192 to 96", 1, Kind.UP, sizes[2], (192, 96), 4 * t, **both),
        causal(3, "first of a block, 96", 3, 96, 96, act=True),
        second(3, 2, 96, **both),
        second(3, 1, 96, act=True),
    ]


def arguments(layer: Layer, device: str, dtype: torch.dtype = torch.bfloat16) -> tuple:
    """Random arguments of ``causal_conv``; frames lie in order."""
    (height, width), (ci, co) = layer.size, layer.channels
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, dtype=dtype, device=device)

    def indices(count: int) -> Tensor:
        return torch.arange(count, dtype=torch.int32, device=device)

    taps = {Kind.CAUSAL: (3, 3, 3), Kind.POINT: (1, 1, 1), Kind.TIME: (3, 1, 1), Kind.UP: (3, 3)}[layer.kind]
    rows = co * (2 if layer.kind == Kind.TIME else 1)
    weight = normal(rows, ci, *taps) * (ci * math.prod(taps)) ** -0.5
    extra = None
    if layer.residual:
        same = layer.residual == co
        extra = torch.eye(co, dtype=dtype, device=device) if same else normal(co, layer.residual) * layer.residual**-0.5
    inputs = indices(layer.frames + (2 if layer.kind in (Kind.CAUSAL, Kind.TIME) else 0))
    frames = indices(layer.outputs)
    scale = 2 if layer.kind == Kind.UP else 1
    shape = layer.outputs, co // GROUP, scale * height, scale * width, GROUP
    residual = normal(layer.frames, layer.residual // GROUP, height, width, GROUP) if layer.residual else None
    raw = torch.empty(shape, dtype=dtype, device=device) if layer.raw else None
    act = torch.empty(shape, dtype=dtype, device=device) if layer.act else None
    return (
        normal(len(inputs), ci // GROUP, height, width, GROUP), inputs, pack(layer.kind, weight, extra),
        normal(rows, dtype=wide), int(layer.kind), residual, frames if layer.residual else None,
        raw, frames if layer.raw else None, act, frames if layer.act else None,
        normal(co, dtype=wide) if layer.act else None,
    )  # fmt: skip


def case(layer: Layer, dtype: torch.dtype) -> Case:
    results = ", ".join(["raw"] * layer.raw + ["act"] * layer.act)
    shape = f"{layer.name}: {layer.frames}x{layer.size[0]}x{layer.size[1]} to {results}"
    moved = layer.bytes * dtype.itemsize // 2
    return Case(shape, dtype, lambda device: arguments(layer, device, dtype), moved, layer.flops)


def published(
    x: Tensor, frames: Tensor, weight: Tensor, bias: Tensor, kind: int, residual: Tensor | None,
    residual_frames: Tensor | None, raw: Tensor | None, raw_frames: Tensor | None, act: Tensor | None,
    act_frames: Tensor | None, gain: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The published order, each step rounded, by the library's convolution on frames that lie channels-last.

    Timing only; the numbers are meaningless: buffers are reinterpreted as channels-last without conversion, so that no
    time goes into a change of layout.
    """
    taps = {Kind.CAUSAL: (3, 3, 3), Kind.POINT: (1, 1, 1), Kind.TIME: (3, 1, 1), Kind.UP: (1, 3, 3)}[Kind(kind)]
    flat, rows = weight.flatten(), len(bias)

    def channels_last(t: Tensor) -> Tensor:
        return t.view(1, len(t), *t.shape[2:4], -1).permute(0, 4, 1, 2, 3)

    x = channels_last(x)
    kernel = flat[: rows * x.shape[1] * math.prod(taps)].view(rows, *taps, -1).permute(0, 4, 1, 2, 3)
    if kind == Kind.UP:
        large = F.interpolate(x[0].transpose(0, 1).float(), scale_factor=2).to(x.dtype)
        y = F.conv2d(large, kernel[:, :, 0], bias.to(x.dtype), padding=1).transpose(0, 1)[None]
    else:
        y = F.conv3d(x, kernel, bias.to(x.dtype), padding=(0, taps[1] // 2, taps[2] // 2))
    if kind == Kind.TIME:
        y = y.unflatten(1, (2, -1)).movedim(1, 3).flatten(2, 3)
    if residual is not None:
        extra = channels_last(residual)
        if extra.shape[1] != rows:
            extra = F.conv3d(extra, flat[-rows * extra.shape[1] :].view(rows, -1, 1, 1, 1))
        y = y + extra
    if gain is None:
        return (y,)
    normed = F.normalize(y, dim=1) * len(gain) ** 0.5 * gain.to(y.dtype).view(-1, 1, 1, 1)
    return (y, F.silu(normed))


BENCH = Bench(
    real=[case(layer, torch.bfloat16) for size in ((60, 104), (40, 72)) for layer in decoder(*size)],
    small=[case(Layer("small", 1, Kind.CAUSAL, (16, 24), (96, 96), 2, act=True), torch.float32)],
    published=published,
    time_reference=False,
)
