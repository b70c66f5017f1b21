"""Which backend a VAE runs on."""

import logging

from .autoencoder import Autoencoder
from .codec import Codec
from .modules import ModulesCodec
from .packed.codec import PackedCodec

log = logging.getLogger(__name__)


def codec_for(vae: Autoencoder, int8: bool = False) -> Codec:
    """The fastest backend for this VAE where it lies: one for all streams, as it may copy the weights.

    int8: the convolutions of the residual blocks in 8 bits. Raises ValueError naming ``vae_precision`` for a VAE that
    does not run so.
    """
    fast = PackedCodec.is_fast(vae)
    if int8:
        try:
            codec: Codec = PackedCodec(vae, int8=True)
        except ValueError as error:
            raise ValueError(f"vae_precision must be bf16 for this VAE: {error}") from None
        if not fast and vae.device.type == "cuda":
            log.warning("vae_precision int8 is slow on this device: its kernels are for Hopper and bfloat16")
    else:
        codec = PackedCodec(vae) if fast else ModulesCodec(vae)
    log.info("VAE runs on %s%s", type(codec).__name__, " in int8" if int8 else "")
    return codec
