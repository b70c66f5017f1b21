"""Which backend each operator takes on a device at the network's size, and why no faster one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from ..registry import OPS, backend, forced
from .runner import bench_of, known


class Path(NamedTuple):
    """What one operator runs on; ``why`` is empty where this is its fastest implementation."""

    operator: str
    backend: str
    why: str


class _Aligned(TorchFunctionMode):
    """Storage that is not there begins at a multiple of everything, as what the allocator gives does."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return 0 if function is Tensor.data_ptr else function(*args, **(kwargs or {}))


@contextmanager
def without_memory() -> Iterator[None]:
    """Tensors made inside have a device, a shape and a dtype, and take no memory; the device need not exist."""
    with FakeTensorMode(), _Aligned():
        yield


def paths(device: torch.device, dtype: torch.dtype) -> list[Path]:
    """The path of every operator on ``device``, for its first case at 480x832, in a model of ``dtype``.

    A forced backend that does not take the case is an operator without a backend (``none``), since it raises when run.
    """
    return [_path(name, device, dtype) for name in known()]


def _path(name: str, device: torch.device, dtype: torch.dtype) -> Path:
    case = bench_of(name).real[0]
    with without_memory():
        with backend("reference"):  # what makes the arguments is not asked about
            made = case.make("cpu")
        arguments = [_moved(x, device, dtype) if isinstance(x, Tensor) else x for x in made]
        try:
            chosen, refusals = OPS[name].explain(*arguments)
        except NotImplementedError:
            wanted = str(forced())
            return Path(name, "none", f"{wanted} is forced: {OPS[name].refusal(wanted, *arguments)}")
    return Path(name, chosen, next(iter(refusals.values()), ""))


def _moved(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    dtype = dtype if x.dtype == torch.bfloat16 else x.dtype
    return torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=device)
