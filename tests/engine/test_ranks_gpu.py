"""Ranks on GPUs: over gloo two of them share one; over NCCL each has its own, and passes are CUDA graphs."""

import contextlib
import math
import os
import signal
import time

import pytest
import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.engine.ranks import RankError, Ranks
from support.ranks import on_ranks, result_of, start_ranks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="wants two GPUs")
# At this size, with these prompts, streams of the built-in model stay close to each other.
SIZE = {"height": 32, "width": 64}
FOX, BOAT = "a red square stands still over a green field", "a white cross rests on a black night"


def blocks(ranks=None, device=None, warm=False, **changes):
    """Latents of the first block in the model's dtype; pictures of it and of later ones, of which some are in int8."""
    engine = LongLiveEngine("tiny", OptimizationConfig(**SIZE, **changes), device, ranks=ranks)
    if warm:
        engine.warmup()
    made = [engine.generate_block(BlockRequest(FOX)).cpu()]
    latents = engine.stream.history.cpu()
    made += [engine.generate_block(BlockRequest(prompt)).cpu() for prompt in (FOX, BOAT)]
    engine.configure(precision="int8")
    made += [engine.generate_block(BlockRequest(BOAT)).cpu() for _ in range(2)]
    return latents, made, engine.stream.cuda_graphs_active


def on_one_gpu(changes):
    with Ranks.from_environment("cuda:0", backend="gloo") as ranks:
        return blocks(ranks, **changes)


def on_two_gpus(changes):
    with Ranks.from_environment() as ranks:
        return blocks(ranks, warm=True, **changes)


def psnr(a, b):
    error = (a.float() - b.float()).square().mean().item()
    return 10 * math.log10(255**2 / error) if error else math.inf


def check_close(made, alone, relative):
    latents, pictures, _ = made
    assert (latents - alone[0]).norm() <= relative * alone[0].norm()
    assert min(map(psnr, pictures, alone[1])) >= 30


# Products of fewer rows may take another kernel of the library, which sums in another order.
DTYPES = pytest.mark.parametrize(("dtype", "relative"), [("bfloat16", 0.02), ("float32", 1e-4)])


@DTYPES
def test_two_ranks_on_one_gpu_show_what_one_shows(tmp_path, dtype, relative):
    """Every kernel takes a rank's rows. gloo's collectives are in no graph."""
    changes = {"model_dtype": dtype}
    one, other = on_ranks(tmp_path, 2, on_one_gpu, changes)
    assert torch.equal(one[0], other[0]) and not one[2]
    check_close(one, blocks(device="cuda:0", use_cuda_graphs=False, **changes), relative)


@TWO_GPUS
@DTYPES
def test_two_gpus_show_what_one_shows(tmp_path, dtype, relative):
    changes = {"model_dtype": dtype}
    one, other = on_ranks(tmp_path, 2, on_two_gpus, changes)
    assert torch.equal(one[0], other[0]) and one[2] and other[2]
    assert all(map(torch.equal, one[1], other[1]))
    check_close(one, blocks(device="cuda:0", **changes), relative)


def forever(folder):
    ranks = Ranks.from_environment()
    engine = LongLiveEngine("tiny", OptimizationConfig(**SIZE), ranks=ranks)
    engine.warmup()
    try:
        for i in range(100_000):
            frames = engine.generate_block(BlockRequest(FOX))
            with contextlib.suppress(RuntimeError):  # CUDA's: what was under way is lost
                frames.cpu()
            (folder / f"{ranks.rank}.block").write_text(str(i))
    except RankError as error:
        return time.time(), str(error)


@TWO_GPUS
def test_a_killed_rank_is_an_error_of_the_other(tmp_path):
    """Also while its device waits in a graph for the other's: the communicator is aborted."""
    ranks = start_ranks(tmp_path, 2, forever, tmp_path)
    while not all((tmp_path / f"{rank}.block").exists() for rank in range(2)):
        time.sleep(0.1)
        assert all(process.is_alive() for process in ranks)
    os.kill(ranks[1].pid, signal.SIGKILL)
    killed = time.time()
    noticed, error = result_of(tmp_path, 0, ranks[0], 60)
    assert noticed - killed < 15 and "rank 1 has ended" in error
