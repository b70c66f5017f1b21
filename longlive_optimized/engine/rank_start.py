"""How ranks find each other: what torchrun's environment says, torch's process group, and the link."""

from __future__ import annotations

import datetime
import os
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .rank_link import Link

_JOIN = 120.0  # seconds at most until all ranks are there


class Standing(NamedTuple):
    """One rank of ``count``, the device that it has, and torch.distributed's backend for all."""

    rank: int
    count: int
    device: torch.device
    backend: str


def standing(device: str | torch.device | None, backend: str | None, timeout: float) -> Standing | None:
    """This process's, by its environment; None where it is alone.

    Arguments and errors are those of ``Ranks.from_environment``.
    """
    if "RANK" not in os.environ:
        return None
    if not isinstance(timeout, int | float) or not 0 < timeout < 1e9:
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}")
    rank, count = _number("RANK"), _number("WORLD_SIZE")
    if count == 1:
        return None
    if _number("LOCAL_WORLD_SIZE", count) != count:
        raise ValueError(f"all {count} ranks must run on one host, got {os.environ['LOCAL_WORLD_SIZE']} here")
    if dist.is_initialized():
        raise ValueError("ranks must be made before torch.distributed is initialised")
    where = _device_of(device)
    backends = ("nccl", "gloo") if where.type == "cuda" else ("gloo",)
    if backend not in (None, *backends):
        raise ValueError(f"backend must be {' or '.join(backends)} on {where}, got {backend!r}")
    return Standing(rank, count, where, backend or backends[0])


def meet(mine: Standing, timeout: float) -> Link:
    """Wait for all ranks; the process group is then initialised, with ``timeout`` seconds for each of its collectives.

    Raises ConnectionError where a rank does not come.
    """
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # multicast over NVLink: many containers may not
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    os.environ.setdefault("NCCL_RUNTIME_CONNECT", "0")  # all connections now, none while a graph is captured
    # The link sees a rank end; NCCL's own watchdog would end this process.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    from torch.distributed.rendezvous import rendezvous  # which not every build of torch has

    rank, count, device, backend = mine
    join = min(timeout, _JOIN)
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=datetime.timedelta(seconds=join))))
    except (ValueError, dist.DistError) as error:
        raise ConnectionError(f"rank {rank} of {count} does not find the others: {error}") from error
    link = Link.meet(dist.PrefixStore("longlive", store), rank, count, join)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    bound: dict[str, Any] = {"device_id": device} if backend == "nccl" else {}
    store, wait = dist.PrefixStore("longlive/group", store), datetime.timedelta(seconds=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=wait, **bound)
    return link


def _number(name: str, default: int | None = None) -> int:
    given = os.environ.get(name, default)
    try:
        return int(given)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a whole number, as torchrun sets it, got {given!r}") from None


def _device_of(device: str | torch.device | None) -> torch.device:
    """The device of this rank."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type != "cuda":
        return device
    number, there = device.index, torch.cuda.device_count()
    number = _number("LOCAL_RANK", _number("RANK")) if number is None else number
    if number >= there:
        raise ValueError(f"device must be one of the {there} GPUs that are here, got cuda:{number}")
    return torch.device("cuda", number)
