"""Scales of the convolutions' inputs in int8: their largest values on noise (docs/int8.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.causal_conv import LARGEST, LEAST_SCALE
from ...video_time import BLOCK_FRAMES
from ..modules import ModulesCodec
from ..stream import DecoderStream, EncoderStream
from ..wan.layers import ResidualBlock, RMSNorm
from ..wan.model import WanVae

_LATENTS = 2 * BLOCK_FRAMES, 16, 16  # frames, rows, columns
_SEED = 20260000


class Saturated:
    """How many values were too large for int8: counted on the device, and brought to the host after each call."""

    def __init__(self, device: torch.device):
        self.count = torch.zeros(1, dtype=torch.int64, device=device)
        self._seen = torch.zeros(1, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")

    def bring(self) -> None:
        """Bring the count to the host, without waiting for it."""
        if self.count.is_meta:
            return
        self._seen.copy_(self.count, non_blocking=True)

    def __int__(self) -> int:
        """As of a call that is done; those under way are not in it yet."""
        return int(self._seen.item())


class Scales(NamedTuple):
    """Of inputs in int8: what SiLU of each norm is divided by, and where values are counted that were cut off.

    A scale is the largest value that a layer's input has while normal latents are decoded, or what that gives is
    encoded, over 127; then so rounded that half precision holds its inverse. On the meta device, which has shapes and
    no values, every scale is 1.
    """

    of: Mapping[RMSNorm, float]
    saturated: Saturated

    @classmethod
    @torch.no_grad()
    def of_decoder(cls, vae: WanVae, saturated: Saturated) -> Scales:
        with _Largest(vae.decoder) as largest:
            if not saturated.count.is_meta:
                _decoded_noise(vae)
        return cls(largest.scales(), saturated)

    @classmethod
    @torch.no_grad()
    def of_encoder(cls, vae: WanVae, saturated: Saturated) -> Scales:
        assert vae.encoder is not None
        frames = None if saturated.count.is_meta else _decoded_noise(vae).clamp(-1, 1)
        with _Largest(vae.encoder) as largest:
            if frames is not None:
                EncoderStream(ModulesCodec(vae)).encode(frames)
        return cls(largest.scales(), saturated)


def _decoded_noise(vae: WanVae) -> Tensor:
    frames, *size = _LATENTS
    generator = torch.Generator("cpu").manual_seed(_SEED)
    noise = torch.randn(frames, vae.config.z_dim, *size, generator=generator, dtype=torch.float32, device="cpu")
    return DecoderStream(ModulesCodec(vae)).decode(noise.to(vae.device, vae.dtype))


class _Largest:
    """Watches what the norms of residual blocks give, while it is entered."""

    def __init__(self, side: torch.nn.Module):
        blocks = (module for module in side.modules() if isinstance(module, ResidualBlock))
        self._norms = [norm for block in blocks for norm in (block.layers[0], block.layers[2])]
        self._seen: dict[RMSNorm, list[Tensor]] = {norm: [] for norm in self._norms}

    def __enter__(self) -> _Largest:
        self._hooks = [norm.register_forward_hook(self._note) for norm in self._norms]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, norm: torch.nn.Module, args: object, result: Tensor) -> None:
        assert isinstance(norm, RMSNorm)
        self._seen[norm].append(result.amax())

    def scales(self) -> dict[RMSNorm, float]:
        """SiLU rises above its least, so its largest value is that of the largest argument. 1 where none was seen."""
        return {norm: _scale_of(seen) if seen else 1.0 for norm, seen in self._seen.items()}


def _scale_of(seen: list[Tensor]) -> float:
    return _scale(F.silu(torch.stack(seen).max().double()).item())


def _scale(largest: float) -> float:
    """``largest`` over 127, or the least that there is, so that its inverse is a half; that is rounded down."""
    inverse = 1 / max(largest / LARGEST, LEAST_SCALE * 1.001)
    _, exponent = math.frexp(inverse)
    step = 2.0 ** (exponent - 11)
    return 1 / (math.floor(inverse / step) * step)
