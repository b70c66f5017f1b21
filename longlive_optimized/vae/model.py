"""The Wan 2.1 VAE as its checkpoint names it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .config import VaeConfig
from .decoder import Decoder
from .encoder import Encoder
from .layers import pointwise
from .state import CausalState

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class WanVae(nn.Module):
    """Causal video autoencoder, 8x in space and 4x in time; 194 tensors, or the decoder's half with ``encoder=False``.

    Made on ``device="meta"`` it takes its weights from ``load_state_dict(..., assign=True)``. It holds weights only:
    what a stream remembers is in a ``CausalState``, so any number of streams may share one model.
    """

    def __init__(
        self, config: VaeConfig | None = None, *, encoder: bool = True, device: torch.device | str | None = None
    ):
        super().__init__()
        self.config = config or VaeConfig()
        z_dim = self.config.z_dim
        with torch.device(device) if device is not None else contextlib.nullcontext():
            self.encoder = Encoder(self.config) if encoder else None
            self.conv1 = nn.Conv3d(2 * z_dim, 2 * z_dim, 1) if encoder else None
            self.conv2 = nn.Conv3d(z_dim, z_dim, 1)
            self.decoder = Decoder(self.config)
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.conv2.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.conv2.weight.device

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """As torch's; the kernels are then laid out channels-last, once, instead of at every call."""
        result = super().load_state_dict(state_dict, strict, assign)
        for weight in self.parameters():
            if weight.ndim in _CHANNELS_LAST:
                weight.data = weight.contiguous(memory_format=_CHANNELS_LAST[weight.ndim])
        return result

    def decode(self, z: Tensor, state: CausalState) -> Tensor:
        """Unnormalised latents [T, h, w, z_dim] to pixels [F, 8h, 8w, 3]; ``state`` is advanced in place."""
        frames = self.decoder(pointwise(self.conv2, z), state)
        state.fresh = False
        return frames

    def encode(self, frames: Tensor, state: CausalState) -> Tensor:
        """Pixels [F, 8h, 8w, 3] to the mean of the latents' distribution, [T, h, w, z_dim]."""
        moments = pointwise(self.conv1, self.encoder(frames, state))
        state.fresh = False
        return moments[..., : self.config.z_dim]
