"""RTP packets of one video to encoded frames, each as soon as it is whole.

aiortc's own buffer ends a frame where a packet of another time stamp comes: always a frame late, and never the last one
before a pause. The marker bit is on a frame's last packet (RFC 3550 section 5.1; RFC 7741 section 4.1 for VP8; RFC 6184
section 5.1 for H.264). RFC 6184 lets nobody rely on it, so a packet of another time stamp ends a frame here too, and
after a sender that goes on with a frame behind its marker nothing else does.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from dataclasses import dataclass, field

from aiortc.jitterbuffer import JitterBuffer
from aiortc.rtp import RtpPacket

CAPACITY = 512  # packets from the first one that is missing to the newest
MOST_MISORDER = 100  # packets behind the newest frame that are late in any case (RFC 3550 appendix A.1)
NUMBERS, TIMES = 1 << 16, 1 << 32  # of sequence numbers, and of time stamps


@dataclass
class EncodedFrame:
    """What aiortc's receiver hands to a decoder.

    timestamp: in ticks of RTP's clock. after_gap: whether something is missing before it, which may be its own
    beginning. later: frames that were complete at the same time, their time stamps counted from this one's.
    """

    data: bytes
    timestamp: int
    after_gap: bool = False
    later: list[EncodedFrame] = field(default_factory=list)


class FrameBuffer:
    """In the place of aiortc's ``JitterBuffer``: packets in, in any order and repeatedly; frames out, in order, each
    once."""

    def __init__(self) -> None:
        self._source: int | None = None
        self._trust_marker = True
        self._begin(0)

    def add(self, packet: RtpPacket) -> tuple[bool, EncodedFrame | None]:
        """Whether packets were given up, and the frame that has become whole."""
        lost = False
        if packet.ssrc != self._source:
            lost, self._source, self._trust_marker = self._source is not None, packet.ssrc, True
            self._begin(packet.sequence_number)
        number = self._next + _signed(packet.sequence_number - self._next, NUMBERS)
        if number < self._next:
            if self._is_late(number, packet.timestamp):
                return False, None
            self._begin(number)
            lost = True
        elif number >= self._next + CAPACITY:
            self._skip_to(number)
            lost = True
        self._waiting.setdefault(number, packet)
        frames = [*iter(self._take, None)]
        if not frames:
            return lost, None
        first, *first.later = frames
        for one in first.later:
            one.timestamp = _signed(one.timestamp - first.timestamp, TIMES)
        return lost, first

    def _begin(self, number: int) -> None:
        """Expect this packet next, and know of none before it."""
        self._waiting: dict[int, RtpPacket] = {}
        self._next, self._gap = number, True
        self._newest: int | None = None  # time stamp of what was taken out
        self._marked: int | None = None  # time stamp of the frame just before, if a marker ended it

    def _is_late(self, number: int, timestamp: int) -> bool:
        """Whether a packet belongs to what was taken out; else its sender counts anew."""
        older = self._newest is not None and _signed(timestamp - self._newest, TIMES) <= 0
        return older or self._next - number < MOST_MISORDER

    def _skip_to(self, newest: int) -> None:
        """Give up what is missing, and what waits up to a frame's beginning, so that there is room for the newest."""
        room = range(newest - CAPACITY + 1, newest)
        self._advance(next(filter(self._may_begin, room), newest))
        self._gap, self._marked = True, None

    def _may_begin(self, number: int) -> bool:
        """Whether a frame may begin with this packet, as far as is known of the one before."""
        before, packet = self._waiting.get(number - 1), self._waiting.get(number)
        if before is None or packet is None:
            return packet is not None
        return before.timestamp != packet.timestamp or bool(before.marker and self._trust_marker)

    def _advance(self, number: int) -> None:
        """Take out all packets before this one."""
        for old in [one for one in self._waiting if one < number]:
            timestamp = self._waiting.pop(old).timestamp
            if self._newest is None or _signed(timestamp - self._newest, TIMES) > 0:
                self._newest = timestamp
        self._next = number

    def _take(self) -> EncodedFrame | None:
        """Take out the next frame, if it is whole."""
        packets: list[RtpPacket] = []
        for number in itertools.count(self._next):
            packet = self._waiting.get(number)
            if packet is None:
                return None
            if packets and packet.timestamp != packets[0].timestamp:
                return self._end(packets, number, None)
            if not packets and not _data(packet):  # padding between frames
                self._advance(number + 1)
                continue
            if not packets and packet.timestamp == self._marked:
                self._trust_marker, self._gap, self._marked = False, True, None
            packets.append(packet)
            if packet.marker and self._trust_marker:
                return self._end(packets, number + 1, packet.timestamp)

    def _end(self, packets: list[RtpPacket], after: int, marked: int | None) -> EncodedFrame:
        frame = EncodedFrame(b"".join(map(_data, packets)), packets[0].timestamp, self._gap)
        self._advance(after)
        self._gap, self._marked = False, marked
        return frame


def begins_video(codec: str, data: bytes) -> bool:
    """Whether a key frame's data is there from the beginning on; codec: ``VP8`` or ``H264``."""
    if codec.upper() == "VP8":
        return data[3:6] == b"\x9d\x01\x2a"  # RFC 6386 section 9.1
    if data[:4] != b"\0\0\0\x01" or len(data) < 6:
        return False
    kind, first = data[4:6]
    # Parameter sets and what comes before them, or a picture's first slice: first_mb_in_slice is 0, one bit.
    return kind & 31 in (6, 7, 8, 9) or bool(first & 0x80)


def can_replace(buffer: object) -> bool:
    """Whether a receiver's buffer is one of aiortc's that ``FrameBuffer`` is known to replace."""
    return type(buffer) is JitterBuffer and _buffer_is_known()


@functools.cache
def _buffer_is_known() -> bool:
    """Whether the installed aiortc's buffer takes, and gives, what ``FrameBuffer`` does."""
    known = {"add", "capacity", "remove", "smart_remove"}
    if known != {name for name in vars(JitterBuffer) if not name.startswith("_")}:
        return False
    with contextlib.suppress(Exception):  # whatever another version raises
        buffer, packets = JitterBuffer(capacity=CAPACITY, is_video=True), []
        for number in range(2):
            packets.append(RtpPacket(sequence_number=number, timestamp=number, ssrc=1, marker=0))
            vars(packets[-1])["_data"] = bytes([number])
        nothing, (lost, frame) = map(buffer.add, packets)
        return nothing == (False, None) and not lost and (frame and vars(frame)) == {"data": b"\0", "timestamp": 0}
    return False


def _data(packet: RtpPacket) -> bytes:
    """A packet's part of an encoded frame, which aiortc's receiver puts beside it under no public name."""
    return vars(packet)["_data"]


def _signed(difference: int, turn: int) -> int:
    """The shorter way round between two numbers that wrap, in [-turn / 2, turn / 2)."""
    return (difference + turn // 2) % turn - turn // 2
