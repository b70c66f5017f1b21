"""What a text encoder takes in memory, told by the shapes of its weights: nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch

from ..kernels.int8_block_linear import BLOCK
from .encoder import TABLE, config_of, is_linear, may_be_narrow

_PRECISIONS = {"bf16": 2, "int8": 1, "fp8": 1, "float32": 4}


class Footprint(NamedTuple):
    """Bytes that a text encoder takes.

    gpu: of its weights on the GPU, while nothing is encoded; gpu_encoding: what is added there, at most, while a prompt
    of ``text_len`` tokens is: an estimate. host: of its weights in host memory; pinned: how many of these are pinned.
    """

    gpu: int
    gpu_encoding: int
    host: int
    pinned: int


def footprint(
    shapes: Mapping[str, Sequence[int]],
    precision: str,
    residence: str,
    dtype: torch.dtype = torch.bfloat16,
    text_len: int = 512,
) -> Footprint:
    """What an encoder whose checkpoint has ``shapes`` takes, in an engine that computes in ``dtype``.

    precision: ``bf16``, ``fp8``, ``int8``, or ``float32``; with fp8 the embedding table is in bfloat16, as in scope's
    file. residence: ``gpu``, ``parked`` or ``cpu``. Raises ValueError naming the argument, or a key that shapes lack.
    """
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}")
    if residence not in ("gpu", "parked", "cpu"):
        raise ValueError(f"residence must be gpu, parked or cpu, got {residence!r}")
    config = config_of(shapes)
    nbytes = {key: _nbytes(key, shape, precision, dtype) for key, shape in shapes.items()}
    total, table = sum(nbytes.values()), nbytes[TABLE]
    layer = max(sum(n for key, n in nbytes.items() if key.startswith(f"blocks.{i}.")) for i in range(config.num_layers))
    layer += nbytes["norm.weight"]  # comes in turn, with a place of its own
    item, rows = dtype.itemsize, text_len
    # Residual stream, its norm, q, k, v and what they are made into; the FFN's factors; and the scores, their bias, the
    # softmax in float32, and its result.
    busy = rows * item * (8 * config.d_model + 6 * config.d_ff)
    busy += config.num_heads * rows * rows * (4 * item + 8)
    if precision == "fp8" or item > _PRECISIONS[precision] > 1:
        busy += item * max(prod(shape) for key, shape in shapes.items() if is_linear(key))  # one that is widened
    if residence == "cpu":
        return Footprint(0, rows * config.d_model * item, total, 0)
    if residence == "parked":
        return Footprint(0, 2 * layer + busy, total, total - table)
    return Footprint(total, busy, 0, 0)


def _nbytes(key: str, shape: Sequence[int], precision: str, dtype: torch.dtype) -> int:
    numbers = prod(shape)
    if not may_be_narrow(key):
        return numbers * dtype.itemsize
    if precision == "int8":
        return numbers + numbers // BLOCK * torch.bfloat16.itemsize
    stored = 2 if precision == "fp8" and not is_linear(key) else _PRECISIONS[precision]
    return numbers * min(stored, dtype.itemsize)
