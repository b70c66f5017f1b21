"""The VAE's layers with their weights in the order in which the fused convolutions read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..kernels.causal_conv import GROUP, Kind, pack
from .config import VaeConfig
from .layers import ResidualBlock, RMSNorm


@dataclass(frozen=True, eq=False)  # each is itself, and a key
class Convolution:
    """Arguments of ``causal_conv``."""

    kind: Kind
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(
        cls, kind: Kind, layer: nn.Conv2d | nn.Conv3d, residual: Tensor | None = None, bias: Tensor | None = None
    ) -> Convolution:
        """``layer`` as it is; ``residual`` is ``pack``'s, with a ``bias`` of its own."""
        # Precision: the sum of both biases stays in float32.
        total = wide(layer.bias) if bias is None else wide(layer.bias) + wide(bias)
        return cls(kind, pack(kind, layer.weight.contiguous(), residual), total)

    @property
    def channels(self) -> int:
        return len(self.bias) // (2 if self.kind == Kind.TIME else 1)


@dataclass(frozen=True, eq=False)
class Block:
    """A residual block: SiLU(norm(x)) into ``first``, then ``between`` and SiLU into ``second``, which adds x.

    ``norm`` is the network's own layer, ``gain`` its weight as a fused norm takes it, like ``between``.
    """

    norm: RMSNorm
    gain: Tensor
    first: Convolution
    between: Tensor
    second: Convolution

    @classmethod
    def of(cls, block: ResidualBlock) -> Block:
        layers, shortcut = block.residual, block.shortcut
        first = Convolution.of(Kind.CAUSAL, layers["2"])
        if shortcut is None:
            point = torch.eye(first.channels, dtype=first.weight.dtype, device=first.weight.device)
            second = Convolution.of(Kind.CAUSAL, layers["6"], point)
        else:
            second = Convolution.of(Kind.CAUSAL, layers["6"], shortcut.weight.flatten(1), shortcut.bias)
        return cls(layers["0"], gain_of(layers["0"]), first, gain_of(layers["3"]), second)


def gain_of(norm: RMSNorm) -> Tensor:
    """The weight of a norm as ``causal_conv`` takes it."""
    return wide(norm.gamma.flatten())


def wide(t: Tensor) -> Tensor:
    """In float32, or float64 if it is that."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def check_widths(config: VaeConfig) -> None:
    """Raise ValueError naming ``vae`` if its channels do not lie in groups."""
    if any(width % GROUP for width in (*config.widths, config.z_dim)):
        raise ValueError(f"vae must have widths that are multiples of {GROUP}, got {config}")
