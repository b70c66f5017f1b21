"""What an mp4 says of itself (ISO/IEC 14496-12), read without any library of video."""

from __future__ import annotations

import struct


def durations(mp4: bytes) -> list[float]:
    """Seconds of each picture of the first track."""
    (rate,) = struct.unpack_from(">I", _box(mp4, "moov", "trak", "mdia", "mdhd"), 12)
    table = _box(mp4, "moov", "trak", "mdia", "minf", "stbl", "stts")
    return [ticks / rate for count, ticks in _runs(table, ">II") for _ in range(count)]


def times(mp4: bytes) -> list[float]:
    """Seconds from the first picture to each, in the order in which they are shown."""
    (rate,) = struct.unpack_from(">I", _box(mp4, "moov", "trak", "mdia", "mdhd"), 12)
    table = _box(mp4, "moov", "trak", "mdia", "minf", "stbl")
    decoded = [round(rate * sum(durations(mp4)[:i])) for i in range(len(durations(mp4)))]
    try:
        delays = [delay for count, delay in _runs(_box(table, "ctts"), ">Ii") for _ in range(count)]
    except ValueError:  # they are shown in the order of decoding
        delays = [0] * len(decoded)
    shown = sorted(at + delay for at, delay in zip(decoded, delays, strict=True))
    return [(at - shown[0]) / rate for at in shown]


def colour(mp4: bytes) -> tuple[int, int, int, bool]:
    """Primaries, curve, matrix (ITU-T H.273) and whether the full range is used, of the first track."""
    entry = _box(mp4, "moov", "trak", "mdia", "minf", "stbl", "stsd")
    at = entry.index(b"colrnclx") + 8
    return *struct.unpack_from(">HHH", entry, at), bool(entry[at + 6] >> 7)


def _runs(table: bytes, form: str):
    return struct.iter_unpack(form, table[8 : 8 + 8 * struct.unpack_from(">I", table, 4)[0]])


def _box(data: bytes, *path: str) -> bytes:
    at = 0
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        if name.decode() == path[0]:
            inside = data[at + 8 : at + size]
            return _box(inside, *path[1:]) if path[1:] else inside
        at += size
    raise ValueError(f"no {path[0]}")
