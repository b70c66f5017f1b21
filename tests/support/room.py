"""A test in an open room, and what its viewers see."""

import asyncio
from collections.abc import Callable

import torch

from longlive_optimized.demo.server.settings import ServerSettings
from support.event_loop import as_test, nothing_left
from support.painted import painted, read_number
from support.server_peer import Viewer, visit

PAINTED = painted()


def in_room(make_pipeline: Callable = PAINTED, **settings) -> Callable:
    """Run a test with an open room and a client of it; no task of it may be left afterwards. Torch has one thread: the
    encoders need the other core."""

    def decorate(test):
        async def run(**values):
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                async with visit(make_pipeline, ServerSettings(**settings)) as (room, http):
                    await asyncio.wait_for(test(room, http, **values), 60)
            finally:
                torch.set_num_threads(before)
            await nothing_left()

        return as_test(run, test, 2)

    return decorate


async def numbers(viewer: Viewer, count: int) -> list[int]:
    """Those of the next painted frames."""
    return [read_number(await viewer.picture()) for _ in range(count)]


def value(figures: str, name: str) -> float:
    """A figure of ``/metrics``."""
    return float(next(line for line in figures.splitlines() if line.startswith(name + " ")).rpartition(" ")[2])
