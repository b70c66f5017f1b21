"""What a GIF (its specification of 1989) and a WebP (RFC 9649) say of themselves, read without any library."""

from __future__ import annotations

import struct


def gif_delays(data: bytes) -> tuple[list[float], bool]:
    """Seconds of each picture, and whether they are repeated for ever."""
    at = 13 + _table(data[10])
    delays, endless = [], False
    while data[at] != 0x3B:
        if data[at] == 0x21 and data[at + 1] == 0xF9:  # a graphic control extension
            delays.append(struct.unpack_from("<H", data, at + 4)[0] / 100)
        endless |= data[at : at + 19] == b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
        if data[at] == 0x21:
            at = _after_blocks(data, at + 2)
        else:  # an image
            at = _after_blocks(data, at + 10 + _table(data[at + 9]) + 1)
    return delays, endless


def webp_delays(data: bytes) -> tuple[list[float], bool]:
    """Seconds of each picture, and whether they are repeated for ever."""
    assert data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    at, delays, endless = 12, [], False
    while at < len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        if name == b"ANIM":
            endless = struct.unpack_from("<H", data, at + 12)[0] == 0
        if name == b"ANMF":
            delays.append(int.from_bytes(data[at + 20 : at + 23], "little") / 1000)
        at += 8 + size + size % 2
    return delays, endless


def _table(packed: int) -> int:
    """Bytes of a colour table."""
    return 3 << (packed & 7) + 1 if packed & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    while data[at]:
        at += 1 + data[at]
    return at + 1
