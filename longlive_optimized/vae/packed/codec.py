"""The fused path as a backend."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import cast

import torch

from ...kernels import native
from ...kernels.causal_conv import GROUP
from ..autoencoder import Autoencoder
from ..codec import NewGraphs
from ..wan.model import WanVae
from .decode import PackedDecoder
from .encode import PackedEncoder
from .weights import DecoderWeights, EncoderWeights


class PackedCodec:
    """A ``Codec`` over packed copies of a Wan VAE's weights; its streams hold all memory that they need.

    Each half is copied when a stream first needs it; the VAE's own weights do not matter from then on, and may lie
    elsewhere once the codec is made. With ``low_memory`` streams take less memory, and a little longer, for the same
    result. Raises ValueError naming ``vae`` if it is another network or its widths are no multiples of 8.
    """

    copies = True

    def __init__(self, vae: Autoencoder, low_memory: bool = False):
        if not isinstance(vae, WanVae):
            raise ValueError(f"vae must be a Wan VAE to be packed, got {vae.config}")
        if any(width % GROUP for width in (*vae.config.widths, vae.config.z_dim)):
            raise ValueError(f"vae must have widths that are multiples of {GROUP} to be packed, got {vae.config}")
        self.vae, self.dtype, self.device = vae, vae.dtype, vae.device
        self._low_memory = low_memory

    @staticmethod
    def is_fast(vae: Autoencoder) -> bool:
        """Whether the library has kernels for all of the causal convolutions, where they lie."""
        full_size = isinstance(vae, WanVae) and vae.config.widths == (96, 192, 384, 384)
        return full_size and vae.dtype == torch.bfloat16 and native.on_hopper(next(vae.decoder.parameters()))

    @cached_property
    def decoder_weights(self) -> DecoderWeights:
        return DecoderWeights.of(self._vae_here())

    @cached_property
    def encoder_weights(self) -> EncoderWeights:
        return EncoderWeights.of(self._vae_here())

    def new_decoder(self, size: tuple[int, int], new_graphs: NewGraphs) -> PackedDecoder:
        return PackedDecoder(self.decoder_weights, size, new_graphs, self._low_memory)

    def new_encoder(self, size: tuple[int, int], new_graphs: NewGraphs) -> PackedEncoder:
        return PackedEncoder(self.encoder_weights, size, new_graphs, self._low_memory)

    def _vae_here(self) -> WanVae:
        """The VAE where the codec computes."""
        vae = self.vae if self.vae.device == self.device else copy.deepcopy(self.vae).to(self.device)
        return cast(WanVae, vae)
