"""The VAE of the conformance vectors: base width 8, parameters from their names."""
from functools import cache

import pytest
import torch

from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.vae.model import WanVae
from support.vectors import parameter


@cache
def make_vae(dtype: torch.dtype = torch.float32, device: str = "cpu") -> WanVae:
    vae = WanVae(VaeConfig(base=8), device="meta")
    weights = {k: parameter(k, p.shape, 0.1, "gamma" in k) for k, p in vae.state_dict().items()}
    vae.load_state_dict(weights, assign=True)
    return vae.to(device, dtype)


@pytest.fixture(name="make_vae", scope="session")
def _make_vae():
    return make_vae


@pytest.fixture
def vae() -> WanVae:
    return make_vae()


@pytest.fixture
def vae64() -> WanVae:
    return make_vae(torch.float64)
