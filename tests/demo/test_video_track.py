"""The track's time stamps, whatever the engine's pace, and what is made of them."""

import asyncio
import itertools
import statistics
import time

import pytest
import torch

aiortc = pytest.importorskip("aiortc")

import aioice.ice  # noqa: E402
import av  # noqa: E402
from aiortc.contrib.media import MediaRecorder  # noqa: E402

from longlive_optimized.demo.scope_integration import OptimizedScopePipeline, ScopeOptimizationConfig  # noqa: E402
from longlive_optimized.demo.video_track import PipelineVideoTrack  # noqa: E402
from longlive_optimized.video_time import RTP_CLOCK  # noqa: E402
from support import mp4  # noqa: E402


class Still(OptimizedScopePipeline):
    """A pipeline of grey pictures, of which each block of twelve takes ``seconds``."""

    overlay = None

    scene = 0

    def __init__(self, seconds: float = 0.0, **fields):
        self.config = ScopeOptimizationConfig(height=32, width=48, **fields)
        self._seconds, self._frames, self.asked = seconds, itertools.count(), set()

    def switch_prompt(self, prompt: str) -> None:
        """Nothing is to be seen of it."""

    def next_frame(self, fps: float | None = None) -> torch.Tensor:
        self.asked.add(fps)
        if next(self._frames) % 12 == 0:
            time.sleep(self._seconds)
        return torch.full((3, 32, 48), 0.5)


async def watch(track: PipelineVideoTrack, seconds: float) -> list[tuple[float, float]]:
    """Time stamps and arrivals, both in seconds from the first."""
    seen, began = [], None
    while began is None or time.monotonic() - began < seconds:
        frame = await track.recv()
        began = began or time.monotonic()
        seen.append((frame.pts / RTP_CLOCK, time.monotonic() - began))
    return seen


@pytest.mark.parametrize("pipeline", ["tiny", None, ScopeOptimizationConfig(height=32, width=48)])
def test_what_is_no_pipeline_is_named(pipeline):
    with pytest.raises(TypeError, match="pipeline must be an OptimizedScopePipeline, got"):
        PipelineVideoTrack(pipeline, "a fox")


@pytest.mark.parametrize(
    ("seconds", "speed", "preset"),
    [(0.0, 1, "ultra"), (0.3, 1, "quality_stream"), (0.48, 25 / 16, "turbo"), (1.5, 1, "balanced"), (0.0, 4, "ultra")],
)
def test_times_are_of_the_wall_clock(seconds, speed, preset):
    """16 frames a second times the speed, whatever the preset's target_fps; that is what lag is told by, too."""
    fields = {**ScopeOptimizationConfig.preset_fields(preset), "playback_speed": speed}
    track = PipelineVideoTrack(still := Still(seconds, **fields), "a fox")
    frame = 1 / (16 * speed)
    seen = asyncio.run(watch(track, 1.2 + 1.2 * seconds))  # a block and a half
    track.stop()
    assert seen[0][0] == 0 and all(abs(stamp - arrival) < 0.2 for stamp, arrival in seen)
    gaps = [after - before for (before, _), (after, _) in itertools.pairwise(seen)]
    assert min(gaps) > frame - 1e-4
    assert statistics.median(gaps) == pytest.approx(frame, abs=2e-5)
    assert still.asked == {16 * speed}


def test_a_track_that_nobody_read_for_a_while_is_not_in_a_rush():
    async def scene():
        track = PipelineVideoTrack(Still(), "a fox")
        before = await watch(track, 0.2)
        await asyncio.sleep(1)
        after = await watch(track, 0.5)
        track.stop()
        return before, after

    before, after = asyncio.run(scene())
    assert after[0][0] - before[-1][0] > 0.9 and len(after) < 11


class Counted(Still):
    """Each frame is one level brighter; the fifth begins a new scene."""

    def next_frame(self, fps: float | None = None) -> torch.Tensor:
        number = next(self._frames)
        self.scene = int(number >= 5)
        return torch.full((3, 32, 48), (10 * number) / 255)


@pytest.mark.parametrize(("speed", "fps"), [(1, 48), (1, 24), (0.5, 60), (4, 30)])
def test_interpolation_shows_what_lies_between_one_frame_late(speed, fps):
    """At its own rate of pictures, at the world's own speed; and not across a cut."""

    async def scene():
        wish = {"playback_speed": speed, "interpolation": "blend", "shown_fps": fps}
        track = PipelineVideoTrack(Counted(**wish), "a fox")
        frames = [await track.recv() for _ in range(round(10 / (16 * speed) * fps))]
        track.stop()
        return [(frame.pts / RTP_CLOCK, frame.to_ndarray(format="rgb24").mean()) for frame in frames]

    seen = asyncio.run(scene())
    gaps = [after - before for (before, _), (after, _) in itertools.pairwise(seen)]
    assert statistics.median(gaps) == pytest.approx(1 / fps, abs=3e-5)
    for at, level in seen:
        number = at * 16 * speed - 1  # what is due, less one frame
        wanted = 50 if 4 <= number <= 5 else 10 * max(0, number)
        if level < 80 and abs(number - 4) > 0.01:  # greys are exact; times are off where this machine is late
            assert level == pytest.approx(wanted, abs=2.5 + 10 * 16 * speed * 0.02)
    assert all(not 40.5 < level < 49.5 for _, level in seen)


def test_a_change_of_interpolation_while_it_is_shown():
    async def scene():
        track = PipelineVideoTrack(still := Still(), "a fox")
        times = []
        for fields in (
            {},
            {"interpolation": "blend", "shown_fps": 60},
            {"playback_speed": 2.0},
            {"interpolation": "none"},
        ):
            still.config = still.config.changed(**fields)
            times.append([(await track.recv()).pts / RTP_CLOCK for _ in range(12)])
        track.stop()
        return times

    times = asyncio.run(scene())
    rates = [1 / statistics.median(b - a for a, b in itertools.pairwise(some[4:])) for some in times]
    assert rates == pytest.approx([16, 60, 60, 32], rel=0.01)
    together = [at for some in times for at in some]
    assert together == sorted(together) and len({*together}) == len(together)


def test_times_go_on_with_the_next_track_and_begin_anew_with_the_first():
    async def scene():
        one, two = PipelineVideoTrack(Still(), "a fox"), PipelineVideoTrack(Still(), "a fox")
        assert (await one.recv()).pts == 0
        two.stop()
        last = (await watch(one, 0.5))[-1][0]
        three = PipelineVideoTrack(Still(), "a boat")
        assert (await three.recv()).pts / RTP_CLOCK > last
        one.stop()
        three.stop()
        four = PipelineVideoTrack(Still(), "a boat")
        assert (await four.recv()).pts == 0
        four.stop()

    asyncio.run(scene())


@pytest.mark.parametrize("codec", ["VP8", "H264"])
def test_a_track_takes_the_place_of_another(codec, monkeypatch):
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])

    async def scene():
        nothing = aiortc.RTCConfiguration(iceServers=[])
        sender, viewer = aiortc.RTCPeerConnection(nothing), aiortc.RTCPeerConnection(nothing)
        arrived = asyncio.get_running_loop().create_future()
        viewer.on("track", arrived.set_result)
        tracks = [PipelineVideoTrack(Still(0.1), "a fox")]
        transceiver = sender.addTransceiver(tracks[0], direction="sendonly")
        known = aiortc.RTCRtpSender.getCapabilities("video").codecs
        transceiver.setCodecPreferences([one for one in known if one.name == codec])
        await sender.setLocalDescription(await sender.createOffer())
        await viewer.setRemoteDescription(sender.localDescription)
        await viewer.setLocalDescription(await viewer.createAnswer())
        await sender.setRemoteDescription(viewer.localDescription)
        track, stamps = await asyncio.wait_for(arrived, 10), []
        for seconds in (0.5, 0.1, 0.1):
            stamps += [(await asyncio.wait_for(track.recv(), 10)).pts for _ in range(15)]
            await asyncio.sleep(seconds)
            tracks.append(PipelineVideoTrack(Still(0.1), "a boat"))
            transceiver.sender.replaceTrack(tracks[-1])
            tracks[-2].stop()
            # A change of bandwidth gives aiortc a new encoder, which takes no time before its first.
            transceiver.sender._RTCRtpSender__encoder.target_bitrate += 200_000
        stamps += [(await asyncio.wait_for(track.recv(), 10)).pts for _ in range(15)]
        tracks[-1].stop()
        await asyncio.gather(sender.close(), viewer.close())
        assert stamps == sorted(stamps) and len(set(stamps)) == 60

    asyncio.run(scene())


@pytest.mark.parametrize(("ending", "fps"), [("mp4", 16), ("mp4", 24), ("mp4", 30), ("mkv", 24), ("webm", 30)])
def test_a_recorder_of_aiortcs_gets_the_times_right(ending, fps, tmp_path):
    """To 1/30 of a second, which is all that it keeps."""
    path = tmp_path / f"a.{ending}"

    async def scene():
        wish = {} if fps == 16 else {"interpolation": "blend", "shown_fps": fps}
        track = PipelineVideoTrack(Still(0.5, **wish), "a fox")
        stamps, receive = [], track.recv

        async def recv():
            frame = await receive()
            stamps.append(frame.pts / RTP_CLOCK)
            return frame

        track.recv = recv
        recorder = MediaRecorder(str(path))
        recorder.addTrack(track)
        await recorder.start()
        async with asyncio.timeout(30):
            while len(stamps) < 25:
                await asyncio.sleep(0.05)
        await recorder.stop()
        track.stop()
        return stamps

    stamps = asyncio.run(scene())
    with av.open(str(path)) as video:
        times = [frame.time for frame in video.decode(video=0)]
    assert len(times) in (len(stamps), len(stamps) - 1) and len(times) > 20
    assert times == pytest.approx(stamps[: len(times)], abs=0.5 / 30 + 0.002)
    if ending == "mp4":
        assert mp4.times(path.read_bytes()) == pytest.approx(times, abs=0.001)
