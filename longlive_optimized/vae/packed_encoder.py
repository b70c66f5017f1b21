"""The encoder's weights as the fused convolutions read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.causal_conv import Kind, pack
from .layers import Downsample, ResidualBlock
from .packed_layers import Block, Convolution, check_widths, gain_of, wide

if TYPE_CHECKING:
    from .model import WanVae

_FEWEST = 96  # channels of a result, and what they are a multiple of, for which there is a kernel


@dataclass(frozen=True, eq=False)
class Level:
    """The blocks of one size of frames, and what leads to the next; ``time`` where that has half the frames.

    ``time`` convolves two frames side by side, as one of twice the channels; the one before them is its residual.
    """

    blocks: list[Block]
    shrink: nn.Conv2d | None = None
    time: Convolution | None = None

    @property
    def channels(self) -> int:
        """Of its frames; those that enter may have fewer."""
        return self.blocks[0].second.channels


class PackedEncoder:
    """What streams share. Copies the causal convolutions of ``vae``'s encoder, refers to all else.

    Raises ValueError naming ``vae`` if its widths are no multiples of 8.
    """

    @torch.no_grad()
    def __init__(self, vae: WanVae):
        check_widths(vae.config)
        encoder = vae.encoder
        before, self.attention, after = encoder.middle
        self.z_dim, self.conv1 = vae.config.z_dim, vae.conv1
        self.pixels = Convolution.of(Kind.CAUSAL, encoder.conv1)
        self.levels = [_level(encoder.downsamples[i : i + 2], encoder.downsamples[i + 2]) for i in (0, 3, 6)]
        self.levels += [_level([*encoder.downsamples[9:], before])]
        self.after = Block.of(after)
        self.head = gain_of(encoder.head["0"])
        last = encoder.head["2"]
        self.moments = Convolution(Kind.CAUSAL, pack(Kind.CAUSAL, _filled_up(last.weight)), _filled_up(wide(last.bias)))


def _level(blocks: Iterable[ResidualBlock], downsample: Downsample | None = None) -> Level:
    packed = [Block.of(block) for block in blocks]
    if downsample is None:
        return Level(packed)
    return Level(packed, downsample.resample["1"], downsample.time_conv and _pairs(downsample.time_conv))


def _pairs(layer: nn.Conv3d) -> Convolution:
    """Three taps in time, of stride 2: of the frame before a pair, and of the pair."""
    before, *pair = (tap.flatten(1).contiguous() for tap in layer.weight.unbind(2))
    weight = torch.cat(pair, dim=1)[:, :, None, None, None]
    return Convolution(Kind.POINT, pack(Kind.POINT, weight, before), wide(layer.bias))


def _filled_up(rows: Tensor) -> Tensor:
    """With rows of zeros, up to as many as there is a kernel for."""
    return F.pad(rows.contiguous(), (0, 0) * (rows.ndim - 1) + (0, -len(rows) % _FEWEST))
