"""A room and its viewers over real WebRTC, on loopback: who comes, watches, and goes."""

import asyncio
import os
import time

import httpx
import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")
import aioice.ice

from longlive_optimized.demo.server import making as making_module
from longlive_optimized.demo.server import rtc
from longlive_optimized.demo.server.settings import ServerSettings
from support.painted import painted
from support.room import in_room, numbers, value
from support.server_peer import Viewer, visit


@in_room(model="/home/someone/models", ask_for_model=False)
async def test_viewers_are_told_the_models_name(room, http):
    """Of a folder its name alone; of the hub's all; and whether there is to be asked for the real one."""
    viewer = await Viewer(http).join()
    told = await viewer.wait_for(lambda m: m["type"] == "state")
    assert told["model"] == {"name": "models", "builtin": False, "ask": False}
    await viewer.leave()
    asks = ServerSettings(model="tiny", ask_for_model=True).shown_model
    assert asks == {"name": "tiny", "builtin": True, "ask": True}
    assert ServerSettings(model="a/b@v1").shown_model == {"name": "a/b@v1", "builtin": False, "ask": False}


@in_room(painted(0.1))
async def test_every_frame_arrives_once_and_in_order(room, http):
    viewer = await Viewer(http).join()
    seen = await numbers(viewer, 60)
    assert seen == [*range(seen[0], seen[0] + 60)]
    await viewer.leave()


@in_room()
async def test_several_viewers_of_one_video(room, http):
    one, two = await Viewer(http).join(), await Viewer(http).join()
    seen = await asyncio.gather(numbers(one, 50), numbers(two, 50))
    assert len(set(seen[0]) & set(seen[1])) > 25 and all(list(s) == sorted(s) for s in seen)
    await one.ask("switch_prompt", prompt="a boat")
    state = await two.wait_for(lambda m: m["type"] == "state" and m["changed"])
    assert (state["changed"], state["by"], state["prompt"]) == ("switch_prompt", "viewer 1", "a boat")
    await two.ask("set_overlay", enabled=True)  # the last word counts, whoever says it
    state = await one.wait_for(lambda m: m["type"] == "state" and m["changed"] == "set_overlay")
    assert state["by"] == "viewer 2" and state["overlay"] and state["viewers"] == 2
    await two.leave()
    await one.wait_for(lambda m: m["type"] == "state" and m["viewers"] == 1)
    await numbers(one, 10)
    await one.leave()


@in_room(max_viewers=1)
async def test_a_full_room_says_so_and_a_seat_comes_free(room, http):
    one = await Viewer(http).join()
    two = Viewer(http)
    with pytest.raises(httpx.HTTPStatusError) as caught:
        await two.join()
    assert caught.value.response.status_code == 503
    assert caught.value.response.json() == {
        "error": "no seat is free, of 1: try again when someone has left",
        "code": "busy",
    }
    await two.leave()
    await one.leave()
    while (await http.get("/status")).json()["viewers"]:
        await asyncio.sleep(0.02)
    three = await Viewer(http).join()  # a reconnection
    await three.frame()
    await three.leave()


@in_room()
async def test_who_joins_a_paused_video_sees_a_picture(room, http):
    one = await Viewer(http).join()
    await numbers(one, 5)
    await one.ask("set_paused", paused=True)
    two = await Viewer(http).join()
    await two.frame()
    await asyncio.gather(one.leave(), two.leave())


def test_trouble_is_told_and_passes(monkeypatch):
    monkeypatch.setattr(making_module, "FIRST_DELAY", 0.05)

    @in_room()
    async def scene(room, http):
        viewer = await Viewer(http).join()
        await numbers(viewer, 5)
        failures = iter(["out of memory"] * 2)

        def fail():
            for text in failures:
                raise RuntimeError(text)

        room.feed.pipeline.fail = fail
        told = await viewer.wait_for(lambda m: m["type"] == "state" and m["status"]["phase"] == "trouble")
        assert told["status"]["detail"] == "out of memory" and told["status"]["retry_in"] == 0.05
        while room.feed.status.phase != "ready":
            await viewer.frame()
        room.feed.pipeline.fallback_blocks = 3
        seen = await numbers(viewer, 40)
        assert seen == sorted(seen)
        figures = (await http.get("/metrics")).text
        assert value(figures, "longlive_failed_blocks_total") == 2 and value(figures, "longlive_fallback_blocks") == 3
        assert (await http.get("/readyz")).status_code == 200
        await viewer.leave()

    scene()


@pytest.mark.parametrize("talks", [True, False])
def test_a_viewer_who_vanishes_is_forgotten(monkeypatch, talks):
    """By their silence, long before aioice would notice; what they had is given up, and the others watch on."""
    monkeypatch.setattr(rtc, "GONE_SECONDS", 3.0)
    assert aioice.ice.CONSENT_INTERVAL * aioice.ice.CONSENT_FAILURES >= 30

    @in_room()
    async def scene(room, http):
        one, two = await Viewer(http).join(), Viewer(http, label="control" if talks else None)
        await (two.join() if talks else two.watch())
        await asyncio.gather(*(numbers(viewer, 60) for viewer in (one, two)))
        one.heard.clear()
        vanish(two)
        began = time.monotonic()
        await one.wait_for(lambda m: m["type"] == "state" and m["viewers"] == 1)
        assert 2 < time.monotonic() - began < 10
        await numbers(one, 10)
        vanish(one)
        while room._peers:
            await asyncio.sleep(0.05)
        assert not room.feed.watched
        await asyncio.gather(one.leave(), two.leave())

    scene()


def vanish(viewer: Viewer) -> None:
    """As if it had been killed: no word of farewell."""
    for transport in viewer.connection._RTCPeerConnection__iceTransports:
        for protocol in transport._connection._protocols:
            protocol.transport.abort()


def test_who_is_there_stays(monkeypatch):
    """Though nothing is said, and nothing but the last picture is sent."""
    monkeypatch.setattr(rtc, "GONE_SECONDS", 2.0)

    @in_room()
    async def scene(room, http):
        one, two = await Viewer(http).join(), Viewer(http, label=None)
        await two.watch()
        await numbers(two, 5)
        await one.ask("set_paused", paused=True)
        end = time.monotonic() + 8
        while time.monotonic() < end:
            await two.frame()
            assert len(room._peers) == 2
        await asyncio.gather(one.leave(), two.leave())

    scene()


@in_room()
async def test_one_who_only_watches(room, http):
    """Without a data channel."""
    viewer = Viewer(http, label=None)
    await viewer.watch()
    await numbers(viewer, 3)
    await viewer.leave()
    while (await http.get("/status")).json()["viewers"]:
        await asyncio.sleep(0.02)


def test_who_does_not_come_loses_the_seat(monkeypatch):
    monkeypatch.setattr(rtc, "CONNECT_SECONDS", 0.2)

    @in_room()
    async def scene(room, http):
        viewer = Viewer(http)
        await viewer.connection.setLocalDescription(await viewer.connection.createOffer())
        sdp = viewer.connection.localDescription.sdp
        await viewer.leave()
        assert (await http.post("/offer", json={"type": "offer", "sdp": sdp})).status_code == 200
        while (await http.get("/status")).json()["viewers"]:
            await asyncio.sleep(0.02)
        assert not room.feed.watched

    scene()


@in_room()
@pytest.mark.parametrize("label", ["control", "data", ""])
async def test_a_channel_of_any_label(room, http, label):
    viewer = await Viewer(http, label).join()
    assert (await viewer.ask("set_overlay", enabled=True))["type"] == "done"
    await numbers(viewer, 5)
    await viewer.leave()


@in_room()
async def test_a_second_channel_is_told_to_use_the_first(room, http):
    viewer = await Viewer(http, "first").join()
    for label in ("first", "second"):
        heard: asyncio.Queue = asyncio.Queue()
        channel = viewer.connection.createDataChannel(label)
        channel.on("message", heard.put_nowait)
        assert "first data channel, 'first'" in await asyncio.wait_for(heard.get(), 20)
        channel.send('{"type": "set_overlay", "enabled": true}')
        assert "first data channel, 'first'" in await asyncio.wait_for(heard.get(), 20)
    assert not room.feed.overlay
    await numbers(viewer, 5)  # the video goes on
    await viewer.leave()


@in_room()
async def test_text_that_is_no_text_ends_only_that_connection(room, http):
    one, two = await Viewer(http).join(), await Viewer(http).join()
    transport = two.connection.sctp
    await transport._send(two.channel.id, 51, b"\xff\xfe")  # 51: a string
    while (await http.get("/status")).json()["viewers"] > 1:
        await asyncio.sleep(0.05)
    await numbers(one, 10)
    await asyncio.gather(one.leave(), two.leave())


@in_room()
async def test_nothing_is_said_to_one_who_hangs_up(room, http):
    """The connection ends before the channel is closed: sending in between would fail in a task that nobody awaits."""
    faults = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    viewer = await Viewer(http).join()
    (peer,) = room._peers
    await viewer.connection.sctp.transport.stop()
    while peer._connection.sctp.transport.state == "connected":
        await asyncio.sleep(0)
    while room._peers:
        peer.send({"type": "news"})
        await asyncio.sleep(0)
    await viewer.leave()
    assert not faults


@in_room(codec="h264")
async def test_h264(room, http):
    viewer = await Viewer(http).join()
    await numbers(viewer, 30)
    answer = viewer.connection.remoteDescription.sdp
    assert answer.index("H264/90000") < answer.index("VP8/90000")
    await viewer.leave()


def test_the_end_is_told_and_leaves_nothing():
    async def scene():
        open_before = len(os.listdir("/proc/self/fd"))
        async with visit(painted(0.1)) as (room, http):
            viewers = [await Viewer(http).join() for _ in range(3)]
            await asyncio.gather(*(viewer.frame() for viewer in viewers))
            thread, started = room.worker._thread, time.monotonic()
        assert time.monotonic() - started < 5 and not thread.is_alive()
        for viewer in viewers:
            await viewer.wait_for(lambda m: m["type"] == "bye")
            await viewer.leave()
        return open_before

    open_before = asyncio.run(scene())
    assert len(os.listdir("/proc/self/fd")) <= open_before
