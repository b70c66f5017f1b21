"""Narrow VAEs of each kind, parameters from their names; Wan's is that of the conformance vectors, base width 8.

"packed" is Wan's, on the fused convolutions: their references, where there is no GPU.
"""

from functools import cache

import pytest
import torch

from longlive_optimized.vae.autoencoder import Autoencoder
from longlive_optimized.vae.codec import Codec
from longlive_optimized.vae.config import LATENT_MEAN, LATENT_STD, TaeConfig, VaeConfig
from longlive_optimized.vae.modules import ModulesCodec
from longlive_optimized.vae.packed.codec import PackedCodec
from longlive_optimized.vae.tae import Tae
from longlive_optimized.vae.wan.model import WanVae
from support.vectors import parameter

# No two widths of the tiny one are equal, none divides another.
WIDTHS = {"encoder_width": 10, "decoder_widths": (14, 9, 8, 6)}
LIGHT = {"latent_mean": LATENT_MEAN, "latent_std": LATENT_STD}


def tae_parameter(key: str, shape: torch.Size) -> torch.Tensor:
    """Keeps activations at unit size through ReLUs and residuals, and most pixels between black and white."""
    if key == "decoder.22.bias":
        return torch.full(shape, 0.5, dtype=torch.float64)
    if len(shape) == 1:
        return parameter(key, shape, 0.2, False)
    gain = {"decoder.22.weight": 0.06}.get(key, 0.5 if ".conv.4." in key else 1.0)
    return parameter(key, shape, gain * (6 / shape[1:].numel()) ** 0.5, False)


def empty_vae(kind: str, encoder: bool = True) -> Autoencoder:
    if kind in ("wan", "packed"):
        return WanVae(VaeConfig(base=8), encoder=encoder, device="meta")
    return Tae(TaeConfig(**WIDTHS, **LIGHT if kind == "lighttae" else {}), encoder=encoder, device="meta")


@cache
def make_vae(dtype: torch.dtype = torch.float32, device: str = "cpu", kind: str = "wan") -> Autoencoder:
    vae = empty_vae(kind)
    shapes = {k: p.shape for k, p in vae.state_dict().items()}
    if kind in ("wan", "packed"):
        weights = {k: parameter(k, shape, 0.1, "gamma" in k) for k, shape in shapes.items()}
    else:
        weights = {k: tae_parameter(k, shape) for k, shape in shapes.items()}
    vae.load_state_dict(weights, assign=True)
    return vae.to(device, dtype)


@pytest.fixture(name="make_vae", scope="session")
def _make_vae():
    return make_vae


@pytest.fixture(name="empty_vae", scope="session")
def _empty_vae():
    return empty_vae


@cache
def make_codec(dtype: torch.dtype = torch.float32, device: str = "cpu", kind: str = "wan") -> Codec:
    return (PackedCodec if kind == "packed" else ModulesCodec)(make_vae(dtype, device, kind))


@pytest.fixture(name="make_codec", scope="session")
def _make_codec():
    return make_codec


@pytest.fixture
def vae() -> Autoencoder:
    return make_vae()


@pytest.fixture
def vae64() -> Autoencoder:
    return make_vae(torch.float64)
