"""LongLive's LoRA, checked against the generator (docs/model.md 1.4)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from . import CheckpointError
from .files import check_tensors, tensors_in
from .terms import Adapter, LowRank

_PREFIX = "base_model.model."
_TARGET = re.compile(r"(blocks\.\d+\.(?:(?:self|cross)_attn\.[qkvo]|ffn\.[02]))\.weight")


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
        f"{module}.weight": [
            LowRank(tensors[f"{_PREFIX}{module}.lora_A.weight"], tensors[f"{_PREFIX}{module}.lora_B.weight"])
        ]
        for module in targets(generator)
    }
