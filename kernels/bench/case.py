"""One measurement: what to call an operator with, and what the call must cost at least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """``make(device)`` draws fresh arguments; ``bytes`` counts each input read once and each output written once."""

    shape: str
    dtype: torch.dtype
    make: Callable[[str], tuple]
    bytes: int
    flops: int = 0


@dataclass(frozen=True)
class Bench:
    """The cases of one operator: at the network's size, and small ones for machines without a GPU."""

    real: list[Case]
    small: list[Case]
    published: Callable | None = None  # the published order of operations and roundings, in plain torch
    peers: Callable[[], dict[str, Callable]] = dict  # other libraries' operators of the same arguments, if installed
    time_reference: bool = True  # on a GPU too; false where it would take minutes


def int8_result(case: Case, rows: int, size: int) -> Case:
    """``case`` with a result [rows, size] of int8 with a scale a row, in place of one of the case's dtype."""
    return replace(case, bytes=case.bytes - rows * size * (case.dtype.itemsize - 1) + 4 * rows)


def rotations(n: int, pairs: int, device: str) -> Tensor:
    """Random rotations [n, pairs, 2]."""
    angle = 6.28 * torch.rand(n, pairs, device=device)
    return torch.stack((angle.cos(), angle.sin()), dim=-1)
