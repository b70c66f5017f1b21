"""Reading a checkpoint's tensors in pieces, by several threads ahead of their use.

A mapped file is read page by page by the thread that touches it, and copied once more on its way to a GPU. Here threads
read into buffers, pinned where a GPU follows, or straight into where the bytes belong.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import CheckpointError
from .archive import check_archive

PIECE = 1 << 22  # bytes of a piece, if its tensor's rows allow
_THREADS = min(8, max(2, os.cpu_count() or 1))
_MOST_HEADER = 1 << 26  # bytes of a safetensors header


class Piece(NamedTuple):
    """Bytes ``start`` to ``stop`` of a tensor, and host memory to read them straight into (uint8), if any."""

    key: str
    start: int
    stop: int
    into: Tensor | None = None


def pieces_of(key: str, nbytes: int, row_bytes: int) -> Iterator[Piece]:
    """A tensor of ``nbytes`` in pieces of whole rows and of whole words of 8 bytes, the last one excepted."""
    step = row_bytes * 8
    step *= max(1, PIECE // step)
    return (Piece(key, start, min(start + step, nbytes)) for start in range(0, nbytes, step))


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors begin. Raises CheckpointError for one that is none."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > _MOST_HEADER:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(file.read(size))
        if not isinstance(header, dict):
            raise ValueError("a header that is no object")
    except (ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    return header, 8 + size


def offsets_in(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Where the bytes of each of ``tensors``, opened from ``path``, begin in the file.

    A tensor whose bytes do not lie there one after the other is left out: its mapped form has to be read.
    """
    if not (hasattr(os, "preadv") and hasattr(os, "posix_fadvise")):
        return {}
    if path.suffix == ".safetensors":
        header, start = safetensors_header(path)
        return {key: start + header[key]["data_offsets"][0] for key in tensors}
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return {}
    return _offsets_in_archive(path, tensors)


def _offsets_in_archive(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The storages lie in the mapping as their records lie in the file: all are shifted by its address."""
    records = sorted(record for name, record in check_archive(path).items() if name.startswith("data/") and record.size)
    storages = sorted({(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) for t in tensors.values()})
    shifts = {address - record.offset for (address, _), record in zip(storages, records, strict=False)}
    sizes = [nbytes for _, nbytes in storages]
    if len(shifts) != 1 or sizes != [record.size for record in records]:
        return {}
    (shift,) = shifts
    return {key: t.data_ptr() - shift for key, t in tensors.items() if t.is_contiguous()}


class Reader:
    """The pieces of one file's tensors, in the order in which they are asked for.

    device: where ``pieces`` gives them; to a GPU they are copied without waiting, on the current stream.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], device: torch.device):
        self._path, self._tensors, self._device = path, tensors, device
        self._offsets = offsets_in(path, tensors)
        self._buffers: deque[_Buffer] = deque()
        self._mapped: tuple[str, Tensor] = "", torch.empty(0, device="cpu")

    def pieces(self, wanted: Iterable[Piece]) -> Iterator[tuple[Piece, Tensor]]:
        """Each piece with its bytes, uint8, of which only the last that was given is valid.

        A piece with ``into`` is given there, on the host. Raises CheckpointError where the file ends too early, and
        OSError.
        """
        wanted, ahead = iter(wanted), 2 * _THREADS
        with self._path.open("rb") as file, ThreadPoolExecutor(_THREADS, "longlive-read") as pool:
            pending: deque[tuple[Piece, _Buffer | None, Future | None]] = deque()
            try:
                while True:
                    for piece in itertools.islice(wanted, ahead - len(pending)):
                        pending.append(self._begin(piece, pool, file.fileno()))
                    if not pending:
                        return
                    piece, buffer, future = pending.popleft()
                    yield piece, self._finish(piece, buffer, future)
                    if buffer is not None:
                        buffer.used(self._device)
                        self._buffers.append(buffer)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, piece: Piece, pool: ThreadPoolExecutor, fd: int):
        if piece.key not in self._offsets:
            return piece, None, None
        size, buffer = piece.stop - piece.start, None
        if piece.into is None:
            fitting = next((b for b in self._buffers if b.nbytes >= size), None)
            buffer = fitting or _Buffer(size, self._device)
            if fitting:
                self._buffers.remove(fitting)
                fitting.free()
        target = piece.into if buffer is None else buffer.bytes[:size]
        assert target is not None
        return piece, buffer, pool.submit(_read, fd, target.numpy(), self._offsets[piece.key] + piece.start, self._path)

    def _finish(self, piece: Piece, buffer: _Buffer | None, future: Future | None) -> Tensor:
        if future is None:
            mapped = self._mapped_bytes(piece.key)[piece.start : piece.stop]
            return mapped.to(self._device) if piece.into is None else piece.into.copy_(mapped)
        future.result()
        if buffer is None:
            assert piece.into is not None
            return piece.into
        return buffer.bytes[: piece.stop - piece.start].to(self._device, non_blocking=True)

    def _mapped_bytes(self, key: str) -> Tensor:
        """All bytes of a tensor in their order, which may take a copy of it: of the last one asked for."""
        if self._mapped[0] != key:
            self._mapped = key, self._tensors[key].detach().reshape(-1).view(torch.uint8)
        return self._mapped[1]


class _Buffer:
    """Host memory that pieces are read into, in turn; pinned where they go on to a GPU."""

    def __init__(self, nbytes: int, device: torch.device):
        self.nbytes = nbytes
        self.bytes = torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")
        self._copied: torch.cuda.Event | None = None

    def used(self, device: torch.device) -> None:
        """The copy of it has been enqueued."""
        if device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(device))

    def free(self) -> None:
        """Wait until it may be written to."""
        if self._copied is not None:
            self._copied.synchronize()


def _read(fd: int, target, offset: int, path: Path) -> None:
    """Fill ``target``, a NumPy array of bytes, from ``offset`` on. Other threads run meanwhile."""
    view, done = memoryview(target), 0
    os.posix_fadvise(fd, offset, len(view), os.POSIX_FADV_WILLNEED)
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if not got:
            raise CheckpointError(f"{path} has changed while it was read: load again when it is there")
        done += got
