"""The VAE for training against the engine's streams, in float64."""

import pytest
import torch

from longlive_optimized.tinyworld.autoencode import decode, denormalise, encode, fold_statistics, normalise
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.vae.modules import ModulesCodec
from longlive_optimized.vae.stream import DecoderStream, EncoderStream
from longlive_optimized.vae.wan.model import WanVae


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = WanVae(VaeConfig(base=6, multipliers=(1, 2, 3, 3))).double()
    for weight in vae.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    return vae


@pytest.fixture(scope="module")
def frames():
    return 2 * torch.rand(2, 3, 13, 32, 48, dtype=torch.float64) - 1


@pytest.mark.parametrize("latents", [1, 2, 4])
def test_equals_the_streams(vae, frames, latents):
    frames = frames[:, :, : 4 * latents - 3]
    mean, log_variance = encode(vae, frames)
    made = decode(vae, mean)
    assert mean.shape == log_variance.shape == (2, 16, latents, 4, 6) and made.shape == frames.shape
    for b in range(2):
        streamed = EncoderStream(ModulesCodec(vae)).encode(frames[b].transpose(0, 1))
        torch.testing.assert_close(normalise(mean)[b], streamed, rtol=0, atol=1e-9)
        stream = DecoderStream(ModulesCodec(vae))
        pixels = torch.cat([stream.decode(part) for part in streamed.split(3)])
        torch.testing.assert_close(made[b].transpose(0, 1), pixels, rtol=0, atol=1e-9)
    assert made.std() > 0.1


def test_denormalise_is_the_inverse():
    latents = torch.randn(2, 3, 16, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(normalise(denormalise(latents)), latents, rtol=0, atol=1e-12)


def test_folding_changes_the_scale_and_no_picture(vae, frames):
    mean, log_variance = encode(vae, frames)
    made = decode(vae, mean)
    shift, scale = mean.mean((0, 2, 3, 4)), mean.std((0, 2, 3, 4))
    folded = WanVae(vae.config).double()
    folded.load_state_dict(vae.state_dict())
    fold_statistics(folded, shift, scale)
    again, again_log_variance = encode(folded, frames)
    latents = normalise(again)
    torch.testing.assert_close(latents.mean((0, 1, 3, 4)), torch.zeros(16).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(latents.std((0, 1, 3, 4)), torch.ones(16).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(decode(folded, again), made, rtol=0, atol=1e-9)
    # The noise that training adds keeps its size beside the mean's.
    ratio = (0.5 * (again_log_variance - log_variance)).exp() * scale[:, None, None, None]
    torch.testing.assert_close(ratio / ratio[:, :, :1, :1, :1], torch.ones_like(ratio), rtol=0, atol=1e-9)
    torch.testing.assert_close(again.std((0, 2, 3, 4)), ratio[0, :, 0, 0, 0], rtol=0, atol=1e-9)


def test_gradients_reach_every_weight(vae, frames):
    vae.requires_grad_(True)
    mean, log_variance = encode(vae, frames)
    (decode(vae, mean + log_variance) * torch.linspace(0, 1, 48)).sum().backward()
    assert all(weight.grad.abs().max() > 0 for weight in vae.parameters())
    vae.requires_grad_(False)
