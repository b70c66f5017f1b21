"""What the shipped training results can do, on combinations that were held out of training."""

from pathlib import Path
from random import Random

import pytest
import torch

from longlive_optimized import tinyworld
from longlive_optimized.tinyworld.autoencode import decode, encode, normalise
from longlive_optimized.tinyworld.checkpoint import load
from longlive_optimized.tinyworld.data import clips
from longlive_optimized.tinyworld.networks import SIZES, new_vae
from longlive_optimized.tinyworld.render import layouts
from longlive_optimized.tinyworld.score import score
from longlive_optimized.tinyworld.world import sample_scene
from longlive_optimized.vae.stream import to_uint8

SIZE, LATENTS, COUNT = SIZES["tiny"], 5, 12


@pytest.fixture(scope="module")
def trained():
    """The autoencoder, scenes, their clips [B, 3, T, H, W] and latents of its own scale."""
    vae = new_vae(SIZE, 0).requires_grad_(False)
    load(Path(tinyworld.__file__).with_name("trained") / "vae.pt", {"vae": vae})
    random = Random(1)
    scenes = [sample_scene(random, held_out=True) for _ in range(COUNT)]
    centres = layouts(COUNT, SIZE.height, SIZE.width, torch.Generator().manual_seed(2))
    frames = clips([(scene,) for scene in scenes], centres, LATENTS, None, SIZE, torch.device("cpu"))
    return vae, scenes, frames, encode(vae, frames)[0]


def test_the_autoencoder_keeps_every_attribute(trained):
    vae, scenes, frames, latents = trained
    made = decode(vae, latents)
    error = (made.clamp(-1, 1) - frames).square().mean()
    assert 10 * torch.log10(4 / error) > 33
    scores = [score(video, scene) for video, scene in zip(to_uint8(made).permute(0, 2, 3, 4, 1), scenes, strict=True)]
    missed = [f"{scene}: {s}" for s, scene in zip(scores, scenes, strict=True) if not s.met]
    assert len(missed) <= 1, missed


def test_its_latents_are_what_the_engine_expects(trained):
    """Normalised by Wan's statistics, every channel has mean 0 and deviation 1, unless it says nothing."""
    latents = normalise(trained[3]).transpose(1, 2).transpose(0, 1).flatten(1)
    assert latents.mean(1).abs().max() < 0.5 and latents.std(1).max() < 1.5 and latents.std(1).median() > 0.7
