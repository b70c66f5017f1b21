"""Arguments of an engine's calls as JSON and tensors, and back: no code travels, and every request is checked again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..plain import exact
from ..weights.user_lora import UserLora
from .request import BlockRequest, Control
from .snapshot import Snapshot

if TYPE_CHECKING:
    from .stream import Stream


class Call(NamedTuple):
    """What all ranks do: a method's name, the engine or stream that it is of, and its arguments."""

    name: str
    of: Any
    args: list
    kwargs: dict


_CLASSES = {cls.__name__: cls for cls in (BlockRequest, Control, UserLora)}


def packed(value: Any, tensors: list[Tensor], numbers: Mapping[Any, int]) -> Any:
    """``value`` as JSON can say it; its tensors are appended to ``tensors``, its streams become their numbers.

    Raises TypeError for what cannot travel.
    """
    if isinstance(value, np.ndarray) and value.ndim:
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor) and value.ndim:
        tensors.append(value.detach())
        return {"tensor": len(tensors) - 1}
    if isinstance(value, Snapshot):
        return {"Snapshot": packed(torch.frombuffer(bytearray(value.to_bytes()), dtype=torch.uint8), tensors, numbers)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [packed(each, tensors, numbers) for each in value]
    if isinstance(value, dict):
        return {"dict": {str(name): packed(each, tensors, numbers) for name, each in value.items()}}
    if type(value).__name__ in _CLASSES and dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {type(value).__name__: packed(fields, tensors, numbers)["dict"]}
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(number := exact(value), int | float):  # NumPy's, torch's
        return number
    try:
        return {"stream": numbers[value]}
    except (KeyError, TypeError):
        wanted = "an argument must be one that other ranks can be sent"
        raise TypeError(f"{wanted}, got {type(value).__name__}") from None


def unpacked(value: Any, tensors: Sequence[Tensor], streams: Mapping[int, Stream]) -> Any:
    """What ``packed`` was given."""
    if isinstance(value, list):
        return [unpacked(each, tensors, streams) for each in value]
    if not isinstance(value, dict):
        return value
    [(kind, inside)] = value.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "stream":
        return streams[inside]
    if kind == "Snapshot":
        return Snapshot.from_bytes(unpacked(inside, tensors, streams).numpy().tobytes())
    fields = {name: unpacked(each, tensors, streams) for name, each in inside.items()}
    return fields if kind == "dict" else _CLASSES[kind](**fields)
