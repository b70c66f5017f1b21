"""Frames of RTP packets: each as soon as it is whole, in order, once, never torn; whatever the network does."""

import asyncio
import random
from fractions import Fraction
from types import SimpleNamespace

import av
import pytest

pytest.importorskip("aiortc")

import aioice.ice
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection
from aiortc.jitterbuffer import JitterBuffer
from aiortc.rtp import RtpPacket

from longlive_optimized.demo.server import whole_frames
from longlive_optimized.demo.server.intake import BUFFER, QUEUE, Gate, Intake
from longlive_optimized.demo.server.whole_frames import CAPACITY, EncodedFrame, FrameBuffer, begins_video
from support.one_way import join


def packet(number, time, data=b"", marker=0, ssrc=1):
    made = RtpPacket(sequence_number=number % 2**16, timestamp=time % 2**32, ssrc=ssrc, marker=marker)
    made._data = data
    return made


def video(sizes, number=0, time=0, step=3000, marked=True, ssrc=1):
    """A list of packets for each frame; every packet's data is of its own."""
    frames = []
    for i, size in enumerate(sizes):
        data = [b"%d of %d|" % (j, number + j) for j in range(size)]
        ends = [int(marked and j == size - 1) for j in range(size)]
        frames.append([packet(number + j, time + i * step, data[j], ends[j], ssrc) for j in range(size)])
        number += size
    return frames


def whole(frames):
    """The data of frames of packets."""
    return [b"".join(one._data for one in frame) for frame in frames]


def take(buffer, packets):
    """What comes out of a buffer; of ours with all that comes at once."""
    taken = []
    for one in packets:
        _, frame = buffer.add(one)
        if frame:
            taken += [frame, *getattr(frame, "later", ())]
    return taken


def data(frames):
    return [frame.data for frame in frames]


def old():
    return JitterBuffer(capacity=CAPACITY, is_video=True)


def flat(frames):
    return [one for frame in frames for one in frame]


@pytest.mark.parametrize("number", [0, 65530, 65535])
@pytest.mark.parametrize("time", [0, 2**32 - 3000, 2**32 - 1])
def test_a_frame_is_there_with_its_last_packet(number, time):
    buffer, frames = FrameBuffer(), video([1, 3, 2, 1, 7, 1] * 5, number, time)
    for i, frame in enumerate(frames):
        for one in frame[:-1]:
            assert buffer.add(one) == (False, None)
        lost, got = buffer.add(frame[-1])
        assert (lost, got.data, got.timestamp) == (False, whole([frame])[0], frame[0].timestamp)
        assert got.after_gap == (i == 0) and not got.later
    assert not buffer._waiting


def test_a_long_video_wraps_often():
    frames = video([1 + i % 3 for i in range(100_000)], 60_000, 2**32 - 10**6, step=90_000)
    assert data(take(FrameBuffer(), flat(frames))) == whole(frames)


def test_without_markers_frames_come_as_they_did():
    frames = video([2, 1, 3, 1], marked=False)
    assert data(take(FrameBuffer(), flat(frames))) == data(take(old(), flat(frames))) == whole(frames[:-1])


def test_a_packet_that_comes_late_lets_all_that_waits_through():
    frames = video([1, 2, 1, 1])
    first, (head, tail), third, fourth = frames
    buffer = FrameBuffer()
    assert data(take(buffer, first)) == whole([first])
    assert not take(buffer, [tail, *third, *fourth])
    _, got = buffer.add(head)
    assert [got.data, *data(got.later)] == whole(frames[1:])
    assert got.timestamp == 3000 and [one.timestamp for one in got.later] == [3000, 6000]  # from the first one's


def test_time_stamps_of_what_waited_are_counted_over_the_wrap_and_backwards():
    frames = [[packet(i, time, b"%d" % i, 1)] for i, time in enumerate([2**32 - 100, 2**32 - 50, 20, 2**32 - 80])]
    buffer = FrameBuffer()
    take(buffer, frames[0])
    _, got = (take(buffer, flat(frames[2:])), buffer.add(frames[1][0]))[1]
    assert got.timestamp == 2**32 - 50 and [one.timestamp for one in got.later] == [70, -30]


def test_b_frames_come_in_the_order_of_sending():
    times = [0, 9000, 3000, 6000, 18000, 12000, 15000]
    frames = [[packet(2 * i, t, b"a%d" % i), packet(2 * i + 1, t, b"b%d" % i, 1)] for i, t in enumerate(times)]
    got = take(FrameBuffer(), flat(frames))
    assert data(got) == whole(frames) and [one.timestamp for one in got] == times


@pytest.mark.parametrize("sizes", [[1] * 20, [3, 200, 3, 3], [300, 1, 1], [2] * 300])
def test_what_comes_again_is_not_given_again(sizes):
    """Also packets far behind: an encoder's large frame may come once more in whole."""
    frames = video(sizes, number=65_000, time=2**32 - 6000)
    buffer, packets = FrameBuffer(), flat(frames)
    assert data(take(buffer, packets)) == whole(frames)
    assert not take(buffer, packets)
    more = video([2, 2], 65_000 + sum(sizes), 2**32 - 6000 + 3000 * len(sizes))
    got = take(buffer, flat(more))
    assert data(got) == whole(more) and not any(one.after_gap for one in got)


def test_padding_belongs_to_no_frame():
    a, b, c = [[packet(0, 0, b"a", 1)], [packet(3, 3000, b"b"), packet(4, 3000, b"c", 1)], [packet(7, 6000, b"d", 1)]]
    padding = [packet(1, 0), packet(2, 0, marker=1), packet(5, 3000), packet(6, 3000)]
    buffer = FrameBuffer()
    got = take(buffer, [*a, *padding[:2], *b, *padding[2:], *c])
    assert data(got) == [b"a", b"bc", b"d"] and not any(one.after_gap for one in got[1:])
    assert buffer._trust_marker
    inside = [packet(8, 9000, b"e"), packet(9, 9000), packet(10, 9000, b"f", 1)]
    assert data(take(buffer, inside)) == [b"ef"]


def test_a_sender_whose_markers_are_none_is_waited_for_as_before():
    """It sets one on each piece of a frame, as RFC 6184 warns: from the second piece on only time stamps end frames."""
    frames = [[packet(3 * i + j, 3000 * i, b"%d.%d" % (i, j), 1) for j in range(3)] for i in range(5)]
    got = take(FrameBuffer(), flat(frames))
    first, rest, *others = got
    assert first.data == b"0.0" and rest.data == b"0.10.2" and rest.after_gap  # no picture is made of the rest
    assert data(others) == whole(frames[1:4])


def test_two_frames_of_one_time():
    frames = [[packet(i, [0, 3000, 3000, 6000, 6000, 9000][i], b"%d" % i, 1)] for i in range(6)]
    got = take(FrameBuffer(), flat(frames))
    assert data(got) == [b"0", b"1", b"2", b"34"]  # at first each, then together, as before
    assert [one.after_gap for one in got] == [True, False, True, False]


def test_a_packet_that_never_comes_is_given_up_with_its_frame():
    frames = video([3] * 400)
    packets = flat(frames)
    buffer, lost, got = FrameBuffer(), [], []
    for one in packets[:4] + packets[5:]:  # the second frame's second packet
        pli, frame = buffer.add(one)
        lost.append(pli)
        got += [frame, *frame.later] if frame else []
    assert data(got) == [whole(frames)[0], packets[5]._data, *whole(frames[2:])]
    assert lost.count(True) == 1 and [i for i, one in enumerate(got) if one.after_gap] == [0, 1]


@pytest.mark.parametrize("missing", [0, 2])  # the first packet of a frame, or its last
@pytest.mark.parametrize("ahead", [CAPACITY, CAPACITY + 1, 2000, 30_000])
def test_after_a_long_gap_no_frame_is_torn_unnoticed(missing, ahead):
    buffer = FrameBuffer()
    before, after = video([3, 3]), video([3] * 20, 6 + ahead, 10**6)
    take(buffer, flat(before))
    packets = flat(after)
    got = take(buffer, packets[:missing] + packets[missing + 1 :] if missing == 0 else packets[missing:])
    torn = [one for one in got if one.data not in whole(after)]
    assert len(torn) == 1 and torn[0] is got[0] and torn[0].after_gap
    assert data(got[1:]) == whole(after[1:])


def test_a_sender_that_counts_anew_is_followed():
    buffer = FrameBuffer()
    for number, time, ssrc in [(30_000, 0, 1), (100, 10**6, 1), (50_000, 7, 2), (49_000, 3, 3)]:
        frames = video([2, 1, 4], number, time, ssrc=ssrc)
        got = take(buffer, flat(frames))
        assert data(got) == whole(frames) and [one.after_gap for one in got] == [True, False, False]


def travelled(frames, rng, loss, disorder, again):
    """Packets as a network delivers them: some late by up to so many others, some twice, lost ones sent anew or not."""
    arriving = []
    for i, one in enumerate(flat(frames)):
        at = i + (rng.uniform(1, disorder) if rng.random() < 0.2 else 0)
        if rng.random() < loss:
            if rng.random() < 0.1:
                continue  # for good
            at += rng.uniform(5, 60)
        arriving.append((at, one))
        if rng.random() < again:
            arriving.append((at + rng.uniform(0, 400), one))
    return [one for _, one in sorted(arriving, key=lambda pair: pair[0])]


@pytest.mark.parametrize("seed", range(60))
def test_whatever_the_network_does_frames_are_whole_in_order_and_once(seed):
    rng = random.Random(seed)
    loss, disorder, again = rng.choice([0, 0.02, 0.1]), rng.choice([1, 3, 30]), rng.choice([0, 0.05, 0.3])
    sizes = rng.choices([1, 2, 3, 10, 120], [8, 4, 2, 1, 0.2], k=1500)
    frames = video(sizes, rng.randrange(2**16), rng.randrange(2**32), marked=rng.random() < 0.8)
    packets, numbers = travelled(frames, rng, loss, disorder, again), {one: i for i, one in enumerate(whole(frames))}
    got = take(FrameBuffer(), packets)
    assert all(one.data in numbers or one.after_gap for one in got)  # the gate leaves out what is after a gap
    order = [numbers[one.data] for one in got if one.data in numbers]
    assert order == sorted(set(order))
    assert all(b - a == 1 or two.after_gap for (a, b, two) in zip(order, order[1:], got[1:], strict=False)) or loss
    before = {one for one in data(take(old(), packets)) if one in numbers}
    assert len(order) >= len(before)


@pytest.mark.parametrize("seed", range(5))
def test_a_flood_of_nonsense_is_bounded(seed):
    rng, buffer = random.Random(seed), FrameBuffer()
    number = time = 0
    for _ in range(20_000):
        number += rng.choice([1, 1, 1, 2, -3, 511, 512, 513, 32_767, 32_768, -100])
        time += rng.choice([0, 0, 1, -1, 2**31])
        one = packet(number, time, rng.choice([b"", b"."]), rng.random() < 0.1, ssrc=rng.random() < 0.999)
        buffer.add(one)
        assert len(buffer._waiting) <= CAPACITY
        assert all(buffer._next <= waiting < buffer._next + CAPACITY for waiting in buffer._waiting)


def test_a_part_of_a_key_frame_is_none():
    key = b"\x10\x02\x00\x9d\x01\x2a\x40\x00"
    assert begins_video("VP8", key) and not begins_video("vp8", key[1:]) and not begins_video("VP8", b"")
    start = b"\0\0\0\x01"
    for unit in (b"\x67\x42", b"\x09\x10", b"\x06\x05", b"\x68\xce", b"\x65\x88", b"\x41\x9a"):
        assert begins_video("H264", start + unit)
    for headless in (b"", start, start + b"\x65", start + b"\x65\x0b", b"\x65\x88" * 4):
        assert not begins_video("H264", headless)


VP8 = SimpleNamespace(name="VP8")
KEY, CHANGE, REST = b"\x10\x02\x00\x9d\x01\x2a", b"\x11\x02", b"\x10\x99\x98"


def test_after_a_gap_the_gate_waits_for_a_whole_key_frame():
    gate = Gate()
    gate.wanted = True
    gate.put((VP8, EncodedFrame(KEY, 100, True, [EncodedFrame(CHANGE, 50), EncodedFrame(CHANGE, -20)])))
    assert [gate.get_nowait()[1].timestamp for _ in range(3)] == [100, 150, 80] and gate.frames == 3
    gate.put((VP8, EncodedFrame(CHANGE, 200, after_gap=True)))
    gate.put((VP8, EncodedFrame(CHANGE, 250)))
    gate.put((VP8, EncodedFrame(REST, 300, after_gap=True)))  # the end of a frame, whose first bit says key frame
    assert gate.empty() and not gate.whole
    gate.put((VP8, EncodedFrame(KEY, 350, after_gap=True)))
    assert gate.whole and gate.get_nowait()[1].timestamp == 350


@pytest.fixture
def loopback(monkeypatch):
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])


def test_the_installed_aiortc_is_one_that_is_known():
    """Fails with a version whose frames would be a frame late again: then see what has changed in its receiver."""

    async def scene():
        connection = RTCPeerConnection()
        transceiver = connection.addTransceiver("video")
        held = vars(transceiver.receiver)
        assert type(held[BUFFER]) is JitterBuffer and held[BUFFER].capacity == CAPACITY
        one = Intake(transceiver, lambda frame: None)
        assert one._ends_frames and isinstance(held[BUFFER], FrameBuffer) and held[QUEUE] is one._gate
        one._make_buffer()
        assert isinstance(held[BUFFER], FrameBuffer)
        await connection.close()

    assert whole_frames._buffer_is_known()
    asyncio.run(scene())


class OtherBuffer(JitterBuffer):
    pass


class MoreMethods:
    def add(self, packet):
        return False, None

    def flush(self):
        pass


class OtherResult:
    """With the same names."""

    capacity = remove = smart_remove = None

    def __init__(self, capacity, is_video):
        pass

    def add(self, packet):
        return [packet]


@pytest.mark.parametrize("held", [{}, {BUFFER: object()}, {BUFFER: OtherBuffer(16)}, {BUFFER: old()}])
def test_with_another_aiortc_frames_come_as_they_did(held):
    """Its names are missing, or are of something else."""
    receiver = SimpleNamespace(**held)
    one = Intake(SimpleNamespace(receiver=receiver), lambda frame: None)
    assert (
        not one._ends_frames and vars(receiver).get(BUFFER) is held.get(BUFFER) and vars(receiver)[QUEUE] is one._gate
    )
    one._make_buffer()
    assert type(vars(receiver)[BUFFER]) is JitterBuffer


@pytest.mark.parametrize("changed", [MoreMethods, OtherResult])
def test_a_buffer_of_another_kind_is_left_alone(changed, monkeypatch):
    monkeypatch.setattr(whole_frames, "JitterBuffer", changed)
    assert not whole_frames._buffer_is_known.__wrapped__()


class Few(MediaStreamTrack):
    """So many grey frames, then a pause."""

    kind = "video"

    def __init__(self, count, fps):
        super().__init__()
        self._count, self._fps, self.sent = count, fps, []

    async def recv(self):
        await asyncio.sleep(1 / self._fps if len(self.sent) < self._count else 3600)
        frame = av.VideoFrame(64, 64, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes([50 + 20 * len(self.sent)]) * plane.buffer_size)
        frame.pts, frame.time_base = len(self.sent), Fraction(1, self._fps)
        self.sent.append(asyncio.get_running_loop().time())
        return frame


async def received(track, codec, seconds, anew=False):
    """When each frame that a real peer sends is taken; anew: with a buffer that is made anew on the way."""
    nothing = RTCConfiguration(iceServers=[])
    sender, receiver = RTCPeerConnection(nothing), RTCPeerConnection(nothing)
    taken, now = [], asyncio.get_running_loop().time
    one = Intake(receiver.addTransceiver("video", "recvonly"), lambda frame: taken.append(now()))
    receiver.on("track", one.follow)
    one.want(True)
    await join(sender, receiver, track, codec)
    end = now() + seconds
    while now() < end and len(taken) < track._count:
        if anew and len(taken) == 2:
            one._make_buffer()
            anew = False
        await asyncio.sleep(0.01)
    one.close()
    await asyncio.gather(sender.close(), receiver.close())
    return taken


@pytest.mark.parametrize("codec", ["VP8", "H264"])
def test_a_peers_last_frame_before_a_pause_is_taken(codec, loopback):
    track = Few(4, 4)
    taken = asyncio.run(received(track, codec, 8))
    late = [then - now for now, then in zip(track.sent, taken, strict=True)]
    assert sorted(late)[1] < 0.2  # one interval, 0.25 s, would be the next one's


def test_a_buffer_that_is_made_anew_ends_frames_too(loopback):
    """It asks for nothing here: what comes next is after a gap, and a key frame is asked for, and taken."""
    track = Few(12, 4)
    taken = asyncio.run(received(track, "VP8", 4, anew=True))
    assert 9 <= len(taken) <= 12 and taken[-1] - track.sent[-1] < 0.2
