"""Wan VAEs with random weights, and what goes through them."""

import math

import torch

from longlive_optimized.vae.autoencoder import to_uint8
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.vae.stream import DecoderStream, EncoderStream
from longlive_optimized.vae.wan.model import WanVae
from longlive_optimized.weights.random_checkpoint import _vae_rule


def randomised(config: VaeConfig, dtype=torch.float32, device="cpu", seed=1) -> WanVae:
    """With the weights of a random checkpoint, whose pictures have contrast."""
    vae, generator = WanVae(config), torch.Generator().manual_seed(seed)
    for key, p in vae.named_parameters():
        rule = _vae_rule(key, tuple(p.shape))
        p.data = torch.randn(p.shape, generator=generator) * rule.std + rule.mean
    return vae.to(device, dtype)


def noise(frames, size=(4, 6), seed=0, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, 16, *size, generator=generator).to(device, dtype)


def psnr(a, b) -> float:
    error = (to_uint8(a).float() - to_uint8(b).float()).square().mean().item()
    return 10 * math.log10(255**2 / max(error, 1e-9))


def decode(codec, parts, **options):
    stream = DecoderStream(codec, **options)
    return torch.cat([stream.decode(part) for part in parts])


def encode(codec, parts, **options):
    stream = EncoderStream(codec, **options)
    return torch.cat([stream.encode(part) for part in parts])
