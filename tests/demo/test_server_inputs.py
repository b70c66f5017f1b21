"""What viewers send: frames over WebRTC and pictures, up to the blocks that are made of them."""

import asyncio
import itertools
import queue
import types

import av
import numpy as np
import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")

from aiortc.jitterbuffer import JitterBuffer
from aiortc.rtp import RtcpByePacket

from longlive_optimized import Control
from longlive_optimized.demo.scope_integration import ScopeOptimizationConfig
from longlive_optimized.demo.server import app, inputs, intake
from longlive_optimized.demo.server.inputs import MOST_WAITING, Inputs
from longlive_optimized.demo.server.metrics import Metrics
from longlive_optimized.demo.server.source import EngineSource
from longlive_optimized.weights.random_checkpoint import make_checkpoint
from support.clips import encoded, random_picture
from support.painted import numbered, painted, read_number
from support.room import in_room, numbers, value
from support.sent import Sent
from support.server_peer import Viewer

SIZE = 64, 128


def frame(number: int, height: int = 64, width: int = 128) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(numbered(number, height, width, 90), format="rgb24")


class Held:
    """Inputs whose every frame is scaled before the test goes on; with its dropped frames by reason."""

    def __init__(self, use="video"):
        self.metrics = Metrics()
        self.inputs = Inputs(self.metrics)
        self.inputs.size = SIZE
        if use:
            self.inputs.start(use, "viewer 1")

    def offer(self, *frames):
        for one in frames:
            self.inputs.offer(one)
            self.inputs._thread.submit(int).result()

    def dropped(self, reason):
        return self.metrics.dropped.labels(reason)._value.get()


def seen(pictures) -> list[int]:
    return [read_number(np.asarray(picture)) for picture in pictures]


def test_a_block_takes_what_came_since_the_one_before():
    held = Held()
    assert held.inputs.of_block(False) == {}  # nothing is waited for
    held.offer(*map(frame, range(5)))
    first = held.inputs.of_block(False)
    assert seen(first["video"]) == [*range(5)] and first["noise_scale"] == 0.5 and "control" not in first
    held.offer(frame(5), frame(6))
    assert seen(held.inputs.of_block(False)["video"]) == [5, 6]
    assert held.metrics.came._value.get() == 7


def test_what_is_too_much_makes_way_for_the_newest():
    held = Held()
    held.offer(*map(frame, range(MOST_WAITING + 10)))
    assert seen(held.inputs.of_block(False)["video"]) == [*range(10, MOST_WAITING + 10)]
    assert held.dropped("input lags") == 10


def test_what_comes_faster_than_it_is_scaled_is_dropped(monkeypatch):
    held = Held()
    gate = queue.Queue()
    monkeypatch.setattr(inputs, "cover", lambda frame, *size: gate.get(timeout=20))
    for i in range(10):
        held.inputs.offer(frame(i))
    assert held.dropped("input lags") == 10 - inputs.MOST_UNSCALED
    for _ in range(inputs.MOST_UNSCALED):
        gate.put(np.zeros((*SIZE, 3), np.uint8))
    held.inputs._thread.submit(int).result()
    assert len(held.inputs.of_block(False)["video"]) == inputs.MOST_UNSCALED


def test_the_last_frame_stands_for_a_while_and_then_the_prompt_alone(monkeypatch):
    held, now = Held(), 100.0
    monkeypatch.setattr(inputs, "time", types.SimpleNamespace(monotonic=lambda: now))
    held.offer(frame(1), frame(2))
    held.inputs.of_block(False)
    now += inputs.HOLD - 0.01
    assert seen(held.inputs.of_block(False)["video"]) == [2] and held.inputs.state()["receiving"]
    now += 0.02
    assert held.inputs.of_block(False) == {} and not held.inputs.state()["receiving"]
    held.offer(frame(3))
    assert seen(held.inputs.of_block(False)["video"]) == [3]


def test_what_is_left_of_another_viewer_is_forgotten(monkeypatch):
    held = Held()
    held.offer(frame(1))
    held.inputs.start("video", "viewer 2")
    assert held.inputs.of_block(False) == {} and held.inputs.state()["by"] == "viewer 2"
    gate = queue.Queue()
    monkeypatch.setattr(inputs, "cover", lambda frame, *size: gate.get(timeout=20))
    held.inputs.offer(frame(2))  # is still being scaled ...
    held.inputs.start("video", "viewer 3")
    gate.put(np.zeros((*SIZE, 3), np.uint8))
    held.inputs._thread.submit(int).result()
    assert held.inputs.of_block(False) == {}  # ... when it is no longer wanted
    held.inputs.stop()
    assert held.inputs.state()["use"] is None


def test_another_use_goes_on_with_the_frames():
    held = Held()
    held.offer(frame(1))
    held.inputs.start("control", "viewer 1")
    held.inputs.control_scale = 0.5
    asked = held.inputs.of_block(False)
    assert list(asked) == ["control"] and isinstance(asked["control"], Control) and asked["control"].scale == 0.5
    assert seen(asked["control"].frames) == [1]


def test_frames_of_other_sizes_are_cut_to_fit():
    held = Held()
    large = np.zeros((256, 256, 3), np.uint8)
    large[64:192] = numbered(9, 64, 128, 90).repeat(2, 0).repeat(2, 1)
    held.offer(av.VideoFrame.from_ndarray(large, format="rgb24"))
    assert seen(held.inputs.of_block(False)["video"]) == [9]
    held.offer(frame(1, 1096, 1920), frame(2, 64, 16 * 64))
    assert seen(held.inputs.of_block(False)["video"]) == [9]  # the last good one
    assert held.dropped("input too large") == 2


def test_pictures_go_with_the_blocks_that_want_them():
    held = Held(use=None)
    cat, dog = random_picture(*SIZE, 1), random_picture(*SIZE, 2)
    held.inputs.set_picture("reference", cat)
    held.inputs.set_picture("first_frame", dog)
    begun, later = held.inputs.of_block(True)["control"], held.inputs.of_block(False)["control"]
    assert np.array_equal(begun.first_frame, dog) and later.first_frame is None
    assert np.array_equal(begun.references[0], cat) and np.array_equal(later.references[0], cat)
    assert held.inputs.state()["pictures"] == ["first_frame", "reference"]
    held.inputs.set_picture("reference", None)
    held.inputs.set_picture("reference", None)
    assert held.inputs.of_block(False) == {} and held.inputs.of_block(True)["control"].references is None


VP8, H264 = types.SimpleNamespace(name="VP8"), types.SimpleNamespace(name="H264")


def whole(codec=VP8):
    """An encoded frame that needs no other."""
    return codec, types.SimpleNamespace(data=b"\x10\x02" if codec is VP8 else b"\0\0\0\x01\x67\x42\0\0\0\x01\x65\x88")


def change(codec=VP8):
    return codec, types.SimpleNamespace(data=b"\x11\x02" if codec is VP8 else b"\0\0\0\x01\x41\x9a")


@pytest.mark.parametrize("codec", [VP8, H264])
def test_a_decoder_gets_what_is_wanted_from_a_key_frame_on(codec):
    gate = intake.Gate()
    gate.put(whole(codec))
    assert gate.empty() and not gate.whole  # nobody wants it
    gate.wanted = True
    gate.put(change(codec))
    assert gate.empty() and not gate.whole
    for frame in (first := [whole(codec), change(codec), whole(codec)]):
        gate.put(frame)
    assert gate.whole and [gate.get_nowait() for _ in first] == first


def test_a_decoder_never_lags_far():
    gate = intake.Gate()
    gate.wanted = True
    gate.put(whole())
    for _ in range(intake.MOST_UNDECODED + 5):
        gate.put(change())
    assert gate.qsize() == intake.MOST_UNDECODED and not gate.whole
    gate.get_nowait()
    gate.put(change())
    assert gate.qsize() == intake.MOST_UNDECODED - 1  # it refers to what was left out
    gate.put(whole())
    assert gate.qsize() == intake.MOST_UNDECODED and gate.whole
    gate.put(None)  # the end comes through, and stays
    gate.drop()
    assert gate.get_nowait() is None and gate.empty() and not gate.whole


def test_key_frames_are_asked_for_and_frames_taken_while_wanted(monkeypatch):
    monkeypatch.setattr(intake, "LOOK_SECONDS", 0.02)
    asked = []

    async def send_pli(source):
        asked.append(source)

    sources = [types.SimpleNamespace(source=7, timestamp=0)]
    receiver = types.SimpleNamespace(getSynchronizationSources=lambda: sources, _send_rtcp_pli=send_pli)

    async def scene():
        took, track = [], asyncio.Queue()
        one = intake.Intake(types.SimpleNamespace(receiver=receiver, currentDirection="sendrecv"), took.append)
        gate = vars(receiver)["_RTCRtpReceiver__decoder_queue"]
        assert one.possible and not one.wanted
        one.follow(types.SimpleNamespace(recv=track.get))
        await track.put(frame(0))
        await asyncio.sleep(0.05)
        assert not took and not asked and track.empty()
        one.want(True)
        await asyncio.sleep(0.1)
        assert set(asked) == {7}
        gate.put(whole())
        await asyncio.sleep(0.05)
        count = len(asked)
        await track.put(frame(1))
        await asyncio.sleep(0.1)
        assert len(took) == 1 and len(asked) == count
        one.close()
        assert gate.empty()
        await track.put(frame(2))
        await asyncio.sleep(0.05)
        assert len(took) == 1 and len(asked) == count

    asyncio.run(scene())


def test_a_lost_packet_does_not_hold_up_the_rest(monkeypatch):
    """Packets come and no frame: aiortc waits for one that will not come."""
    monkeypatch.setattr(intake, "LOOK_SECONDS", 0.02)
    asked, now = [], itertools.count()

    async def send_pli(source):
        asked.append(source)

    def sources():
        return [types.SimpleNamespace(source=7, timestamp=next(now) if arriving else 0)]

    receiver = types.SimpleNamespace(getSynchronizationSources=sources, _send_rtcp_pli=send_pli)

    def buffer():
        return vars(receiver)["_RTCRtpReceiver__jitter_buffer"]

    async def scene():
        nonlocal arriving
        one = intake.Intake(types.SimpleNamespace(receiver=receiver), lambda frame: None)
        gate = vars(receiver)["_RTCRtpReceiver__decoder_queue"]
        stale = vars(receiver)["_RTCRtpReceiver__jitter_buffer"] = object()
        one.want(True)
        for _ in range(10):  # frames come
            gate.put(whole())
            await asyncio.sleep(0.03)
        arriving = False
        await asyncio.sleep(0.3)  # nothing comes
        assert buffer() is stale and gate.whole and not asked
        arriving = True
        await asyncio.sleep(0.3)
        assert isinstance(buffer(), JitterBuffer) and not gate.whole and asked
        one.close()
        await asyncio.sleep(0)

    arriving = True
    asyncio.run(scene())


def test_aiortc_decodes_through_the_gate():
    """Of the installed version: the name that is no public one."""
    from aiortc import RTCPeerConnection

    async def scene():
        connection = RTCPeerConnection()
        receiver = connection.addTransceiver("video").receiver
        assert isinstance(vars(receiver)["_RTCRtpReceiver__decoder_queue"], queue.Queue)
        assert isinstance(vars(receiver)["_RTCRtpReceiver__jitter_buffer"], JitterBuffer)
        await connection.close()

    asyncio.run(scene())


async def until(wanted, seconds=20):
    for _ in range(round(seconds / 0.02)):
        if found := wanted():
            return found
        await asyncio.sleep(0.02)
    raise AssertionError("waited in vain")


def videos(room) -> list[list[int]]:
    """The numbers of the frames that blocks were made from."""
    return [seen(source["video"]) for source in room.feed.pipeline.sources if "video" in source]


@in_room(painted(0.05, control=True))
async def test_a_peers_video_is_what_blocks_are_made_from(room, http):
    viewer = await Viewer(http, sends=(track := Sent(fps=25))).join()
    assert viewer.hello["inputs"] == ["video", "control"] and viewer.hello["pictures"] == ["reference", "first_frame"]
    before = await numbers(viewer, 30)
    assert not any(room.feed.pipeline.sources)  # nobody asked for it
    assert (await viewer.ask("set_input", use="video"))["type"] == "done"
    state = await viewer.wait_for(lambda m: m["type"] == "state" and m["input"]["receiving"])
    assert state["input"]["use"] == "video" and state["input"]["by"] == viewer.hello["you"]
    during = await numbers(viewer, 100)
    blocks = videos(room)
    came = [number for block in blocks for number in block]
    assert len(blocks) >= 5 and came == sorted(came)  # in order
    assert len(set(came)) >= 0.8 * (max(came) - min(came) + 1)  # and nearly all
    assert track.sent - came[-1] < 2 * MOST_WAITING  # and none is old
    assert [a - b for a, b in zip((before + during)[1:], before + during, strict=False)] == [1] * 129  # no stall
    assert (await http.get("/status")).json()["input"] | {"receiving": True} == {
        **{"use": "video", "by": viewer.hello["you"], "receiving": True, "pictures": []},
        **{"noise_scale": 0.5, "control_scale": 1.0},
    }

    await viewer.ask("set_strength", noise_scale=0.3, control_scale=0.7)
    await viewer.ask("set_input", use="control")
    source = await until(lambda: next((s for s in room.feed.pipeline.sources if "control" in s), None))
    assert "video" not in source and source["control"].scale == 0.7
    await viewer.ask("set_input", use=None)
    blocks = len(room.feed.pipeline.sources)
    await until(lambda: len(room.feed.pipeline.sources) >= blocks + 3)
    assert not any(room.feed.pipeline.sources[blocks + 1 :])
    assert value((await http.get("/metrics")).text, "longlive_input_frames_total") >= 50
    await viewer.leave()


@in_room(painted(0.05), codec="h264")
async def test_input_comes_in_the_codec_that_goes_out(room, http):
    viewer = await Viewer(http, sends=Sent(fps=25)).join()
    await viewer.ask("set_input", use="video")
    await until(lambda: len(videos(room)) >= 5)
    came = [number for block in videos(room) for number in block]
    assert came == sorted(came) and len(set(came)) >= 20
    await viewer.leave()


@in_room(painted(0.05))
async def test_the_last_wish_holds_and_a_sender_who_leaves_ends_it(room, http):
    one, other = [await Viewer(http, sends=Sent(lambda i, n=n: numbered(n, 64, 128, 90))).join() for n in (1, 2)]
    await one.ask("set_input", use="video")
    await until(lambda: [1] in [sorted(set(block)) for block in videos(room)])
    await other.ask("set_input", use="video")
    await until(lambda: [2] in [sorted(set(block)) for block in videos(room)])
    assert (await one.wait_for(lambda m: m["type"] == "state" and m["by"] == other.hello["you"]))["input"]["use"]
    sending = {peer.name: peer.intake.wanted for peer in room._peers}
    assert sending == {one.hello["you"]: False, other.hello["you"]: True}  # nothing else is decoded
    blocks = videos(room)
    turn = blocks.index(next(block for block in blocks if 2 in block))
    assert all(set(block) == {1} for block in blocks[:turn]) and all(set(block) == {2} for block in blocks[turn:])
    await one.ask("set_overlay", enabled=True)  # still there
    await other.leave()
    await one.wait_for(lambda m: m["type"] == "state" and m["input"]["use"] is None and m["viewers"] == 1)
    assert room.inputs.of_block(False) == {}
    await one.ask("set_input", use="video")  # and again
    blocks = len(videos(room))
    await until(lambda: len(videos(room)) > blocks)
    assert set(videos(room)[-1]) == {1}
    await one.leave()


@in_room(painted(0.05))
async def test_input_goes_off_and_on_again_and_again(room, http):
    """While the viewer goes on sending, as any client but the page might."""
    viewer = await Viewer(http, sends=Sent(fps=25)).join()
    for _ in range(6):
        await viewer.ask("set_input", use="video")
        before = len(videos(room))
        await until(lambda before=before: len(videos(room)) >= before + 2, 5)
        await viewer.ask("set_input", use=None)
        await until(lambda: not room.feed.pipeline.sources[-1])
    came = [number for block in videos(room) for number in block]
    assert came == sorted(came)
    await viewer.leave()


@in_room(painted(0.05))
async def test_a_goodbye_is_not_the_end(room, http):
    """Browsers send RTCP BYE when they set up their encoder anew."""
    viewer = await Viewer(http, sends=Sent(fps=25)).join()
    await viewer.ask("set_input", use="video")
    await until(lambda: videos(room))
    sender = viewer.connection.getSenders()[0]
    await sender._send_rtcp([RtcpByePacket(sources=[sender._ssrc])])
    last = videos(room)[-1][-1]
    await until(lambda: videos(room)[-1][-1] >= last + 50)
    await viewer.leave()


@in_room(painted(0.05))
async def test_frames_that_stop_coming_stall_nothing(room, http):
    viewer = await Viewer(http, sends=(track := Sent())).join()
    await viewer.ask("set_input", use="video")
    await until(lambda: videos(room))
    track.halted = True
    await numbers(viewer, 25)
    await until(lambda: len(videos(room)[-1]) == 1)  # the last one stands for the next
    await until(lambda: not room.feed.pipeline.sources[-1], inputs.HOLD + 5)
    first = await numbers(viewer, 30)
    assert first == [*range(first[0], first[0] + 30)]
    track.halted = False
    await until(lambda: room.feed.pipeline.sources[-1])
    await viewer.leave()


@in_room(painted(0.05))
async def test_a_flood_is_bounded(room, http):
    noise = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    viewer = await Viewer(http, sends=Sent(lambda i: np.roll(noise, i, 0), fps=200)).join()
    await viewer.ask("set_input", use="video")
    came = await numbers(viewer, 60)
    assert came == [*range(came[0], came[0] + 60)]
    assert len(room.inputs._frames) <= MOST_WAITING and room.inputs._unscaled <= inputs.MOST_UNSCALED
    peer = next(iter(room._peers))
    assert peer.intake._gate.qsize() <= intake.MOST_UNDECODED
    await viewer.leave()


@in_room()
async def test_what_cannot_be_is_not_offered_and_said(room, http):
    viewer = await Viewer(http).join()  # it only watches
    assert viewer.hello["inputs"] == ["video"] and viewer.hello["pictures"] == []
    answer = await viewer.ask("set_input", use="video")
    assert answer["type"] == "error" and "offer its video section as sendrecv" in answer["error"]
    assert "--control" in (await viewer.ask("set_input", use="control"))["error"]
    assert (await viewer.ask("set_input", use=None))["type"] == "done"
    picture = encoded(random_picture(64, 96), "png", "rgb24")
    refused = await http.post("/picture", params={"seat": viewer.hello["seat"], "role": "reference"}, content=picture)
    assert refused.status_code == 409 and "--control" in refused.json()["error"]
    assert (await http.get("/status")).json()["input"]["use"] is None
    await viewer.leave()


@in_room(painted(0.02, control=True), token="correct-horse-battery")
async def test_pictures_by_http(room, http):
    viewer = await Viewer(http).join()
    seat = viewer.hello["seat"]

    async def give(role, data, seat=seat, **how):
        return await http.post("/picture", params={"seat": seat, "role": role}, content=data, **how)

    picture = random_picture(64, 128)
    assert (await give("reference", encoded(picture, "png", "rgb24"))).json() == {"type": "done"}
    state = await viewer.wait_for(lambda m: m["type"] == "state" and m["changed"] == "set_picture")
    assert state["input"]["pictures"] == ["reference"] and state["by"] == viewer.hello["you"]
    source = (await until(lambda: [*filter(None, room.feed.pipeline.sources)]))[0]
    assert np.array_equal(source["control"].references[0], picture) and source["control"].first_frame is None

    other = random_picture(128, 128, 1)
    before = len(room.feed.pipeline.sources)
    assert (await give("first_frame", encoded(other, "png", "rgb24"))).status_code == 200
    await until(lambda: len(room.feed.pipeline.sources) > before + 3)
    later = [source["control"].first_frame is not None for source in room.feed.pipeline.sources[before:]]
    assert "reset" in room.feed.pipeline.calls and sum(later) == 1  # the video begins with it
    shown = next(
        s["control"].first_frame for s in room.feed.pipeline.sources[before:] if s["control"].first_frame is not None
    )
    assert np.array_equal(shown, other[32:96])
    before = len(room.feed.pipeline.sources)
    await viewer.ask("reset")  # and again
    await until(lambda: any(s["control"].first_frame is not None for s in room.feed.pipeline.sources[before:]))
    for role in ("first_frame", "reference"):
        await viewer.ask("remove_picture", role=role)
    before = len(room.feed.pipeline.sources)
    await until(lambda: len(room.feed.pipeline.sources) > before + 2)
    assert room.feed.pipeline.sources[-1] == {}

    room._uploads._rate = 1e6
    png = encoded(picture, "png", "rgb24")
    for status, answer in [
        (403, await give("reference", png, seat="x" * 22)),
        (403, await give("reference", png, seat="é")),
        (422, await give("nose", png)),
        (422, await give("reference", b"GIF89a")),
        (422, await give("reference", png[:60])),
        (413, await give("reference", b"x" * (app.MAX_PICTURE_BYTES + 1))),
        (401, await give("reference", png, headers={"Authorization": "Bearer wrong"})),
    ]:
        assert answer.status_code == status and answer.json()["error"], answer.text
    huge = encoded(np.zeros((4352, 4096, 3), np.uint8), "png", "rgb24")
    assert "pixels" in (await give("reference", huge)).json()["error"]
    strip = encoded(np.zeros((16, 800, 3), np.uint8), "png", "rgb24")
    assert "1 to 8" in (await give("reference", strip)).json()["error"]
    room._uploads._rate, room._uploads._left = 0.0, 2.0
    assert [(await give("reference", png)).status_code for _ in range(3)] == [200, 200, 429]
    await viewer.leave()
    await until(lambda: not room._peers)
    assert (await give("reference", png)).status_code == 403  # the seat is given up


def model(folder, **fields):
    def make(progress):
        config = ScopeOptimizationConfig.preset("ultra", height=64, width=96, **fields)
        return EngineSource(folder, config, "cpu", progress)

    return make


@in_room(model("tiny"))
async def test_the_built_in_model_follows_a_viewers_video(room, http):
    """What is white becomes brighter than what is black, and off it is the prompt's again."""
    levels = []
    for grey in (0, 255):
        track = Sent(lambda i, grey=grey: np.full((64, 96, 3), grey, np.uint8))
        viewer = await Viewer(http, sends=track).join()
        await viewer.ask("set_strength", noise_scale=0.1)
        await viewer.ask("set_input", use="video")
        await viewer.wait_for(lambda m: m["type"] == "state" and m["input"]["receiving"])
        for _ in range(60):
            picture = await viewer.picture()
        levels.append(picture.mean())
        await viewer.ask("set_input", use=None)
        for _ in range(20):
            await viewer.picture()
        await viewer.leave()
    assert levels[1] - levels[0] > 60
    assert room.feed.status.phase == "ready"


def test_a_model_with_the_module_takes_all_of_it(tmp_path_factory):
    folder = make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", "tiny", control=True)

    @in_room(model(folder, control=True))
    async def scene(room, http):
        viewer = await Viewer(http, sends=Sent(lambda i: random_picture(64, 96, i % 5))).join()
        picture = encoded(random_picture(64, 96), "png", "rgb24")
        for role in viewer.hello["pictures"]:
            answer = await http.post("/picture", params={"seat": viewer.hello["seat"], "role": role}, content=picture)
            assert answer.status_code == 200
        for use in ("control", "video", None, "control"):
            await viewer.ask("set_input", use=use)
            for _ in range(40):
                await viewer.picture()
        assert room.feed.status.phase == "ready"
        pipeline = room.feed.pipeline
        stages = {stage for times in pipeline.engine.block_times(pipeline.stream) for stage in times.stages}
        assert {"control", "encode"} <= stages
        await viewer.leave()

    scene()
