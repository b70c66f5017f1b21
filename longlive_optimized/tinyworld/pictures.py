"""Contact sheets of videos, as PNG files that need no library."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_GAP = 2  # pixels between pictures


def contact_sheet(videos: Sequence[Tensor], columns: int = 10) -> Tensor:
    """One row for each video uint8 [T, H, W, 3]: ``columns`` of its frames, evenly spaced, as uint8 [H', W', 3]."""
    rows = []
    for video in videos:
        at = torch.linspace(0, len(video) - 1, columns).round().long()
        framed = torch.nn.functional.pad(video.cpu()[at], (0, 0, 0, _GAP, 0, _GAP), value=255)
        rows.append(torch.cat(tuple(framed), 1))
    return torch.cat(rows)


def write_png(path: Path, picture: Tensor) -> None:
    """Write uint8 [H, W, 3]."""
    height, width, _ = picture.shape
    lines = torch.nn.functional.pad(picture.reshape(height, -1), (1, 0))  # each line begins with its filter: none

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    body = zlib.compress(lines.contiguous().numpy().tobytes(), 6)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
