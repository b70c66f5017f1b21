"""Ranks on GPUs: over gloo two of them share one; over NCCL each has its own, and passes are CUDA graphs."""

import math
import os
import signal
import time

import pytest
import torch

from support.rank_work import blocks, forever, on_one_gpu, on_two_gpus
from support.ranks import on_ranks, result_of, start_ranks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="wants two GPUs")


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
