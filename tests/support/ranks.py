"""Processes that are ranks of one video: each runs a function of a test module."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

LONGEST = 120  # seconds


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _context() -> multiprocessing.context.BaseContext:
    """Of new processes. Without CUDA, which cannot be forked, they have torch and the package as they begin."""
    if torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["longlive_optimized.engine.engine", "transformers.models.umt5.modeling_umt5"])
    return context


def start_ranks(folder: Path, count: int, work: Callable, *args) -> list:
    """``work(*args)`` in so many new processes, with what torchrun would set; ``result_of`` has what it returns."""
    context, port = _context(), str(_free_port())
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = []
    for rank in range(count):
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(context.Process(target=_run, args=(environment, folder, work, args), daemon=True))
        ranks[-1].start()
    return ranks


def on_ranks(folder: Path, count: int, work: Callable, *args) -> list:
    """What ``work(*args)`` returns on each of ``count`` ranks."""
    ranks = start_ranks(folder, count, work, *args)
    results, errors = [], []
    for rank, process in enumerate(ranks):
        try:
            results.append(result_of(folder, rank, process))
        except (RuntimeError, TimeoutError) as error:
            errors.append(str(error))
    if errors:
        raise RuntimeError("\n".join(errors))
    return results


def result_of(folder: Path, rank: int, process, longest: float = LONGEST):
    """What a rank's work has returned; its error is raised here."""
    process.join(longest)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"rank {rank} has not ended in {longest:g} s")
    result, error = torch.load(folder / f"{rank}.pt", weights_only=True)
    if error:
        raise RuntimeError(f"rank {rank}:\n{error}")
    return result


def _run(environment: dict[str, str], folder: Path, work: Callable, args: tuple) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    result, error = None, ""
    try:
        result = work(*args)
    except BaseException:
        error = traceback.format_exc()
    torch.save((result, error), folder / f"{environment['RANK']}.pt")
