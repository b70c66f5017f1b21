"""A stage's file: the averaged weights, and while it is under way what is needed to go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]


def named(parts: Mapping[str, nn.Module]) -> Tensors:
    """Every parameter by part and name."""
    return {f"{part}.{name}": weight for part, module in parts.items() for name, weight in module.named_parameters()}


def save(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` so that a reader, or a crash, finds the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)


def half(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies in bfloat16 on the CPU, none of which is a part of something larger."""
    return {name: tensor.detach().to("cpu", torch.bfloat16, copy=True) for name, tensor in tensors.items()}


@torch.no_grad()
def load(path: Path, parts: Mapping[str, nn.Module]) -> None:
    """Give ``parts`` the averaged weights of a stage that is done. Raises FileNotFoundError, ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: train the stage {path.stem!r} first")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not content["done"]:
        raise ValueError(f"{path} is of a stage that is not done yet, at step {content['step']}")
    for name, weight in named(parts).items():
        weight.copy_(content["average"][name])
