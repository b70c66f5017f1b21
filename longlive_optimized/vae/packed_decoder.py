"""The decoder's weights in the order in which the fused convolutions read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..kernels.causal_conv import GROUP, Kind, pack
from ..kernels.conv_pixels import pack_pixels
from .layers import ResidualBlock, RMSNorm, Upsample

if TYPE_CHECKING:
    from .model import WanVae


@dataclass(frozen=True, eq=False)  # each is itself, and a key
class Convolution:
    """Arguments of ``causal_conv``."""

    kind: Kind
    weight: Tensor
    bias: Tensor

    @property
    def channels(self) -> int:
        return len(self.bias) // (2 if self.kind == Kind.TIME else 1)


@dataclass(frozen=True, eq=False)
class Block:
    """A residual block: SiLU(norm(x)) into ``first``, then ``between`` and SiLU into ``second``, which adds x."""

    norm: Tensor
    first: Convolution
    between: Tensor
    second: Convolution


@dataclass(frozen=True, eq=False)
class Level:
    """The blocks of one size of frames, and what leads to the next; ``time`` where that has twice the frames."""

    blocks: list[Block]
    time: Convolution | None = None
    up: Convolution | None = None

    @property
    def looking_back(self) -> list[Convolution]:
        """The layers that read past frames of the level's own width; its very first one may read a narrower one."""
        inner = [layer for block in self.blocks for layer in (block.first, block.second)][1:]
        return inner + ([self.time] if self.time else [])


class PackedDecoder:
    """What streams share. Copies the convolutions of ``vae``'s decoder, refers to its attention and ``conv2``.

    Raises ValueError naming ``vae`` if its widths are no multiples of 8.
    """

    @torch.no_grad()
    def __init__(self, vae: WanVae):
        if any(width % GROUP for width in (*vae.config.widths, vae.config.z_dim)):
            raise ValueError(f"vae must have widths that are multiples of {GROUP}, got {vae.config}")
        decoder = vae.decoder
        before, self.attention, after = decoder.middle
        self.z_dim, self.conv2 = vae.config.z_dim, vae.conv2
        self.conv1 = _convolution(Kind.CAUSAL, decoder.conv1)
        self.before, self.after_attention = _block(before), after.residual["0"]
        self.levels = [_level([after, *decoder.upsamples[:3]], decoder.upsamples[3])]
        self.levels += [_level(decoder.upsamples[i : i + 3], decoder.upsamples[i + 3]) for i in (4, 8)]
        self.levels += [_level(decoder.upsamples[12:])]
        self.head = _gain(decoder.head["0"])
        last = decoder.head["2"]
        self.pixels = Convolution(Kind.CAUSAL, *pack_pixels(last.weight.contiguous(), last.bias))


def _level(blocks: nn.ModuleList | list[ResidualBlock], upsample: Upsample | None = None) -> Level:
    packed = [_block(block) for block in blocks]
    if upsample is None:
        return Level(packed)
    time = upsample.time_conv and _convolution(Kind.TIME, upsample.time_conv)
    return Level(packed, time, _convolution(Kind.UP, upsample.resample["1"]))


def _block(block: ResidualBlock) -> Block:
    layers, shortcut = block.residual, block.shortcut
    first = _convolution(Kind.CAUSAL, layers["2"])
    if shortcut is None:
        point = torch.eye(first.channels, dtype=first.weight.dtype, device=first.weight.device)
        second = _convolution(Kind.CAUSAL, layers["6"], point)
    else:
        second = _convolution(Kind.CAUSAL, layers["6"], shortcut.weight.flatten(1), shortcut.bias)
    return Block(_gain(layers["0"]), first, _gain(layers["3"]), second)


def _convolution(
    kind: Kind, layer: nn.Conv2d | nn.Conv3d, residual: Tensor | None = None, bias: Tensor | None = None
) -> Convolution:
    # Precision: the sum of both biases stays in float32.
    total = _wide(layer.bias) if bias is None else _wide(layer.bias) + _wide(bias)
    return Convolution(kind, pack(kind, layer.weight.contiguous(), residual), total)


def _gain(norm: RMSNorm) -> Tensor:
    return _wide(norm.gamma.flatten())


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))
