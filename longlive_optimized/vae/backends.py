"""Which backend a VAE runs on."""

import logging

from ..keywords import VaePrecision
from .autoencoder import Autoencoder
from .codec import Codec
from .modules import ModulesCodec
from .packed.codec import PackedCodec

log = logging.getLogger(__name__)


def codec_for(
    vae: Autoencoder, low_memory: bool = False, precision: VaePrecision = "auto", in_8_bits: bool = False
) -> Codec:
    """The fastest backend for this VAE where it lies: one for all streams, as it may copy the weights.

    precision: ``int8`` or ``bf16``, which stands for the VAE's dtype; ``auto`` is int8 if ``in_8_bits`` and it is fast.
    Raises ValueError naming ``vae_precision`` for a VAE that does not run in int8.
    """
    fast = PackedCodec.is_fast(vae)
    if precision == "int8" or (precision == "auto" and in_8_bits and fast):
        codec = _in_int8(vae, low_memory)
    else:
        codec = PackedCodec(vae, low_memory) if fast else ModulesCodec(vae)
    log.info("VAE runs on %s in %s", type(codec).__name__, codec.precision)
    return codec


def _in_int8(vae: Autoencoder, low_memory: bool) -> Codec:
    try:
        codec = PackedCodec(vae, low_memory, int8=True)
    except ValueError as error:
        raise ValueError(f"vae_precision must not be int8 with this VAE: {error}") from None
    if vae.device.type == "cuda" and not PackedCodec.is_fast(vae):
        log.warning("vae_precision int8 is slow here: its kernels are for Hopper and bfloat16")
    return codec
