"""One video on several ranks: what it shows, and what becomes of it when one of them fails."""

import pytest
import torch

from longlive_optimized import BlockRequest, Control, LongLiveEngine, OptimizationConfig
from longlive_optimized.engine.ranks import Ranks
from longlive_optimized.weights.random_checkpoint import make_checkpoint
from longlive_optimized.weights.user_lora import UserLora
from support.ranks import on_ranks

SIZE = {"height": 64, "width": 64}  # 16 tokens a frame: two runs of int8 keys
FOX, BOAT = "a red square stands still over a green field", "a white cross rests on a black night"


def pictures(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 48, 48, 3), dtype=torch.uint8, generator=generator)


def shown(engine, stream, *requests):
    """Latents and pictures of each block."""
    made = []
    for request in requests:
        frames = engine.generate_block(request, stream)
        made.append((stream.history[-3:].clone(), frames.clone()))
    return made


def everything(folder, ranks):
    """What one engine makes on its way through all that may change a stream."""
    config = OptimizationConfig(control=True, **SIZE)
    engine, made = LongLiveEngine(folder, config, "cpu", ranks=ranks), {}
    stream = engine.open_stream()
    fox, boat = BlockRequest(FOX), BlockRequest(BOAT)
    made["window full, prompt switch"] = shown(engine, stream, *[fox] * 5, boat, boat)
    stream.configure(local_attn_size=9, denoising_steps=(1000, 500))
    made["preset change"] = shown(engine, stream, boat, boat)
    engine.reset(stream, seed=7)
    made["reset"] = shown(engine, stream, fox)
    stream.configure(precision="int8")
    made["int8"] = shown(engine, stream, fox, boat, boat)
    engine.reset(stream)
    stream.configure(precision="bf16")
    video = BlockRequest(FOX, video=pictures(13), noise_from_motion=True)
    made["video"] = shown(engine, stream, video, video)
    control = Control(pictures(12), pictures(12, 1)[..., 0], pictures(1, 2))
    made["control"] = shown(engine, stream, *[BlockRequest(FOX, control=control)] * 2)
    first = engine.generate_block(fox, stream, first_latent_only=True)
    made["first latent"] = [(first, engine.rest_of_block(stream))]
    return made


def on_one_of(folder):
    with Ranks.from_environment() as ranks:
        assert ranks.count > 1
        return everything(folder, ranks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("ranks") / "model", "tiny", control=True)


@pytest.fixture(scope="module")
def alone(folder):
    return everything(folder, None)


@pytest.mark.parametrize("count", [2, 4])
def test_several_ranks_show_what_one_shows(tmp_path, folder, alone, count):
    for made in on_ranks(tmp_path, count, on_one_of, folder):
        for what, blocks in alone.items():
            for (latents, frames), (theirs, pixels) in zip(blocks, made[what], strict=True):
                err = (latents.float() - theirs.float()).abs().max().item()
                print(what, torch.equal(latents, theirs), err, (frames.int() - pixels.int()).abs().max().item())
