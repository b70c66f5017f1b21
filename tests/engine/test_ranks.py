"""One video on several ranks: what it shows, and what becomes of it when one of them fails."""

import gc
import os
import signal
import time

import pytest
import torch

from longlive_optimized import BlockRequest, Control, LongLiveEngine, OptimizationConfig
from longlive_optimized.config import StreamSettings
from longlive_optimized.engine.ranks import RankError, Ranks
from longlive_optimized.engine.stream import _bands
from longlive_optimized.model.shard import Shard
from longlive_optimized.weights.user_lora import UserLora
from support import loras
from support.networks import VECTOR_GRID, ring_of, vector_network
from support.ranks import on_ranks, result_of, start_ranks

SIZE = {"height": 64, "width": 64}  # 16 tokens a frame: two runs of int8 keys
FOX, BOAT = "a red square stands still over a green field", "a white cross rests on a black night"


def pictures(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 48, 48, 3), dtype=torch.uint8, generator=generator)


FOXES, BOATS = BlockRequest(FOX), BlockRequest(BOAT)
VIDEO = BlockRequest(FOX, video=pictures(13), noise_from_motion=True)
CONTROL = BlockRequest(FOX, control=Control(pictures(12), pictures(12, 1)[..., 0], pictures(1, 2)))


def shown(engine, stream, *requests):
    """Latents and pictures of each block."""
    made = []
    for request in requests:
        frames = engine.generate_block(request, stream)
        made.append((stream.history[-3:].clone(), frames.clone()))
    return made


def engine_with(lora, ranks=None):
    config = OptimizationConfig(control=True, local_attn_size=9, denoising_steps=(1000, 750, 500), **SIZE)
    return LongLiveEngine("tiny", config, "cpu", loras=[UserLora(lora)], ranks=ranks)


def small_engine(ranks):
    config = OptimizationConfig(denoising_steps=(1000,), vae_type="tae", **SIZE)
    return LongLiveEngine("tiny", config, "cpu", ranks=ranks)


def everything(engine, lora, brief=False):
    """What one engine makes on its way through all that may change a stream; half of it where time is short."""
    scales = [UserLora(lora, scale) for scale in (1.0, -0.5)]
    stream, made = engine.open_stream(), {}
    made["window full, prompt switch"] = shown(engine, stream, *[FOXES] * 4, BOATS, BOATS)
    engine.configure(denoising_steps=(1000, 500))
    made["video"] = shown(engine, engine.stream, VIDEO, VIDEO)
    # Ten rows of latents: of four ranks some decode three, some two.
    made["control"] = shown(engine, engine.open_stream(height=80, denoising_steps=(1000, 500)), CONTROL)
    stream.configure(local_attn_size=6, denoising_steps=(1000, 500))
    made["preset change"] = shown(engine, stream, BOATS)
    engine.reset(stream, seed=7)
    stream.configure(precision="int8")
    made["reset, int8"] = shown(engine, stream, FOXES, BOATS, BOATS)
    if brief:
        return made
    engine.keep_loras(scales[:1])
    engine.set_loras(scales[1:])
    made["LoRA scale"] = shown(engine, stream, BOATS)
    engine.use_vae("tae", stream)
    made["small VAE"] = shown(engine, stream, BOATS, BOATS)
    first = engine.generate_block(FOXES, stream, first_latent_only=True)
    made["first latent"] = [(first, engine.rest_of_block(stream))]
    resumed = engine.open_stream(snapshot=stream.snapshot())
    made["snapshot"] = shown(engine, resumed, BOATS, FOXES)
    other = engine.open_stream(height=32, width=32, total_frames=6)
    made["another stream of a fixed length"] = shown(engine, other, FOXES, FOXES)
    return made | {"stream": other}


def on_one_of(lora):
    with Ranks.from_environment() as ranks:
        assert ranks.count > 1
        made = everything(engine_with(lora, ranks), lora, brief=ranks.count > 2)
        made.pop("stream", None)
        return made


def led(lora):
    """The same, where rank 0 alone knows what is asked; of the other, the latents of its streams."""
    with Ranks.from_environment(leads=True) as ranks:
        engine = engine_with(lora, ranks)
        if ranks.rank:
            with pytest.raises(RuntimeError, match=r"rank 1 follows rank 0: let it call engine.follow\(\)"):
                engine.open_stream()
            engine.follow()
            return {number: stream.history for number, stream in ranks._requests.streams.items()}
        made = everything(engine, lora)
        with pytest.raises(TypeError, match="request must be a BlockRequest"):
            engine.generate_block("a fox")
        with pytest.raises(TypeError, match="an argument must be one that other ranks can be sent, got object"):
            engine.reset(seed=object())
        with pytest.raises(ValueError, match="has none left"):
            engine.generate_block(FOXES, made.pop("stream"))
        streams = [engine.open_stream() for _ in range(2)]
        shown(engine, streams[1], BOATS)
        del streams[0]
        gc.collect()
        engine.generate_block(FOXES)
        return made, {1: engine.stream.history, 6: streams[0].history}


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "style.safetensors"
    return loras.write(path, loras.tensors_of(loras.halves([name for name in loras.LINEARS if "attn" in name])))


@pytest.fixture(scope="module")
def alone(lora):
    made = everything(engine_with(lora), lora)
    del made["stream"]
    return made


@pytest.mark.parametrize("count", [2, 4])
def test_several_ranks_show_what_one_shows(tmp_path, lora, alone, count):
    for made in on_ranks(tmp_path, count, on_one_of, lora):
        assert len(made) == (len(alone) if count == 2 else 5)
        check_alike(made, alone)


def check_alike(made, alone):
    for what, blocks in made.items():
        for one, other in zip(alone[what], blocks, strict=True):
            for mine, theirs in zip(one, other, strict=True):
                # Most are equal bit for bit; BLAS may sum otherwise where a rank has a few rows alone.
                tolerance = 1e-5 if mine.is_floating_point() else 1
                assert (mine.double() - theirs.double()).abs().max() <= tolerance, what


def test_rank_0_leads(tmp_path, lora, alone):
    """Every kind of call reaches those that follow; streams that rank 0 forgets are forgotten there."""
    (made, kept), streams = on_ranks(tmp_path, 2, led, lora)
    check_alike(made, alone)
    assert streams.keys() >= kept.keys() and 5 not in streams
    assert all(torch.equal(streams[number], history) for number, history in kept.items())


def what_is_refused():
    """Bad input is refused on all ranks alike, and nothing is lost; errors by what was asked."""
    with Ranks.from_environment() as ranks:
        with pytest.raises(ValueError, match="use_torch_compile must be false on 2 ranks"):
            LongLiveEngine("tiny", OptimizationConfig(use_torch_compile=True), "cpu", ranks=ranks)
        engine = small_engine(ranks)
        stream = engine.open_stream()
        before = engine.generate_block(FOXES, stream).clone()
        with pytest.raises(ValueError, match=r"height, width .* multiple of 2 tokens.* 2 ranks, got 48x48: 9 tokens"):
            engine.open_stream(height=48, width=48)
        with pytest.raises(ValueError, match="device must be cpu, that of its ranks, got 'cuda:0'"):
            LongLiveEngine("tiny", device="cuda:0", ranks=ranks)
        with pytest.raises(ValueError, match="vae_device must be none on 2 ranks, got 'cpu'"):
            LongLiveEngine("tiny", device="cpu", vae_device="cpu", ranks=ranks)
        with pytest.raises(TypeError, match="ranks must be of the class Ranks, got int"):
            LongLiveEngine("tiny", device="cpu", ranks=2)
        with pytest.raises(ValueError, match="control wants VACE"):
            engine.generate_block(CONTROL, stream)
        with pytest.raises(TypeError, match="request must be a BlockRequest"):
            engine.generate_block("a fox", stream)
        with pytest.raises(ValueError, match="local_attn_size"):
            stream.configure(local_attn_size=3)
        with pytest.raises(RuntimeError, match="no frames"):
            engine.rest_of_block(stream)
        with pytest.raises(RuntimeError, match="follow is for ranks but the first"):
            engine.follow()
        with pytest.raises(ValueError, match=r"before torch\.distributed is initialised"):
            Ranks.from_environment()
        engine.reset(stream)
        assert torch.equal(before, engine.generate_block(FOXES, stream)) and ranks.broken is None
        least = ranks.least(7 - ranks.rank)
    with pytest.raises(RankError, match="has closed its ranks"):
        engine.reset()
    return least


def one_fails():
    """An error of one rank in the midst of a pass is raised on all: on that one, and on those that wait for it."""
    with Ranks.from_environment() as ranks:
        engine = small_engine(ranks)
        engine.generate_block(FOXES)
        if ranks.rank == 1:
            engine.model.blocks[2].ffn_out.forward = out_of_memory
        started = time.monotonic()
        with pytest.raises(RankError, match=r"rank 1 has failed: OutOfMemoryError: none left \(rank 1\); .* start all"):
            engine.generate_block(FOXES)
        with pytest.raises(RankError, match="rank 1 has failed"):
            engine.reset()
        return time.monotonic() - started


def one_fails_alone():
    """An error of one rank outside of passes is raised on the others as their call ends, or in the next."""
    with Ranks.from_environment() as ranks:
        engine = small_engine(ranks)
        engine.generate_block(FOXES)
        if ranks.rank == 0:
            engine.stream.timer.block_done = out_of_memory
            with pytest.raises(RankError, match="rank 0 has failed: OutOfMemoryError"):
                engine.generate_block(FOXES)
        else:
            with pytest.raises(RankError, match="rank 0 has failed: OutOfMemoryError"):
                for _ in range(2):
                    engine.generate_block(FOXES)


def one_leaves():
    """A rank that makes fewer calls than the others is missed in the first that it does not make."""
    with Ranks.from_environment() as ranks:
        engine = small_engine(ranks)
        engine.generate_block(FOXES)
        if ranks.rank == 0:
            with pytest.raises(RankError, match="rank 1 has left, rank 0 makes another call"):
                engine.generate_block(FOXES)


def one_has_other_settings():
    """Ranks that are not started alike would mix the rows of two videos."""
    with Ranks.from_environment() as ranks:
        config = OptimizationConfig(seed=ranks.rank, denoising_steps=(1000, 500), **SIZE)
        with pytest.raises(RankError, match="rank 1 differs from rank 0 in seed: all must be started alike"):
            LongLiveEngine("tiny", config, "cpu", ranks=ranks)


def one_has_another_prompt():
    with Ranks.from_environment() as ranks:
        engine = small_engine(ranks)
        engine.generate_block(FOXES)
        with pytest.raises(RankError, match="rank 1 differs from rank 0 in arguments of generate_block"):
            for _ in range(2):
                engine.generate_block(BOATS if ranks.rank else FOXES)


def out_of_memory(*args):
    raise torch.OutOfMemoryError("none left")


def forever(folder, leads):
    """Blocks until a rank is killed; when the error came, and the error."""
    ranks = Ranks.from_environment(leads=leads)
    engine = small_engine(ranks)
    try:
        if leads and ranks.rank:
            (folder / f"{ranks.rank}.block").touch()
            engine.follow()
        for i in range(10_000):
            engine.generate_block(FOXES)
            (folder / f"{ranks.rank}.block").write_text(str(i))
    except RankError as error:
        return time.time(), str(error)


@pytest.mark.parametrize(
    "work", [what_is_refused, one_fails, one_fails_alone, one_leaves, one_has_other_settings, one_has_another_prompt]
)
def test_errors(tmp_path, work):
    started = time.monotonic()
    results = on_ranks(tmp_path, 2, work)
    assert results in ([6, 6], [None, None]) or max(results) < 10
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(("count", "victim", "leads"), [(2, 1, False), (2, 0, True), (2, 1, True), (4, 2, False)])
def test_a_killed_rank_is_an_error_of_the_others(tmp_path, count, victim, leads):
    ranks = start_ranks(tmp_path, count, forever, tmp_path, leads)
    while not all((tmp_path / f"{rank}.block").exists() for rank in range(count)):
        time.sleep(0.1)
        assert all(process.is_alive() for process in ranks)
    os.kill(ranks[victim].pid, signal.SIGKILL)
    killed = time.time()
    for rank in set(range(count)) - {victim}:
        noticed, error = result_of(tmp_path, rank, ranks[rank], 30)
        assert noticed - killed < 10 and f"rank {victim} has ended" in error


def test_each_rank_has_rows_to_decode():
    with pytest.raises(ValueError, match="height must be at least 32 on 4 ranks, got 16"):
        _bands(Shard(0, 4), StreamSettings(height=16, width=64))


def test_one_rank_is_no_rank():
    """Nothing is copied, no process group is wanted; without torchrun's environment, and with one rank."""
    shard, x = Shard(), torch.arange(6.0)
    assert shard.rows(x) is x and shard.gather(x) is x and shard.of_first(x) is x
    ranks = Ranks.from_environment()
    assert (ranks.rank, ranks.count, ranks.broken) == (0, 1, None)
    with ranks, ranks.call():
        pass


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0", "how": {"backend": "nccl"}}, "backend must be gloo on cpu, got 'nccl'"),
        ({"WORLD_SIZE": "2", "how": {"timeout": 0}}, "timeout must be a positive number of seconds, got 0"),
        ({"WORLD_SIZE": "2", "how": {"timeout": "1"}}, "timeout must be a positive number of seconds, got '1'"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK must be a whole number"),
        ({}, "WORLD_SIZE must be a whole number"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "all 4 ranks must run on one host"),
    ],
)
def test_a_wrong_environment_is_refused(monkeypatch, environment, wanted):
    for name, value in ({"RANK": "0"} | environment).items():
        if name != "how":
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=wanted):
        Ranks.from_environment("cpu", **environment.get("how", {}))


def test_a_rank_that_does_not_come_is_an_error(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConnectionError, match=r"rank 0 of 2 does not find the others|rank 0 waited 1 s"):
        Ranks.from_environment("cpu", timeout=1)


def test_passes_of_several_groups_are_refused(monkeypatch):
    """A rank's rows would lie in other groups than the kernels take them for."""
    model = vector_network()
    ring = ring_of(model, VECTOR_GRID)
    monkeypatch.setattr(ring, "shard", Shard(1, 2))
    with pytest.raises(ValueError, match="modulation must be of one group on 2 ranks, got 3"):
        model(torch.zeros(3, 4, 8, 12), model.modulation(torch.zeros(3)), ring, None)
