"""LongLive's LoRA: checked against the generator, then folded into its weights (docs/model.md 1.4)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import CheckpointError
from .files import check_tensors, tensors_in

_PREFIX = "base_model.model."
_TARGET = re.compile(r"(blocks\.\d+\.(?:(?:self|cross)_attn\.[qkvo]|ffn\.[02]))\.weight")


class LowRank(NamedTuple):
    """What a LoRA adds to one weight [rows, columns]: ``scale B A``, A [rank, columns], B [rows, rank]."""

    a: Tensor
    b: Tensor
    scale: float = 1.0


Adapter = Mapping[str, LowRank]  # by the key of the weight


def targets(keys: Iterable[str]) -> list[str]:
    """The modules that LongLive adapts: every linear of every layer."""
    return [match[1] for key in keys if (match := _TARGET.fullmatch(key))]


def adapter_shapes(generator: Mapping[str, Sequence[int]], rank: int) -> dict[str, tuple[int, int]]:
    """Shape of every tensor of an adapter of the generator with these shapes, under the published (PEFT) names."""
    shapes = {}
    for module in targets(generator):
        rows, columns = generator[f"{module}.weight"]
        shapes[f"{_PREFIX}{module}.lora_A.weight"] = (rank, columns)
        shapes[f"{_PREFIX}{module}.lora_B.weight"] = (rows, rank)
    return shapes


def open_adapter(path: Path, generator: Mapping[str, Sequence[int]]) -> Adapter:
    """A and B of every linear of every layer, at scale 1, as LongLive's alpha equals its rank; else CheckpointError."""
    tensors = tensors_in(path, ("generator_lora",))
    matrix = next((t for key, t in tensors.items() if key.endswith(".lora_A.weight") and t.ndim == 2), None)
    if matrix is None:
        raise CheckpointError(f"{path} is no LoRA: it has no tensor named {_PREFIX}...lora_A.weight")
    check_tensors(path, tensors, adapter_shapes(generator, len(matrix)), "the generator's linears")
    return {
        f"{module}.weight": LowRank(
            tensors[f"{_PREFIX}{module}.lora_A.weight"], tensors[f"{_PREFIX}{module}.lora_B.weight"]
        )
        for module in targets(generator)
    }


def merge(weight: Tensor, terms: Iterable[LowRank]) -> Tensor:
    """``W`` plus each ``scale B A``, in turn, in float32 on the device of ``weight``; scale 0 does not touch a bit."""
    where = {"device": weight.device, "dtype": torch.float32}
    merged = weight.float()
    for a, b, scale in terms:
        if scale:
            merged = torch.addmm(merged, b.to(**where), a.to(**where), alpha=scale)
    return merged
