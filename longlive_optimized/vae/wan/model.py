"""The Wan 2.1 VAE as its checkpoint names it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..autoencoder import Autoencoder
from ..config import VaeConfig
from ..convolution import pointwise
from ..state import CausalState
from .decoder import Decoder
from .encoder import Encoder


class WanVae(Autoencoder):
    """Wan 2.1's autoencoder, or LightVAE; 194 tensors, or the decoder's half with ``encoder=False``."""

    config: VaeConfig
    encoder: Encoder | None
    decoder: Decoder
    first_frame_alone = True

    def __init__(self, config: VaeConfig | None = None, *, encoder: bool = True, device: torch.device | str = "cpu"):
        super().__init__()
        self.config = config or VaeConfig()
        z_dim = self.config.z_dim
        with torch.device(device):
            self.encoder = Encoder(self.config) if encoder else None
            self.conv1 = nn.Conv3d(2 * z_dim, 2 * z_dim, 1) if encoder else None
            self.conv2 = nn.Conv3d(z_dim, z_dim, 1)
            self.decoder = Decoder(self.config)
        self.requires_grad_(False)

    @property
    def reaches(self) -> tuple[int, ...]:
        return self.decoder.reaches

    def decode(self, z: Tensor, state: CausalState) -> Tensor:
        """Latents [T, h, w, z_dim] to pixels [F, 8h, 8w, 3], not clamped; ``state`` is advanced in place."""
        frames = self.decoder(pointwise(self.conv2, z), state)
        state.fresh = False
        return frames

    def encode(self, frames: Tensor, state: CausalState) -> Tensor:
        """Pixels [F, 8h, 8w, 3] to the mean of the latents' distribution, [T, h, w, z_dim]."""
        assert self.encoder is not None and self.conv1 is not None
        moments = pointwise(self.conv1, self.encoder(frames, state))
        state.fresh = False
        return moments[..., : self.config.z_dim]

    def denormalise(self, z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        # 1 / std, too, is rounded to the latents' dtype: that is part of the reference (docs/model.md 7.1).
        return z / (1 / std) + mean

    def normalise(self, mu: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return (mu - mean) * (1 / std)
