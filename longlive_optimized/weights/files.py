"""Checkpoint files: opened without copying, told apart from what is often found in their place, checked by shape."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model.config import ModelConfig
from . import CheckpointError
from .archive import check_archive, check_bare_pickles, verify_archive
from .checksums import digest, hub_checksum
from .published import again

_NAMED, _LONGEST = 4, 100  # tensors named per kind of problem before the message only counts; letters of a name
_NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def open_checkpoint(path: Path) -> dict[str, Any]:
    """The memory-mapped content of a ``.pt``, ``.pth`` or ``.safetensors`` file: tensors, or dicts of them, by name.

    Nothing but plain tensors and containers is ever unpickled, and nothing is mapped before the archive's directory has
    been checked. Raises FileNotFoundError, and CheckpointError saying what the file is instead.
    """
    head = _head(path)
    _refuse_other_formats(path, head)
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path, head)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected tensors by name")
    return content


def tensors_in(path: Path, containers: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors by name in ``path``: in the first of ``containers`` that the file has, else at its top level."""
    content = open_checkpoint(path)
    name = next((name for name in containers if isinstance(content.get(name), Mapping)), None)
    tensors = content if name is None else content[name]
    stray = any(not isinstance(key, str) or not isinstance(value, Tensor) for key, value in tensors.items())
    if stray or not tensors:
        where = " or ".join([*(repr(name) for name in containers), "the top level"])
        raise CheckpointError(f"{path} has no tensors by name under {where}; it holds {some(content)}")
    if unplain := [key for key, tensor in tensors.items() if not _is_plain(tensor)]:
        raise CheckpointError(f"{path} holds sparse, nested, quantized or meta tensors: {some(unplain)}")
    nbytes, size = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values()), path.stat().st_size
    if nbytes > 2 * size:  # tensors may share bytes, but one that is expanded may be of any size
        raise CheckpointError(f"{path} has {size} bytes, its tensors would take {nbytes}")
    return dict(tensors)


def verify(path: Path) -> str:
    """Read all of a model's file and compare it with every checksum there is; how that was possible, in words.

    A checksum is one that the hub recorded as it downloaded the file, or the CRC-32 of each record of a torch archive.
    Raises CheckpointError naming the file, and the record, that has changed; OSError.
    """
    head = _head(path)
    if recorded := hub_checksum(path):
        if digest(path, len(recorded)) != recorded:
            raise CheckpointError(f"{path} is not as downloaded (its checksum differs): download it again{again(path)}")
        return "as downloaded"
    if not head.startswith(b"PK"):
        return "has no checksum to compare with"
    without = verify_archive(path)
    return f"{without} of its records have no checksum" if without else "all checksums are right"


class Reading:
    """Files while they are read, as they were at first. Its text names them.

    A mapped file that is written to gives a mixture of old and new, one that is cut short ends the process.
    """

    def __init__(self, paths: Iterable[Path]):
        self._seen = {path: _state(path) for path in paths}

    @property
    def changed(self) -> list[Path]:
        """Those that are no longer as they were."""
        return [path for path, state in self._seen.items() if _state(path) != state]

    def check(self) -> None:
        """Raise CheckpointError, naming the file, if one has changed."""
        if changed := self.changed:
            raise CheckpointError(f"{changed[0]} has changed while it was read: load again when it is there")

    def __str__(self) -> str:
        return " merged with ".join(map(str, self._seen))


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        stat = path.stat()
    except OSError:  # opening it says so
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def check_tensors(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], authority: object
) -> None:
    """Require exactly the ``expected`` names and shapes, floating point; ``authority`` is where they come from.

    Raises CheckpointError naming the file and the tensors that are missing, unexpected, or of another shape or type.
    """
    common = tensors.keys() & expected.keys()
    wrong = [key for key in expected if key in common and tuple(tensors[key].shape) != tuple(expected[key])]
    types = [key for key in expected if key in common and tensors[key].dtype not in _NUMBERS]
    problems = {
        "missing": [key for key in expected if key not in tensors],
        "unexpected": [key for key in tensors if key not in expected],
        "of another shape": [f"{k} is {list(tensors[k].shape)}, expected {list(expected[k])}" for k in wrong],
        "not floating point": [f"{k} is {tensors[k].dtype}" for k in types],
    }
    text = "; ".join(f"{len(names)} {kind} ({some(names)})" for kind, names in problems.items() if names)
    if text:
        raise CheckpointError(f"{path} does not fit {authority}, which asks for {len(expected)} tensors: {text}")


def model_config(path: Path) -> ModelConfig:
    """The network's dimensions, from a model's config.json. Raises CheckpointError."""
    try:
        return ModelConfig.from_json(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def some(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    shown = [f"{name:.{_LONGEST}}" if isinstance(name, str) else f"{name!r:.{_LONGEST}}" for name in names][:_NAMED]
    return ", ".join(shown) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _is_plain(tensor: Tensor) -> bool:
    dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
    return dense and tensor.device.type == "cpu" and type(tensor) in (Tensor, torch.nn.Parameter)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(512)
    _refuse_stand_ins(path, head)
    return head


def _refuse_stand_ins(path: Path, head: bytes) -> None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise CheckpointError(f"{path} is empty: download it again{again(path)}")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(f"{path} is a web page, not a checkpoint: the download went wrong{again(path)}")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull`, or download it{again(path)}"
        )


def _refuse_other_formats(path: Path, head: bytes) -> None:
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")):
        raise CheckpointError(f"{path} is a compressed file: unpack it")
    named, is_one = path.suffix == ".safetensors", head[7:9] == b"\0{"  # behind the length of its header
    if named and not is_one and head.startswith((b"PK", b"\x80")):
        raise CheckpointError(f"{path} is a torch file in spite of its name: load and save it as safetensors")
    if is_one and not named:
        raise CheckpointError(f"{path} is a safetensors file in spite of its name: load and save it with torch")
    if not head.startswith(b"PK") and head.isascii() and head.decode().replace("\n", "").isprintable():
        raise CheckpointError(f"{path} is a text, not a checkpoint, the download went wrong: {head[:60].decode()!r}")


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, and what torch makes of a header that lies
        raise CheckpointError(f"{path} is damaged, cut short or no safetensors file: {error}") from error


def _pickled(path: Path, head: bytes) -> Any:
    zipped = head.startswith(b"PK")
    if not zipped and not head.startswith(b"\x80"):  # a bare pickle is the form torch wrote until 1.5
        raise CheckpointError(f"{path} is not a PyTorch checkpoint (it starts with {head[:16]!r})")
    if zipped:
        check_archive(path)
    else:
        check_bare_pickles(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # the unpickler raises whatever damaged opcodes lead it into
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} is damaged or cut short ({size} bytes): {error}; download it again{again(path)}"
        ) from error
