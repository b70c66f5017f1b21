"""The fused path as a backend."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import cast

import torch

from ...kernels import native
from ...kernels.causal_conv import GROUP, GROUP_INT8
from ...kernels.registry import forced
from ...kernels.triton_import import triton
from ...plain import dtype_name
from ..autoencoder import Autoencoder
from ..band import Band
from ..codec import NewGraphs
from ..config import VaeConfig
from ..wan.model import WanVae
from .decode import PackedDecoder
from .encode import PackedEncoder
from .int8 import Saturated, Scales
from .weights import DecoderWeights, EncoderWeights


class PackedCodec:
    """A ``Codec`` over packed copies of a Wan VAE's weights; its streams hold all memory that they need.

    Each half is copied when a stream first needs it; the VAE's own weights do not matter from then on, and may lie
    elsewhere once the codec is made. With ``low_memory`` streams take less memory, and a little longer, for the same
    result; ``in_parts``, one latent frame at a time, still less, for streams that begin once it is set. In ``int8`` the
    convolutions of the residual blocks multiply in 8 bits (docs/int8.md), and a half is calibrated when it is copied.
    Raises ValueError naming ``vae`` if it is another network or its widths are no multiples of 8, in int8 of 16.
    """

    copies = True

    def __init__(self, vae: Autoencoder, low_memory: bool = False, int8: bool = False, in_parts: bool = False):
        if not isinstance(vae, WanVae):
            raise ValueError(f"vae must be a Wan VAE to be packed, got {vae.config}")
        group = GROUP_INT8 if int8 else GROUP
        if any(width % group for width in (*vae.config.widths, vae.config.z_dim)):
            raise ValueError(f"vae must have widths that are multiples of {group} to be packed, got {vae.config}")
        self._saturated = Saturated(vae.device) if int8 else None
        self.vae, self.dtype, self.device = vae, vae.dtype, vae.device
        self.precision = "int8" if int8 else dtype_name(vae.dtype)
        self._low_memory, self.in_parts = low_memory, in_parts

    @staticmethod
    def is_fast(vae: Autoencoder, device: torch.device | None = None) -> bool:
        """Whether there are fast kernels for all of the causal convolutions, on ``device`` or where they lie."""
        return isinstance(vae, WanVae) and PackedCodec.why_slow(vae.config, vae.dtype, device or vae.device) is None

    @staticmethod
    def why_slow(config: VaeConfig, dtype: torch.dtype, device: torch.device) -> str | None:
        """What keeps a Wan VAE of this kind from fast kernels there; None if nothing does."""
        if config.widths != (96, 192, 384, 384):
            return "the kernels are for the full width"
        if (lacks := native.missing(device)) and not _takes_triton(device):
            return lacks
        return None if dtype == torch.bfloat16 else "the kernels are for bfloat16"

    @property
    def saturated(self) -> int:
        return int(self._saturated) if self._saturated else 0

    @cached_property
    def decoder_weights(self) -> DecoderWeights:
        vae = self._vae_here()
        return DecoderWeights.of(vae, self._saturated and Scales.of_decoder(vae, self._saturated))

    @cached_property
    def encoder_weights(self) -> EncoderWeights:
        vae = self._vae_here()
        return EncoderWeights.of(vae, self._saturated and Scales.of_encoder(vae, self._saturated))

    def new_decoder(self, size: tuple[int, int], new_graphs: NewGraphs, band: Band | None = None) -> PackedDecoder:
        return PackedDecoder(self.decoder_weights, size, new_graphs, self._low_memory, self.in_parts, band)

    def new_encoder(self, size: tuple[int, int], new_graphs: NewGraphs, in_parts: bool = False) -> PackedEncoder:
        return PackedEncoder(self.encoder_weights, size, new_graphs, self._low_memory, in_parts or self.in_parts)

    def _vae_here(self) -> WanVae:
        """The VAE where the codec computes."""
        vae = self.vae if self.vae.device == self.device else copy.deepcopy(self.vae).to(self.device)
        return cast(WanVae, vae)


def _takes_triton(device: torch.device) -> bool:
    """Whether the operators of the fused path run on Triton there."""
    if triton is None or device.type != "cuda" or forced() not in (None, "triton", "library"):
        return False
    return native.capability(device.index) >= (8, 0)  # the first with products of bfloat16
