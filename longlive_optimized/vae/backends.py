"""Which backend a VAE runs on."""

from .autoencoder import Autoencoder
from .codec import Codec
from .modules import ModulesCodec
from .packed.codec import PackedCodec


def codec_for(vae: Autoencoder) -> Codec:
    """The fastest backend for this VAE where it lies: one for all streams, as it may copy the weights."""
    return PackedCodec(vae) if PackedCodec.is_fast(vae) else ModulesCodec(vae)
