"""LongLive's LoRA: checked against the generator, then folded into its weights (model specification 1.4)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from . import CheckpointError
from .files import check_tensors, tensors_in

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


def open_adapter(path: Path, generator: Mapping[str, Sequence[int]]) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) by the key of the weight that they adapt; CheckpointError unless every linear of every layer has both."""
    tensors = tensors_in(path, ("generator_lora",))
    matrix = next((t for key, t in tensors.items() if key.endswith(".lora_A.weight") and t.ndim == 2), None)
    if matrix is None:
        raise CheckpointError(f"{path} is no LoRA: it has no tensor named {_PREFIX}...lora_A.weight")
    check_tensors(path, tensors, adapter_shapes(generator, len(matrix)), "the generator's linears")
    return {
        f"{module}.weight": tuple(tensors[f"{_PREFIX}{module}.lora_{half}.weight"] for half in "AB")
        for module in targets(generator)
    }


def merge(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``W + B A`` in float32 on the device of ``weight``: LongLive's alpha equals its rank, so the factor is 1."""
    where = {"device": weight.device, "dtype": torch.float32}
    return torch.addmm(weight.float(), b.to(**where), a.to(**where))
