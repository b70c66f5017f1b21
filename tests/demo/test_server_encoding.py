"""One encoder for all who watch a stream."""

import asyncio
import itertools
import time
import types
from fractions import Fraction

import av
import numpy as np
import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")

from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RTCP_PSFB_APP, RtcpPsfbPacket, pack_remb_fci

from longlive_optimized.demo.server import encoding
from longlive_optimized.demo.server.broadcast import to_yuv
from longlive_optimized.demo.server.encoding import SharedEncoder, ViewerTrack, is_key_frame
from longlive_optimized.demo.server.metrics import Metrics
from longlive_optimized.video_time import RTP_CLOCK
from support.event_loop import as_test
from support.painted import numbered, painted, read_number
from support.room import in_room, numbers, value
from support.server_peer import Viewer

HEIGHT, WIDTH, RATE = 64, 128, 1_000_000


def scene(codec: str = "VP8", depth: int = 100):
    """Run a test with an encoder, which is closed afterwards."""

    def decorate(test):
        async def run(**values):
            metrics = Metrics()
            encoder = SharedEncoder(codec, depth, RATE, metrics)
            try:
                await asyncio.wait_for(test(encoder, metrics, **values), 30)
            finally:
                encoder.close()

        return as_test(run, test, 2)

    return decorate


def show(encoder: SharedEncoder, *which: int) -> None:
    for number in which:
        encoder.show(to_yuv(numbered(number, HEIGHT, WIDTH, 90)), number * RTP_CLOCK // 25)


def joined(encoder: SharedEncoder, metrics: Metrics) -> ViewerTrack:
    track = ViewerTrack(metrics)
    encoder.join(track)
    return track


def decoded(packets: list, codec: str = "VP8") -> list[int]:
    """The numbers of the pictures in packets, as a viewer decodes them from the first on."""
    decoder = av.CodecContext.create({"VP8": "libvpx", "H264": "h264"}[codec], "r")
    frames = []
    for packet in packets:
        copy = av.Packet(bytes(packet))
        copy.pts, copy.time_base = packet.pts, packet.time_base
        frames += decoder.decode(copy)
    frames += decoder.decode(None)
    return [read_number(frame.to_ndarray(format="rgb24")) for frame in frames]


async def received(track: ViewerTrack, count: int) -> list:
    return [await track.recv() for _ in range(count)]


def counted(metrics: Metrics, name: str) -> float:
    return value(metrics.text().decode(), name)


@pytest.mark.parametrize("codec", ["VP8", "H264"])
def test_all_get_the_same_and_it_is_encoded_once(codec):
    @scene(codec)
    async def run(encoder, metrics):
        tracks = [joined(encoder, metrics) for _ in range(5)]
        show(encoder, *range(20))
        streams = await asyncio.gather(*(received(track, 20) for track in tracks))
        assert all(stream == streams[0] for stream in streams)  # the very same packets
        assert decoded(streams[0], codec) == [*range(20)]
        assert [packet.pts * packet.time_base for packet in streams[0]] == [Fraction(i, 25) for i in range(20)]
        assert is_key_frame(codec, bytes(streams[0][0])) and not is_key_frame(codec, bytes(streams[0][1]))
        assert counted(metrics, "longlive_frames_encoded_total") == 20
        assert counted(metrics, "longlive_frames_sent_total") == 100

    run()


@pytest.mark.parametrize("codec", ["VP8", "H264"])
def test_who_joins_late_begins_with_a_key_frame(codec, monkeypatch):
    monkeypatch.setattr(encoding, "KEY_SECONDS", 0.0)

    @scene(codec)
    async def run(encoder, metrics):
        first = joined(encoder, metrics)
        show(encoder, *range(10))
        await received(first, 10)
        late = joined(encoder, metrics)
        show(encoder, *range(10, 20))
        assert decoded(await received(late, 10), codec) == [*range(10, 20)]

    run()


@scene()
async def test_key_frames_are_not_made_in_a_rush(encoder, metrics):
    """Whoever asks for them, however often; each wish is fulfilled in the end."""
    track = joined(encoder, metrics)
    began, keys = time.monotonic(), []
    for i in itertools.count():
        if time.monotonic() - began > 1.6:
            break
        track.ask_for_key()
        show(encoder, i)
        if is_key_frame("VP8", bytes(await track.recv())):
            keys.append(time.monotonic())
        await asyncio.sleep(0.01)
    assert 3 <= len(keys) <= 4 and min(b - a for a, b in itertools.pairwise(keys)) > 0.8 * encoding.KEY_SECONDS


@scene()
async def test_one_who_does_not_take_what_is_sent_costs_the_others_nothing(encoder, metrics):
    slow, other = joined(encoder, metrics), joined(encoder, metrics)
    count, seen = encoding.MOST_UNSENT + 5, []
    for i in range(count):
        show(encoder, i)
        seen.append(await other.recv())
    assert decoded(seen) == [*range(count)]
    assert len(slow._waiting) <= encoding.MOST_UNSENT
    assert counted(metrics, 'longlive_frames_dropped_total{reason="viewer lags"}') == encoding.MOST_UNSENT + 1
    encoder._key_at = float("-inf")  # the next key frame may come
    show(encoder, *range(count, count + 5))
    assert decoded(await received(slow, 5)) == [*range(count, count + 5)]


@scene(depth=3)
async def test_an_encoder_that_lags_takes_the_newest(encoder, metrics):
    track = joined(encoder, metrics)
    show(encoder, *range(10))
    assert decoded(await received(track, 3)) == [7, 8, 9]
    assert counted(metrics, 'longlive_frames_dropped_total{reason="encoder lags"}') == 7


@scene()
async def test_an_encoder_that_fails_is_replaced(encoder, metrics):
    track = joined(encoder, metrics)
    show(encoder, 0, 1)
    await received(track, 2)
    encoder._encoder.encode = lambda frame, force: 1 / 0
    show(encoder, 2)
    await asyncio.sleep(0.1)
    show(encoder, 3, 4)
    packets = await received(track, 2)
    assert decoded(packets) == [3, 4] and is_key_frame("VP8", bytes(packets[0]))


def told(track: ViewerTrack, rate: int, source: int = 7) -> None:
    """A viewer's feedback, as aiortc's transport hands it on."""

    async def handle(packet) -> None:
        pass

    sender = types.SimpleNamespace(_handle_rtcp_packet=handle, _ssrc=7)
    track.follow(sender)
    packet = RtcpPsfbPacket(RTCP_PSFB_APP, 1, 0, pack_remb_fci(rate, [source]))
    asyncio.run_coroutine_threadsafe(sender._handle_rtcp_packet(packet), asyncio.get_running_loop())


async def rate_after(encoder: SharedEncoder) -> int:
    await asyncio.sleep(0.01)
    encoder._rate_at = float("-inf")
    show(encoder, next(NUMBERS))
    await asyncio.sleep(0.1)
    return encoder._encoder.target_bitrate


NUMBERS = itertools.count(1)


def test_the_rate_is_the_slowest_ones(monkeypatch):
    monkeypatch.setattr(encoding, "FLOOR", 0.3)

    @scene()
    async def run(encoder, metrics):
        encoding.allow_bitrate(RATE)
        track = joined(encoder, metrics)
        assert await rate_after(encoder) == RATE
        told(track, 700_000)
        assert await rate_after(encoder) == pytest.approx(700_000, rel=0.01)
        told(track, 10 * RATE)
        assert await rate_after(encoder) == RATE
        told(track, 260_000)  # alone, a viewer has what they can take
        assert await rate_after(encoder) == pytest.approx(260_000, rel=0.01)
        told(track, 900_000)
        other = joined(encoder, metrics)
        told(other, 100_000)  # browsers begin low
        assert await rate_after(encoder) == RATE  # neither counts before they have settled
        track._joined -= 60
        assert await rate_after(encoder) == pytest.approx(900_000, rel=0.01)
        other._joined -= 60
        assert await rate_after(encoder) == pytest.approx(300_000, rel=0.01)  # one does not spoil it for all
        told(other, 500_000, source=8)  # of another source
        assert await rate_after(encoder) == pytest.approx(300_000, rel=0.01)
        encoder.leave(other)
        assert await rate_after(encoder) == pytest.approx(900_000, rel=0.01)

    run()


def test_a_track_that_ends_is_waited_for_no_longer():
    async def run():
        track = ViewerTrack(Metrics())
        waiting = asyncio.create_task(track.recv())
        await asyncio.sleep(0.01)
        track.stop()
        with pytest.raises(MediaStreamError):
            await waiting

    asyncio.run(run())


@in_room()
async def test_many_viewers_and_one_encoder(room, http):
    viewers = [await Viewer(http).join() for _ in range(5)]
    seen = await asyncio.gather(*(numbers(viewer, 50) for viewer in viewers))
    assert all(one == [*range(one[0], one[0] + 50)] for one in seen)
    figures = (await http.get("/metrics")).text
    encoded, sent = (value(figures, f"longlive_frames_{name}_total") for name in ("encoded", "sent"))
    assert sent > 4 * 50 and encoded < sent / 2 and list(room._broadcast._encoders) == ["VP8"]
    await asyncio.gather(*(viewer.leave() for viewer in viewers))
    while room._peers:
        await asyncio.sleep(0.02)
    assert not room._broadcast._encoders


@in_room()
async def test_viewers_of_different_codecs(room, http):
    one = await Viewer(http).join()
    two = await Viewer(http).join(rewrite=lambda sdp: sdp.replace("VP8", "AV1"))
    seen = await asyncio.gather(numbers(one, 40), numbers(two, 40))
    assert sorted(room._broadcast._encoders) == ["H264", "VP8"]
    assert all(each == sorted(each) for each in seen) and set(seen[0]) & set(seen[1])
    await asyncio.gather(one.leave(), two.leave())


@in_room(painted(0.02))
async def test_a_viewer_who_asks_for_a_key_frame_gets_one(room, http):
    viewer = await Viewer(http).join()
    await numbers(viewer, 10)
    (encoder,) = room._broadcast._encoders.values()
    before = encoder._key_at
    receiver = viewer.connection.getTransceivers()[0].receiver
    await asyncio.sleep(encoding.KEY_SECONDS)
    for source in receiver.getSynchronizationSources():
        await receiver._send_rtcp_pli(source.source)
    for _ in range(100):
        if encoder._key_at > before:
            break
        await asyncio.sleep(0.02)
    assert encoder._key_at > before
    await viewer.leave()


def test_what_is_a_key_frame():
    assert is_key_frame("VP8", b"\x00") and not is_key_frame("VP8", b"\x01") and not is_key_frame("VP8", b"")
    assert is_key_frame("H264", b"\x00\x00\x00\x01\x67ab\x00\x00\x01\x65") and not is_key_frame(
        "H264", b"\x00\x00\x01\x41"
    )
    assert np.array_equal(to_yuv(np.zeros((32, 32, 3), np.uint8))[:32], np.full((32, 32), 16, np.uint8))


@scene("H264")
async def test_more_pictures_a_second_than_the_encoder_counts_on_take_no_more_bits(encoder, metrics):
    """aiortc's H.264 encoder shares its bits among 30 pictures a second, whatever their time stamps say."""
    encoding.allow_bitrate(RATE)  # in this process, whatever servers it had before
    joined(encoder, metrics)
    for fps, wanted in ((16.0, RATE), (60.0, RATE // 2), (30.0, RATE)):
        encoder.fps, encoder._rate_at = fps, float("-inf")
        encoder._follow_rates(0.0)
        assert encoder._encoder.target_bitrate == wanted
