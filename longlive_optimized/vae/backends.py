"""Which backend a VAE runs on."""

import logging

from .autoencoder import Autoencoder
from .codec import Codec
from .modules import ModulesCodec
from .packed.codec import PackedCodec

log = logging.getLogger(__name__)


def codec_for(vae: Autoencoder, low_memory: bool = False) -> Codec:
    """The fastest backend for this VAE where it lies: one for all streams, as it may copy the weights."""
    codec = PackedCodec(vae, low_memory) if PackedCodec.is_fast(vae) else ModulesCodec(vae)
    log.info("VAE runs on %s", type(codec).__name__)
    return codec
