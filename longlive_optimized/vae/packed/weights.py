"""The weights as the fused convolutions read them: copies, made once, which all streams of a codec share.

What is not fused (the first pointwise convolution, attention, strided convolutions and the norms beside them) is copied
as the module that it is, so that every weight of a codec is from the same moment.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.causal_conv import Kind, pack
from ...kernels.causal_conv_int8 import pack_int8
from ...kernels.conv_pixels import pack_pixels
from ..wan.layers import AttentionBlock, Downsample, ResidualBlock, RMSNorm, Upsample
from ..wan.model import WanVae
from .int8 import Saturated, Scales

_FEWEST = 96  # output channels of the smallest kernel; the others have multiples of it


@dataclass(frozen=True, eq=False)
class Act:
    """A norm and SiLU, as arguments of the convolution before: into int8 where there is a ``scale``."""

    gain: Tensor
    scale: float = 0.0
    saturated: Tensor | None = None

    @classmethod
    def of(cls, norm: RMSNorm, scales: Scales | None = None) -> Act:
        gain = _wide(norm.gamma.flatten())
        return cls(gain) if scales is None else cls(gain, scales.of[norm], scales.saturated.count)


@dataclass(frozen=True, eq=False)  # compared and hashed by identity
class Convolution:
    """Arguments of ``causal_conv``."""

    kind: Kind
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(
        cls,
        kind: Kind,
        layer: nn.Conv2d | nn.Conv3d,
        residual: Tensor | None = None,
        residual_bias: Tensor | None = None,
    ) -> Convolution:
        """``layer`` as it is; ``residual`` is ``pack``'s."""
        # Precision: the sum of both biases stays in float32.
        bias = _wide(layer.bias) if residual_bias is None else _wide(layer.bias) + _wide(residual_bias)
        return cls(kind, pack(kind, layer.weight.contiguous(), residual), bias)

    @property
    def channels(self) -> int:
        """Of a frame of the result."""
        return len(self.bias) // (2 if self.kind == Kind.TIME else 1)


@dataclass(frozen=True, eq=False)
class Int8Convolution:
    """Arguments of ``causal_conv_int8``; ``scale`` is the weight's times the input's."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: nn.Conv3d, input_scale: float) -> Int8Convolution:
        weight, scale = pack_int8(layer.weight.contiguous())
        bias = _wide(layer.bias)
        return cls(weight, (scale * input_scale).to(bias.dtype), bias)

    @property
    def channels(self) -> int:
        return len(self.bias)


@dataclass(frozen=True, eq=False)
class Block:
    """A residual block: ``before`` on x into ``first``, then ``between`` into ``second``, which adds x.

    In int8 x first goes through the ``shortcut``, if there is one.
    """

    before: Act
    first: Convolution | Int8Convolution
    between: Act
    second: Convolution | Int8Convolution
    shortcut: Convolution | None = None

    @classmethod
    def of(cls, block: ResidualBlock, scales: Scales | None = None) -> Block:
        norm, conv_1, between, conv_2 = block.layers
        acts = Act.of(norm, scales), Act.of(between, scales)
        if scales is not None:
            convolutions = (
                Int8Convolution.of(conv, act.scale) for conv, act in zip((conv_1, conv_2), acts, strict=True)
            )
            point = None if block.shortcut is None else Convolution.of(Kind.POINT, block.shortcut)
            first, second = convolutions
            return cls(acts[0], first, acts[1], second, point)
        first = Convolution.of(Kind.CAUSAL, conv_1)
        if block.shortcut is None:
            point = torch.eye(first.channels, dtype=first.weight.dtype, device=first.weight.device)
            second = Convolution.of(Kind.CAUSAL, conv_2, point)
        else:
            second = Convolution.of(Kind.CAUSAL, conv_2, block.shortcut.weight.flatten(1), block.shortcut.bias)
        return cls(acts[0], first, acts[1], second)

    @property
    def channels(self) -> int:
        """Of what it gives; x may have fewer."""
        return self.second.channels

    @property
    def in_int8(self) -> bool:
        return isinstance(self.first, Int8Convolution)


@dataclass(frozen=True, eq=False)
class DecoderWeights:
    """The decoder's and ``conv2``'s, in order of use. A level is the blocks of one size of frames, coarsest first."""

    z_dim: int
    reaches: tuple[int, ...]  # see ``Autoencoder.reaches``
    conv2: nn.Conv3d
    conv1: Convolution
    before: Block  # before attention; the block after it is the first of level 0
    attention: AttentionBlock
    levels: tuple[tuple[Block, ...], ...]
    times: tuple[Convolution, ...]  # temporal upsampling after levels 0 and 1
    ups: tuple[Convolution, ...]  # nearest-neighbour upsampling and its convolution, after levels 0, 1 and 2
    head: Act
    pixels: Convolution  # ``conv_pixels``'s
    saturated: Saturated | None

    @classmethod
    @torch.no_grad()
    def of(cls, vae: WanVae, scales: Scales | None = None) -> DecoderWeights:
        decoder = vae.decoder
        before, attention, after = decoder.middle.layers
        blocks = [Block.of(block, scales) for block in decoder.upsamples if isinstance(block, ResidualBlock)]
        ups = [up for up in decoder.upsamples if isinstance(up, Upsample)]
        norm, last = decoder.head.layers
        return cls(
            z_dim=vae.config.z_dim,
            reaches=vae.reaches,
            conv2=copy.deepcopy(vae.conv2),
            conv1=Convolution.of(Kind.CAUSAL, decoder.conv1),
            before=Block.of(before, scales),
            attention=copy.deepcopy(attention),
            levels=((Block.of(after, scales), *blocks[:3]), *(tuple(blocks[i : i + 3]) for i in (3, 6, 9))),
            times=tuple(Convolution.of(Kind.TIME, up.time_conv) for up in ups if up.time_conv is not None),
            ups=tuple(Convolution.of(Kind.UP, up.conv) for up in ups),
            head=Act.of(norm),
            pixels=Convolution(Kind.CAUSAL, *pack_pixels(last.weight.contiguous(), last.bias)),
            saturated=scales and scales.saturated,
        )


@dataclass(frozen=True, eq=False)
class EncoderWeights:
    """The encoder's and ``conv1``'s, in order of use. A level is the blocks of one size of frames, finest first."""

    z_dim: int
    pixels: Convolution  # the encoder's own ``conv1``
    levels: tuple[tuple[Block, ...], ...]  # the last one ends with the block before attention
    downs: tuple[nn.Conv2d, ...]  # spatial downsampling after levels 0, 1 and 2
    times: Mapping[int, Convolution]  # temporal downsampling after levels 1 and 2, and theirs: see ``_pairs``
    attention: AttentionBlock
    after: Block
    head: Act
    moments: Convolution
    conv1: nn.Conv3d
    saturated: Saturated | None

    @classmethod
    @torch.no_grad()
    def of(cls, vae: WanVae, scales: Scales | None = None) -> EncoderWeights:
        encoder, conv1 = vae.encoder, vae.conv1
        assert encoder is not None and conv1 is not None
        before, attention, after = encoder.middle.layers
        blocks = [Block.of(block, scales) for block in encoder.downsamples if isinstance(block, ResidualBlock)]
        downs = [down for down in encoder.downsamples if isinstance(down, Downsample)]
        norm, last = encoder.head.layers
        weight, bias = _filled_up(last.weight), _filled_up(_wide(last.bias))
        return cls(
            z_dim=vae.config.z_dim,
            pixels=Convolution.of(Kind.CAUSAL, encoder.conv1),
            levels=(*(tuple(blocks[i : i + 2]) for i in (0, 2, 4)), (*blocks[6:], Block.of(before, scales))),
            downs=tuple(copy.deepcopy(down.conv) for down in downs),
            times={i: _pairs(down.time_conv) for i, down in enumerate(downs) if down.time_conv is not None},
            attention=copy.deepcopy(attention),
            after=Block.of(after, scales),
            head=Act.of(norm),
            moments=Convolution(Kind.CAUSAL, pack(Kind.CAUSAL, weight), bias),
            conv1=copy.deepcopy(conv1),
            saturated=scales and scales.saturated,
        )


def _pairs(layer: nn.Conv3d) -> Convolution:
    """Three taps in time, of stride 2: the last two over a pair of frames side by side, as one of twice the channels,
    the first over the frame before the pair, as its residual."""
    before, *pair = (tap.flatten(1).contiguous() for tap in layer.weight.unbind(2))
    weight = torch.cat(pair, dim=1)[:, :, None, None, None]
    return Convolution(Kind.POINT, pack(Kind.POINT, weight, before), _wide(layer.bias))


def _filled_up(rows: Tensor) -> Tensor:
    """With rows of zeros, up to as many as there is a kernel for."""
    return F.pad(rows.contiguous(), (0, 0) * (rows.ndim - 1) + (0, -len(rows) % _FEWEST))


def _wide(t: Tensor | None) -> Tensor:
    """A copy in float32, or float64 if it is that."""
    assert t is not None
    return t.to(torch.promote_types(t.dtype, torch.float32), copy=True)
