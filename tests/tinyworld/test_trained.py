"""What the built-in model can do, on combinations that were held out of training."""

from random import Random

import pytest
import torch

from longlive_optimized import BlockRequest, Control, LongLiveEngine, OptimizationConfig
from longlive_optimized.tinyworld.autoencode import decode, encode, normalise
from longlive_optimized.tinyworld.control import measure
from longlive_optimized.tinyworld.data import clips
from longlive_optimized.tinyworld.evaluate import Evaluation
from longlive_optimized.tinyworld.render import NATIVE, layouts, render
from longlive_optimized.tinyworld.score import score
from longlive_optimized.tinyworld.vocabulary import known_to
from longlive_optimized.tinyworld.world import Scene, Shape, sample_scene
from longlive_optimized.vae.autoencoder import to_uint8
from longlive_optimized.weights.load import check, load_vae
from longlive_optimized.weights.locate import CONTROL_FILE, VAE_FILES, locate

GROUND = {"green": "meadow", "black": "sky"}
LATENTS, COUNT, KNOWN = 5, 12, known_to("tiny")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
    ),
]


@pytest.fixture(scope="module")
def trained():
    """The autoencoder, scenes, their clips [B, 3, T, H, W] and latents of its own scale."""
    vae = load_vae(locate("tiny"), "cpu", torch.float32)
    random = Random(1)
    scenes = [sample_scene(random, held_out=True, known=KNOWN) for _ in range(COUNT)]
    centres = layouts(COUNT, *NATIVE, torch.Generator().manual_seed(2))
    frames = clips([(scene,) for scene in scenes], centres, LATENTS, None, NATIVE, torch.device("cpu"))
    return vae, scenes, frames, encode(vae, frames)[0]


@pytest.fixture(scope="module", params=DEVICES)
def evaluation(request):
    return Evaluation.of("tiny", request.param)


@pytest.fixture(scope="module", params=DEVICES)
def steered(request):
    return LongLiveEngine("tiny", OptimizationConfig(height=NATIVE[0], width=NATIVE[1], control=True), request.param)


def test_its_files_are_complete_and_small():
    for vae_type in VAE_FILES:
        check(locate("tiny", vae_type, control=True), control=True)
    files = [path for path in locate("tiny").generator.parents[2].rglob("*") if path.is_file()]
    assert len(files) == 11 and sum(path.stat().st_size for path in files) <= 17.5e6
    control = locate("tiny").control
    assert control in files and control.parts[-2:] == CONTROL_FILE.parts


def test_videos_show_what_was_asked_for(evaluation):
    shares = evaluation.adherence(4, 2.0)
    assert min(shares[kind] for kind in ("ground", "count", "motion", "colour", "form")) >= 0.9, shares


def test_a_switch_takes_effect_within_two_blocks_and_needs_the_recache(evaluation):
    """Of 100 switches 93 % are complete in the second block, 35 % without a recache (docs/tinyworld.md)."""
    after, without = (evaluation.switches(6, recache)["block 2"]["all"] for recache in (True, False))
    assert after >= 0.8 and without <= 0.7


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


def test_a_silhouette_that_the_noise_knows_nothing_of_is_followed(steered):
    """And the prompt beside it: ground and motion; of 8 videos overlap 0.84 and 0.01 (docs/tinyworld.md)."""
    without, followed = (measure(steered, 3, blocks=2, scale=scale, known=KNOWN) for scale in (0, 1))
    assert followed["overlap"] > 0.7 > 0.3 > without["overlap"]
    assert followed["pixels"] < 2
    assert min(followed["ground"], followed["motion"]) > 0.9, followed


@pytest.mark.parametrize(
    ("ground", "kept", "before", "after"),
    [
        ("green", Shape("white", "cross"), Shape("blue", "square"), Shape("red", "square")),
        ("black", Shape("yellow", "triangle"), Shape("red", "circle"), Shape("blue", "square")),
    ],
)
def test_black_of_a_mask_is_kept_and_white_is_made_anew(steered, ground, kept, before, after):
    """A shape to the right stays as it is, which the noise would put elsewhere; that to the left becomes another."""
    scene = Scene((before, kept), ground, "still")
    video = render([(scene,)], torch.tensor([[[32.0, 24.0], [32.0, 72.0], [0.0, 0.0]]]), 21, *NATIVE)[0]
    mask = torch.zeros(NATIVE, dtype=torch.uint8)
    mask[:, : NATIVE[1] // 2] = 255
    text = f"a {after.colour} {after.form} and a {kept.colour} {kept.form} stay in place on a {ground} {GROUND[ground]}"
    errors = []
    for scale in (0.0, 1.0):
        stream, made = steered.open_stream(seed=0), []
        for frames in (video[:9], video[9:]):
            control = Control(frames, masks=[mask] * len(frames), scale=scale)
            made.append(steered.generate_block(BlockRequest(text, control=control), stream).cpu())
        error = (torch.cat(made).float() - video.float()).square()
        errors.append([10 * torch.log10(255**2 / half.mean()) for half in (error[:, :, 52:], error[:, :, :44])])
    (elsewhere, _), (black, white) = errors
    assert black > 30 and white < 20 and elsewhere < 20, errors
