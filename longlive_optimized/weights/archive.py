"""What a torch file says of itself, read and checked before torch reads it.

A file of torch 1.6 or newer is a zip archive: ``data.pkl``, which names the tensors, and a record of bytes for each
storage. A mapped read trusts the archive's directory and never compares a record's size with what the tensors ask for;
no read of torch's compares a checksum. An older file is a row of pickles, then the storages.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import struct
import zlib
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import CheckpointError
from .published import again

_CHUNK = 1 << 24
_MOST_DIRECTORY = 1 << 24  # bytes: over a hundred thousand records
_MOST_PICKLE = 1 << 26  # bytes: over half a million tensors
_END, _END64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_ENTRY, _HEADER, _DESCRIPTOR = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H"), struct.Struct("<4sL")
_PLAIN = {
    "collections OrderedDict", "collections Counter", "collections defaultdict", "__builtin__ set", "builtins set",
    "torch Size", "torch device", "torch.nn.parameter Parameter", "torch._tensor _rebuild_from_type_v2",
    "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state", "torch._utils _rebuild_tensor_v3", "_codecs encode",
}  # fmt: skip
_ELEMENT = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8, "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1,
    "BoolStorage": 1, "UntypedStorage": 1,
}  # fmt: skip


class Record(NamedTuple):
    """Where a record's bytes lie in the file, and their CRC-32; 0 where the writer left it out."""

    offset: int
    size: int
    crc: int


class Storage(NamedTuple):
    """A storage as a pickle asks for it: its size, and the name of a tensor that needs it."""

    nbytes: int
    tensor: str


class _Global(str):
    """A name that a pickle imports."""


def check_archive(path: Path) -> dict[str, Record]:
    """The records of a zipped torch file, whose tensors a mapped read then finds.

    Every record is stored as it is, lies inside the file and begins and ends where its header, its directory entry and
    its neighbours say; what is not a tensor's bytes has the right checksum; ``data.pkl`` makes plain tensors only, and
    each of their storages is a record of just that size. Raises CheckpointError naming the file and the record.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        records = _directory(path, data)
        for name, record in records.items():
            if not name.startswith("data/"):
                _check_crc(path, name, record, data)
        if "data.pkl" not in records or records["data.pkl"].size > _MOST_PICKLE:
            raise _damaged(path, "it has no data.pkl of a sensible size")
        if "byteorder" in records and _bytes(records["byteorder"], data) != b"little":
            raise CheckpointError(f"{path} is not little-endian (byteorder): save it on another machine")
        pickled = _bytes(records["data.pkl"], data)
    for key, (nbytes, tensor) in _storages(path, io.BytesIO(pickled)).items():
        found = records.get(f"data/{key}")
        if found is None or found.size != nbytes:
            holds = "is missing" if found is None else f"has {found.size} bytes"
            raise _damaged(path, f"its record data/{key} {holds}, {tensor or 'a tensor'} asks for {nbytes}")
    return records


def check_bare_pickles(path: Path) -> None:
    """Check a file in the form that torch wrote until 1.5: plain tensors, and as many bytes as they ask for."""
    with path.open("rb") as file:
        head = io.BytesIO(file.read(_MOST_PICKLE))
    storages: dict[str, Storage] = {}
    for _ in ("magic number", "version", "system", "content", "keys"):
        storages |= _storages(path, head)
    found, wanted = path.stat().st_size - head.tell(), sum(8 + storage.nbytes for storage in storages.values())
    if found != wanted:
        raise _damaged(path, f"its tensors ask for {wanted} bytes, {found} are there")


def verify_archive(path: Path) -> int:
    """Compare every record of a zipped torch file with its checksum; the number of records that have none.

    Raises what check_archive raises, and CheckpointError naming the record whose bytes have changed.
    """
    records = check_archive(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return sum(not _check_crc(path, name, record, data) for name, record in records.items())


def _check_crc(path: Path, name: str, record: Record, data: mmap.mmap) -> bool:
    """Whether the record has a checksum, which must then be right."""
    if not record.size or not record.crc:
        return not record.size
    crc = 0
    for start in range(record.offset, record.offset + record.size, _CHUNK):
        crc = zlib.crc32(data[start : min(start + _CHUNK, record.offset + record.size)], crc)
    if crc != record.crc:
        raise _damaged(path, f"the bytes of its record {name} are not those that were written (CRC-32)")
    return True


def _directory(path: Path, data: mmap.mmap) -> dict[str, Record]:
    """The records by name, without the archive's own name before it."""
    entries = sorted(_entries(path, data, *_place(path, data)))
    records: dict[str, Record] = {}
    names = {name.lower() for _, name, *_ in entries}  # torch looks names up without regard to case
    if len(names) < len(entries):
        raise _damaged(path, "its directory has two records of one name")
    folder = {name.partition("/")[0] for name in names}
    if len(folder) != 1:
        raise _damaged(path, f"its records lie in {len(folder)} folders, not in one")
    position = 0
    for offset, name, size, crc, described in entries:
        if offset != position:
            raise _damaged(path, f"its record {name} is said to begin at {offset}, not at {position}")
        start = _payload(path, data, offset, name)
        position = start + size
        if described and size:
            position += _check_descriptor(path, data, position, name, size, crc)
        if position > len(data):
            raise _damaged(path, f"its record {name} is said to end at {position}, beyond the file")
        records[name.partition("/")[2]] = Record(start, size, crc)
    if position != _place(path, data)[0]:
        raise _damaged(path, "its last record does not end where its directory begins")
    return records


def _place(path: Path, data: mmap.mmap) -> tuple[int, int]:
    """Where the directory begins and ends."""
    end = len(data) - _END.size
    if end < 0 or data[end : end + 4] != b"PK\5\6":
        raise _damaged(path, "its directory is missing")
    *_, size, offset, comment = _END.unpack_from(data, end)
    locator = end - _LOCATOR.size
    if locator >= _END64.size and data[locator : locator + 4] == b"PK\6\7":
        end = locator - _END64.size
        signature, *_, size, offset = _END64.unpack_from(data, end)
        if signature != b"PK\6\6" or _LOCATOR.unpack_from(data, locator)[2] != end:
            raise _damaged(path, "its directory is not where it is said to be")
    if comment or offset + size != end or size > _MOST_DIRECTORY:
        raise _damaged(path, "its directory is not where it is said to be")
    return offset, end


def _entries(path: Path, data: mmap.mmap, position: int, end: int) -> list[tuple[int, str, int, int, bool]]:
    """(offset of the header, name, size, CRC-32, whether a descriptor follows) of each record."""
    entries = []
    if b"/constants.pkl" in data[position:end]:
        raise CheckpointError(f"{path} is a TorchScript program, not a checkpoint; it was not read")
    while position < end:
        if position + _ENTRY.size > end or data[position : position + 4] != b"PK\1\2":
            raise _damaged(path, f"entry {len(entries)} of its directory is none")
        fields = _ENTRY.unpack_from(data, position)
        flags, method, crc, packed, size, name_size, extra_size, comment_size = (*fields[3:5], *fields[7:13])
        offset = fields[16]
        position += _ENTRY.size
        name = _name(path, data[position : position + name_size])
        extra = data[position + name_size : position + name_size + extra_size]
        position += name_size + extra_size + comment_size
        size, packed, offset = _wide(path, name, extra, size, packed, offset)
        if method or flags & 1 or packed != size:
            raise CheckpointError(
                f"{path} is compressed or encrypted ({name}), so it cannot be mapped: load and save it with torch"
            )
        entries.append((offset, name, size, crc, bool(flags & 8)))
    if position != end or not entries:
        raise _damaged(path, "its directory does not end where it is said to")
    return entries


def _wide(path: Path, name: str, extra: bytes, *values: int) -> list[int]:
    """``values``, those that do not fit into 32 bits taken from the entry's extra field."""
    wide = iter(())
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = struct.iter_unpack("<Q", extra[4 : 4 + size // 8 * 8])
        extra = extra[4 + size :]
    try:
        return [next(wide)[0] if value == 0xFFFFFFFF else value for value in values]
    except StopIteration:
        raise _damaged(path, f"the directory's entry of {name} has no size") from None


def _payload(path: Path, data: mmap.mmap, offset: int, name: str) -> int:
    """Where the bytes of the record whose header is at ``offset`` begin."""
    if offset + _HEADER.size > len(data):
        raise _damaged(path, f"its record {name} is said to begin at {offset}, beyond the file")
    signature, _, flags, method, *_, name_size, extra_size = _HEADER.unpack_from(data, offset)
    start = offset + _HEADER.size
    if signature != b"PK\3\4" or method or flags & 1 or data[start : start + name_size] != name.encode():
        raise _damaged(path, f"the header of its record {name} is not the one in its directory")
    return start + name_size + extra_size


def _check_descriptor(path: Path, data: mmap.mmap, position: int, name: str, size: int, crc: int) -> int:
    """The bytes of what follows a record: its checksum and sizes once more."""
    if data[position : position + _DESCRIPTOR.size] != _DESCRIPTOR.pack(b"PK\7\x08", crc):
        raise _damaged(path, f"its record {name} does not end where it is said to")
    wide = data[position + 8 : position + 24] == struct.pack("<2Q", size, size)
    if not wide and data[position + 8 : position + 16] != struct.pack("<2Q", size, size)[:4] * 2:
        raise _damaged(path, f"the size behind its record {name} is not the one in its directory")
    return 24 if wide else 16


def _storages(path: Path, file: io.BytesIO) -> dict[str, Storage]:
    """The storages that the next pickle of ``file`` asks for, by key.

    Nothing is built. Raises CheckpointError for a pickle that is none, or that makes anything but plain tensors.
    """
    storages: dict[str, Storage] = {}
    memo: dict[Any, Any] = {}
    pushed: deque[Any] = deque([None], maxlen=16)
    try:
        for op, arg, _ in pickletools.genops(file):
            if op.name in ("BINPUT", "LONG_BINPUT"):
                memo[arg] = pushed[-1]
            elif op.name in ("BINGET", "LONG_BINGET"):
                pushed.append(memo.get(arg))
            elif op.name == "GLOBAL":
                pushed.append(_plain(path, str(arg)))
            elif op.name == "BINPERSID":
                key, storage = _storage(list(pushed))
                if storages.setdefault(key, storage).nbytes != storage.nbytes:
                    raise _damaged(path, f"its tensors ask for different sizes of storage {key}")
            elif op.stack_after and op.name not in ("MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
                pushed.append(arg)
    except CheckpointError:
        raise
    except (ValueError, KeyError, OverflowError) as error:
        raise _damaged(path, f"its pickle cannot be read: {error}") from error
    return storages


def _storage(pushed: list[Any]) -> tuple[str, Storage]:
    """Key and size from ``("storage", type, key, location, number of elements)``, the last that was pushed."""
    start = max(i for i, value in enumerate(pushed) if value == "storage")
    _, kind, key, _, numel, *_ = pushed[start:]
    if not isinstance(kind, _Global) or type(key) is not str or type(numel) is not int or numel < 0:
        raise ValueError("a storage is not described as torch does")
    names = [value for value in pushed[:start] if type(value) is str]
    return key, Storage(numel * _ELEMENT[kind.partition(" ")[2]], names[-1] if names else "")


def _plain(path: Path, name: str) -> _Global:
    module, _, attribute = name.partition(" ")
    storage = module in ("torch", "torch.storage") and attribute in _ELEMENT
    if name in _PLAIN or storage or (module == "torch" and isinstance(getattr(torch, attribute, None), torch.dtype)):
        return _Global(name)
    if module.partition(".")[0] == "torch":
        raise CheckpointError(f"{path} holds more than plain tensors ({module}.{attribute}); it was not read")
    dotted = f"{module}.{attribute}".removeprefix("__builtin__.")
    raise CheckpointError(
        f"{path} holds Python objects besides tensors ({dotted}); it was not read, as that can run code"
    )


def _name(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, f"its directory names a record {raw[:40]!r}") from error


def _bytes(record: Record, data: mmap.mmap) -> bytes:
    return data[record.offset : record.offset + record.size]


def _damaged(path: Path, why: str) -> CheckpointError:
    size = path.stat().st_size
    return CheckpointError(f"{path} is damaged or cut short ({size} bytes): {why}; download it again{again(path)}")
