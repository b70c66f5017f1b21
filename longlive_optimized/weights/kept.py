"""A text encoder in int8 blocks, kept in a file beside the one that it was made from.

A safetensors file: a matrix KEY is int8, its scales are KEY.scale, the rest is as in the source. Its metadata say which
version of this form it has, of which file it was made, and the checksum of each tensor.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import glob
import json
import os
import secrets
import shutil
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..plain import size_text
from ..text.linear import Blocks
from . import CheckpointError
from .files import some, tensors_in
from .reader import PIECE, safetensors_header

FORM, VERSION = "longlive-optimized text encoder, int8 in blocks of 32", "1"
SCALE = ".scale"
_TOKEN = 16  # digits that end a scratch file's name, in base 16
_ABANDONED = 3600  # seconds without a write, after which a scratch file is nobody's
_NAMES = {
    torch.int8: "I8", torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip


class Kept(NamedTuple):
    """The tensors of a kept file, mapped, and the checksum of each."""

    path: Path
    tensors: dict[str, Tensor]
    checksums: dict[str, int]


def kept_path(source: Path) -> Path:
    """Where the int8 form of ``source`` is kept."""
    return source.with_name(f"{source.stem}.int8.safetensors")


def parts_of(stored: Mapping[str, Tensor | Blocks]) -> dict[str, Tensor]:
    """The tensors of a file, by its names."""
    parts: dict[str, Tensor] = {}
    for key, one in stored.items():
        parts |= {key: one.values, key + SCALE: one.scale} if isinstance(one, Blocks) else {key: one}
    return parts


def checksum(piece: Tensor) -> Tensor:
    """Of bytes, uint8 [n]: the sum of their words of 8 bytes, int64, which wraps; of a tensor in pieces of whole words,
    the sums add up."""
    whole = len(piece) // 8 * 8
    total = piece[:whole].view(torch.int64).sum()
    return total + piece[whole:].sum(dtype=torch.int64)


def open_kept(path: Path, source: Path, expected: Mapping[str, Tensor]) -> Kept:
    """Open the file at ``path``, which must be of ``source`` as it is now, with tensors like those ``expected``.

    Raises CheckpointError saying what is wrong with it, FileNotFoundError.
    """
    tensors = tensors_in(path)
    metadata = safetensors_header(path)[0].get("__metadata__") or {}
    if metadata.get("form") != FORM or metadata.get("version") != VERSION:
        found = f"{metadata.get('form')!r}, version {metadata.get('version')!r}"
        raise CheckpointError(f"{path} is of another form ({found}), wanted is version {VERSION}")
    for name, value in _identity(source).items():
        if metadata.get(name) != value:
            raise CheckpointError(
                f"{path} is stale: it was made when {source.name} had another {name.removeprefix('source_')}"
            )
    wrong = [key for key in expected.keys() | tensors.keys() if not _alike(expected.get(key), tensors.get(key))]
    try:
        sums = {key: int(value, 16) for key, value in json.loads(metadata["checksums"]).items()}
    except (KeyError, ValueError, AttributeError, TypeError, RecursionError):
        sums = {}
    if wrong or sums.keys() != expected.keys():
        raise CheckpointError(f"{path} is damaged: it lacks or misshapes {some(sorted(wrong)) or 'its checksums'}")
    return Kept(path, tensors, sums)


def check_room(source: Path, nbytes: int) -> None:
    """Raise OSError naming ``keep_text_int8`` unless a file of ``nbytes`` can be written beside ``source``."""
    folder, path = source.parent, kept_path(source)
    if path.is_dir():
        raise OSError(f"keep_text_int8: {path} is a folder")
    if not os.access(folder, os.W_OK):
        raise OSError(f"keep_text_int8: {folder} cannot be written to")
    if shutil.disk_usage(folder).free < nbytes:
        raise OSError(f"keep_text_int8: {folder} has too little room, {size_text(nbytes)} are needed")


def remove_abandoned(source: Path) -> None:
    """Remove scratch files of processes that were killed while they wrote the int8 form of ``source``."""
    path = kept_path(source)
    for scratch in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * _TOKEN}"):
        with contextlib.suppress(OSError):
            if time.time() - scratch.stat().st_mtime > _ABANDONED:
                scratch.unlink()


def write_kept(source: Path, stored: Mapping[str, Tensor | Blocks]) -> Path:
    """Write the encoder's weights, from wherever they lie, a piece at a time. The file appears when it is whole; of
    several writers at once the last one's stays.

    Raises OSError naming ``keep_text_int8``.
    """
    parts, path = parts_of(stored), kept_path(source)
    identity = _identity(source)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(_TOKEN // 2)}")
    remove = functools.partial(scratch.unlink, missing_ok=True)
    atexit.register(remove)  # a thread that writes is not waited for
    try:
        with scratch.open("xb") as file:
            head = _header(parts, dict.fromkeys(parts, 0), identity)
            file.write(b"\0" * len(head))
            sums = {key: _write(file, tensor) for key, tensor in parts.items()}
            file.seek(0)
            file.write(_header(parts, sums, identity))
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise OSError(f"keep_text_int8: {path} cannot be written: {error.strerror or error}") from error
    finally:
        atexit.unregister(remove)
        with contextlib.suppress(OSError):
            remove()
    return path


def _write(file, tensor: Tensor) -> int:
    total = 0
    for piece in _bytes_of(tensor):
        total += int(checksum(piece))
        file.write(piece.numpy())
    return total % 2**64


def _bytes_of(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.detach().reshape(-1).view(torch.uint8)
    return (flat[start : start + PIECE].cpu() for start in range(0, len(flat), PIECE))


def _header(parts: Mapping[str, Tensor], sums: Mapping[str, int], identity: Mapping[str, str]) -> bytes:
    """Of the same length whatever the sums are."""
    checksums = json.dumps({key: f"{value % 2**64:016x}" for key, value in sums.items()})
    header: dict = {"__metadata__": {"form": FORM, "version": VERSION, **identity, "checksums": checksums}}
    end = 0
    for key, tensor in parts.items():
        start, end = end, end + tensor.nbytes
        header[key] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _identity(source: Path) -> dict[str, str]:
    stat = source.stat()
    return {"source_name": source.name, "source_size": str(stat.st_size), "source_time": str(stat.st_mtime_ns)}


def _alike(wanted: Tensor | None, found: Tensor | None) -> bool:
    return wanted is not None and found is not None and (wanted.shape, wanted.dtype) == (found.shape, found.dtype)
