"""The fused path as a backend."""

from __future__ import annotations

from functools import cached_property

import torch

from ...kernels import native
from ...kernels.causal_conv import GROUP, GROUP_INT8
from ..autoencoder import Autoencoder
from ..codec import NewGraphs, name_of
from ..wan.model import WanVae
from .decode import PackedDecoder
from .encode import PackedEncoder
from .int8 import Saturated, Scales
from .weights import DecoderWeights, EncoderWeights


class PackedCodec:
    """A ``Codec`` over packed copies of a Wan VAE's weights; its streams hold all memory that they need.

    Each half is copied when a stream first needs it; the VAE's own weights do not matter from then on. In ``int8`` that
    is when it is calibrated, and the convolutions of the residual blocks multiply in 8 bits (docs/int8.md). Raises
    ValueError naming ``vae`` if it is another network or its widths are no multiples of 8, in int8 of 16.
    """

    def __init__(self, vae: Autoencoder, int8: bool = False):
        if not isinstance(vae, WanVae):
            raise ValueError(f"vae must be a Wan VAE to be packed, got {vae.config}")
        group = GROUP_INT8 if int8 else GROUP
        if any(width % group for width in (*vae.config.widths, vae.config.z_dim)):
            raise ValueError(f"vae must have widths that are multiples of {group} to be packed, got {vae.config}")
        self._saturated = Saturated(vae.device) if int8 else None
        self.vae, self.dtype, self.device = vae, vae.dtype, vae.device
        self.precision = "int8" if int8 else name_of(vae.dtype)

    @staticmethod
    def is_fast(vae: Autoencoder) -> bool:
        """Whether the library has kernels for all of the causal convolutions, where they lie."""
        full_size = isinstance(vae, WanVae) and vae.config.widths == (96, 192, 384, 384)
        return full_size and vae.dtype == torch.bfloat16 and native.on_hopper(next(vae.decoder.parameters()))

    @property
    def saturated(self) -> int:
        return int(self._saturated) if self._saturated else 0

    @cached_property
    def decoder_weights(self) -> DecoderWeights:
        return DecoderWeights.of(self.vae, self._saturated and Scales.of_decoder(self.vae, self._saturated))

    @cached_property
    def encoder_weights(self) -> EncoderWeights:
        return EncoderWeights.of(self.vae, self._saturated and Scales.of_encoder(self.vae, self._saturated))

    def new_decoder(self, size: tuple[int, int], new_graphs: NewGraphs) -> PackedDecoder:
        return PackedDecoder(self.decoder_weights, size, new_graphs)

    def new_encoder(self, size: tuple[int, int], new_graphs: NewGraphs) -> PackedEncoder:
        return PackedEncoder(self.encoder_weights, size, new_graphs)
