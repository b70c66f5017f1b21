"""The decoder's weights as the fused convolutions read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..kernels.causal_conv import Kind
from ..kernels.conv_pixels import pack_pixels
from .layers import ResidualBlock, Upsample
from .packed_layers import Block, Convolution, check_widths, gain_of

if TYPE_CHECKING:
    from .model import WanVae


@dataclass(frozen=True, eq=False)
class Level:
    """The blocks of one size of frames, and what leads to the next; ``time`` where that has twice the frames."""

    blocks: list[Block]
    time: Convolution | None = None
    up: Convolution | None = None


class PackedDecoder:
    """What streams share. Copies the convolutions of ``vae``'s decoder, refers to its norms, attention and ``conv2``.

    Raises ValueError naming ``vae`` if its widths are no multiples of 8.
    """

    @torch.no_grad()
    def __init__(self, vae: WanVae):
        check_widths(vae.config)
        decoder = vae.decoder
        before, self.attention, after = decoder.middle
        self.z_dim, self.conv2 = vae.config.z_dim, vae.conv2
        self.conv1 = Convolution.of(Kind.CAUSAL, decoder.conv1)
        self.before = Block.of(before)
        self.levels = [_level([after, *decoder.upsamples[:3]], decoder.upsamples[3])]
        self.levels += [_level(decoder.upsamples[i : i + 3], decoder.upsamples[i + 3]) for i in (4, 8)]
        self.levels += [_level(decoder.upsamples[12:])]
        self.head = gain_of(decoder.head["0"])
        last = decoder.head["2"]
        self.pixels = Convolution(Kind.CAUSAL, *pack_pixels(last.weight.contiguous(), last.bias))


def _level(blocks: Iterable[ResidualBlock], upsample: Upsample | None = None) -> Level:
    packed = [Block.of(block) for block in blocks]
    if upsample is None:
        return Level(packed)
    time = upsample.time_conv and Convolution.of(Kind.TIME, upsample.time_conv)
    return Level(packed, time, Convolution.of(Kind.UP, upsample.resample["1"]))
