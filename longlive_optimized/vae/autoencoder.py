"""A video autoencoder as a network of modules, be it Wan 2.1's or a tiny one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .config import TaeConfig, VaeConfig
from .state import CausalState

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def to_uint8(pixels: Tensor) -> Tensor:
    """trunc(255 clamp(x / 2 + 1/2, 0, 1)) in float32, whatever the dtype of ``pixels``."""
    return pixels.float().mul(0.5).add_(0.5).clamp_(0, 1).mul_(255).to(torch.uint8)


class Autoencoder(nn.Module, ABC):
    """Causal video autoencoder, 8x in space and 4x in time, for Wan 2.1's latents.

    Made on ``device="meta"`` it takes its weights from ``load_state_dict(..., assign=True)``. It holds weights only:
    what a stream remembers is in a ``CausalState``, so any number of streams may share one model.
    """

    config: VaeConfig | TaeConfig
    encoder: nn.Module | None
    decoder: nn.Module
    first_frame_alone: bool  # whether a video's first frame is a latent by itself; else ``pad_first`` makes it four

    @property
    def dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.decoder.parameters()).device

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """As torch's; the kernels are then laid out channels-last, once, instead of at every call."""
        result = super().load_state_dict(state_dict, strict, assign)
        for weight in self.parameters():
            if weight.ndim in _CHANNELS_LAST:
                weight.data = weight.contiguous(memory_format=_CHANNELS_LAST[weight.ndim])
        return result

    @property
    @abstractmethod
    def reaches(self) -> tuple[int, ...]:
        """How many rows above, and below, a row of each level's result depends on in what enters that level.

        A level of the decoder is what lies between two upsamplings in space, coarsest first. The first one begins
        behind whatever sees whole frames.
        """

    @abstractmethod
    def decode(self, z: Tensor, state: CausalState) -> Tensor:
        """Latents of the network's own scale [T, h, w, z_dim] to pixels [F, 8h, 8w, 3]; advances ``state`` in place.

        Of a band's state (``CausalState.crop``) only that one's rows.
        """

    @abstractmethod
    def encode(self, frames: Tensor, state: CausalState) -> Tensor:
        """Pixels [F, 8h, 8w, 3] in [-1, 1] to latents of the network's own scale [T, h, w, z_dim]; likewise."""

    def pad_first(self, frames: Tensor) -> Tensor:
        """The frames [1 + 4k, ...] that begin a video, as ``encode`` wants them."""
        return frames

    def denormalise(self, z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """The diffusion model's latents [..., z_dim] in the network's own scale, all in the latents' dtype."""
        return z * std + mean

    def normalise(self, mu: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """The inverse of ``denormalise``."""
        return (mu - mean) / std
