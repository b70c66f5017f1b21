"""Checkpoint files: opened without copying, told apart from what is often found in their place, checked by shape."""

from __future__ import annotations

import pickle
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import CheckpointError

_NAMED = 4  # tensors named per kind of problem before the message only counts


def open_checkpoint(path: Path) -> dict[str, Any]:
    """The memory-mapped content of a ``.pt``, ``.pth`` or ``.safetensors`` file: tensors, or dicts of them, by name.

    Nothing but tensors and plain containers is ever unpickled. Raises FileNotFoundError, and CheckpointError saying
    what the file is instead.
    """
    with path.open("rb") as file:
        head = file.read(512)
    _refuse_stand_ins(path, head)
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path, head)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected tensors by name")
    return content


def tensors_in(path: Path, containers: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors by name in ``path``: in the first of ``containers`` that the file has, else at its top level."""
    content = open_checkpoint(path)
    name = next((name for name in containers if isinstance(content.get(name), Mapping)), None)
    tensors = content if name is None else content[name]
    stray = [str(key) for key, value in tensors.items() if not isinstance(value, Tensor)]
    if stray or not tensors:
        where = " or ".join([*(repr(name) for name in containers), "the top level"])
        raise CheckpointError(f"{path} has no tensors by name under {where}; it holds {some(content)}")
    return dict(tensors)


def check_tensors(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], authority: object
) -> None:
    """Require exactly the ``expected`` names and shapes, floating point; ``authority`` is where they come from.

    Raises CheckpointError naming the file and the tensors that are missing, unexpected, or of another shape or type.
    """
    common = tensors.keys() & expected.keys()
    wrong = [key for key in expected if key in common and tuple(tensors[key].shape) != tuple(expected[key])]
    types = [key for key in expected if key in common and not tensors[key].is_floating_point()]
    problems = {
        "missing": [key for key in expected if key not in tensors],
        "unexpected": [key for key in tensors if key not in expected],
        "of another shape": [f"{k} is {list(tensors[k].shape)}, expected {list(expected[k])}" for k in wrong],
        "not floating point": [f"{k} is {tensors[k].dtype}" for k in types],
    }
    text = "; ".join(f"{len(names)} {kind} ({some(names)})" for kind, names in problems.items() if names)
    if text:
        raise CheckpointError(f"{path} does not fit {authority}, which asks for {len(expected)} tensors: {text}")


def some(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    shown = [str(name) for name in names][:_NAMED]
    return ", ".join(shown) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _refuse_stand_ins(path: Path, head: bytes) -> None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise CheckpointError(f"{path} is empty: download it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(f"{path} is a web page, not a checkpoint: the download went wrong")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull`, or download it")


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged, cut short or no safetensors file: {error}") from error


def _pickled(path: Path, head: bytes) -> Any:
    zipped = head.startswith(b"PK")
    if not zipped and not head.startswith(b"\x80"):  # a bare pickle is the form torch wrote until 1.5
        raise CheckpointError(f"{path} is not a PyTorch checkpoint (it starts with {head[:16]!r})")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if name := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path} holds Python objects besides tensors ({name[1]}); it was not read, as that can run code"
            ) from error
        raise CheckpointError(f"{path} is damaged, or holds more than tensors; it was not read") from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path} is damaged or cut short ({size} bytes): download it again") from error
