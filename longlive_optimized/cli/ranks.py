"""Commands that make one video on several GPUs: by torchrun, or by ``--gpus``, which starts the other processes."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..engine.ranks import Ranks

Gpus = Annotated[
    str | None,
    typer.Option(
        metavar="N,N...", help="GPUs of this machine that make one video together, such as 0,1.", show_default=False
    ),
]


def read_gpus(gpus: str | None, device: str | None) -> list[int]:
    """The numbers in ``--gpus``; none without it. Raises ValueError for others, and beside ``--device``."""
    if gpus is None:
        return []
    numbers = [int(number) if number.strip().isdecimal() else -1 for number in gpus.split(",")]
    if min(numbers) < 0 or len({*numbers}) < len(numbers):
        raise ValueError(f"--gpus must be different numbers, such as 0,1, got {gpus!r}")
    if device is not None:
        raise ValueError(f"--device must be left out beside --gpus, got {device!r}")
    count = os.environ.get("WORLD_SIZE", str(len(numbers)))
    if str(len(numbers)) != count:
        raise ValueError(f"--gpus must name {count} GPUs, one for each process that there is, got {gpus!r}")
    return numbers


def join_ranks(gpus: list[int], device: str | None, leads: bool = False) -> Ranks:
    """This process's ranks. With several GPUs, and without torchrun, it is the first, and the others are started: they
    run the same command, and end when it does. Raises ValueError for GPUs that are not here."""
    import torch

    from ..engine.ranks import Ranks

    if gpus and max(gpus) >= (there := torch.cuda.device_count()):
        raise ValueError(f"--gpus must name some of the {there} GPUs that are here, got {','.join(map(str, gpus))}")
    if len(gpus) == 1 and "RANK" not in os.environ:
        ranks = Ranks()
        ranks.device = torch.device("cuda", gpus[0])
        return ranks
    if gpus and "RANK" not in os.environ:
        _start_others(len(gpus))
    if gpus:
        device = f"cuda:{gpus[int(os.environ['RANK'])]}"
    return Ranks.from_environment(device, leads=leads)


def _start_others(count: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ |= {"RANK": "0", "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for rank in range(1, count):
        command = [sys.executable, "-m", __package__, *sys.argv[1:]]
        # In a session of its own: Ctrl-C is for the first, which then closes its ranks.
        other = subprocess.Popen(command, env=os.environ | {"RANK": str(rank)}, start_new_session=True)
        atexit.register(_end, other)


def _end(other: subprocess.Popen) -> None:
    try:
        other.wait(5)
    except subprocess.TimeoutExpired:
        other.kill()
