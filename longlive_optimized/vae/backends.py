"""Which backend a VAE runs on."""

import logging

import torch

from ..keywords import VaePrecision
from ..plain import dtype_name
from .autoencoder import Autoencoder
from .codec import Codec
from .config import VaeConfig
from .convolution import is_slow
from .modules import ModulesCodec
from .packed.codec import PackedCodec

log = logging.getLogger(__name__)


def codec_for(
    vae: Autoencoder,
    low_memory: bool = False,
    precision: VaePrecision = "auto",
    in_8_bits: bool = False,
    in_parts: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Codec:
    """The fastest backend for this VAE where it lies: one for all streams, as it may copy the weights.

    precision: ``int8`` or ``bf16``, which stands for the VAE's dtype; ``auto`` is int8 if ``in_8_bits`` and it is fast.
    in_parts: one latent frame at a time passes. device: for which the backend is chosen, if the VAE lies elsewhere, say
    on the meta device. dtype: of latents and frames, where ``weights_dtype`` made the VAE's another.
    Raises ValueError naming ``vae_precision`` for a VAE that does not run in int8.
    """
    fast = PackedCodec.is_fast(vae, device)
    if _wants_int8(precision, in_8_bits, fast):
        codec = _in_int8(vae, low_memory, in_parts)
    elif fast:
        codec = PackedCodec(vae, low_memory, in_parts=in_parts)
    else:
        codec = ModulesCodec(vae, in_parts, dtype)
    if vae.device.type != "meta":
        log.info("VAE runs on %s in %s", type(codec).__name__, codec.precision)
    return codec


def weights_dtype(dtype: torch.dtype, device: torch.device, precision: VaePrecision) -> torch.dtype:
    """What a VAE for frames of ``dtype`` is held in: float32 where torch's convolutions of that are slow."""
    return torch.float32 if precision != "int8" and is_slow(dtype, device) else dtype


def path_of(
    device: torch.device, dtype: torch.dtype, in_8_bits: bool, precision: VaePrecision = "auto"
) -> tuple[str, str, str]:
    """What ``codec_for`` would take for the full-size Wan VAE of ``dtype`` on ``device``: the codec's name, its
    precision, and why it is not the fastest, empty where it is."""
    why = PackedCodec.why_slow(VaeConfig(), dtype, device) or ""
    int8 = _wants_int8(precision, in_8_bits, not why)
    codec = PackedCodec if int8 or not why else ModulesCodec
    return codec.__name__, "int8" if int8 else dtype_name(weights_dtype(dtype, device, precision)), why


def _wants_int8(precision: VaePrecision, in_8_bits: bool, fast: bool) -> bool:
    return precision == "int8" or (precision == "auto" and in_8_bits and fast)


def _in_int8(vae: Autoencoder, low_memory: bool, in_parts: bool) -> Codec:
    try:
        codec = PackedCodec(vae, low_memory, int8=True, in_parts=in_parts)
    except ValueError as error:
        raise ValueError(f"vae_precision must not be int8 with this VAE: {error}") from None
    if vae.device.type == "cuda" and (why := PackedCodec.why_slow(codec.vae.config, vae.dtype, vae.device)):
        log.warning("vae_precision int8 may be slow here: %s", why)
    return codec
