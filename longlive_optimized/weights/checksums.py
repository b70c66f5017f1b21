"""What the hub's client records of a file that it downloaded, and a file's own checksum in the same form."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_CHUNK = 1 << 24
_FORM = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


def hub_checksum(path: Path) -> str:
    """What the hub's client recorded of a file: its SHA-256, or git's SHA-1 of a small one; empty if nothing.

    The cache names a file so; below a folder of ``hf download --local-dir`` it is the second line of a file beside.
    """
    real = path.resolve()
    recorded = real.name if real.parent.name == "blobs" else ""
    for root in path.absolute().parents:
        note = record_of(root, path.absolute().relative_to(root).as_posix())
        if note.is_file():
            recorded = "".join(note.read_text(errors="replace")[:1000].splitlines()[1:2]).strip().strip('"')
            break
    return recorded if is_checksum(recorded) else ""


def record_of(root: Path, file: str) -> Path:
    """Where the client notes what it downloaded to ``file`` of the folder ``root``: commit, checksum, time."""
    return root / ".cache/huggingface/download" / f"{file}.metadata"


def recorded_commit(root: Path, file: str) -> str:
    """The commit that the client noted of ``file`` in the folder ``root``; empty if none."""
    note = record_of(root, file)
    first = note.read_text(errors="replace")[:100].splitlines()[:1] if note.is_file() else []
    return "".join(line for line in first if len(line) == 40 and is_checksum(line))


def is_checksum(text: str) -> bool:
    """Whether ``text`` is a SHA-256 or a SHA-1."""
    return _FORM.fullmatch(text) is not None


def digest(path: Path, digits: int) -> str:
    """The SHA-256 of a file, for 64 ``digits``, or git's SHA-1 of it, for 40. Raises OSError."""
    hashed = hashlib.sha256() if digits == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()
