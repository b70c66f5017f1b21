"""A room and its viewers over real WebRTC, on loopback."""

import asyncio
import io
import os
import random
import re
import threading
import time

import httpx
import numpy as np
import pytest
import torch

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")

import aioice.ice
from aiortc import RTCSessionDescription

from longlive_optimized import clip
from longlive_optimized.demo.scope_integration import LatencyStats, ScopeOptimizationConfig
from longlive_optimized.demo.server import app, rtc
from longlive_optimized.demo.server import feed as feed_module
from longlive_optimized.demo.server.offer import BadOffer, Offer
from longlive_optimized.demo.server.settings import ServerSettings
from longlive_optimized.demo.server.source import EngineSource
from support.event_loop import as_test, nothing_left
from support.painted import level, painted, read_level, read_number
from support.server_peer import Viewer, visit

PAINTED = painted()

PRINT = ":".join(["AA"] * 32)


def in_room(make_pipeline=PAINTED, **settings):
    """Run a test with an open room and a client of it; no task of it may be left afterwards."""

    def decorate(test):
        async def run(**values):
            async with visit(make_pipeline, ServerSettings(**settings)) as (room, http):
                await asyncio.wait_for(test(room, http, **values), 60)
            await nothing_left()

        return as_test(run, test, 2)

    return decorate


@pytest.fixture(autouse=True)
def one_thread():
    """The encoders need the other core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


MOVING = "a white circle and a red square move left over a black night"


def tiny(progress):
    config = ScopeOptimizationConfig.preset_balanced(height=64, width=96)
    return EngineSource("tiny", config, "cpu", progress)


async def numbers(viewer: Viewer, count: int) -> list[int]:
    return [read_number(await viewer.picture()) for _ in range(count)]


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


@in_room(tiny)
async def test_a_peer_watches_the_tiny_model_and_controls_it(room, http):
    viewer = await Viewer(http).join()
    first = await viewer.wait_for(lambda m: m["type"] == "state")
    assert first["preset"] == first["effective"]["preset"] == "balanced"
    memory = (await http.get("/status")).json()["memory"]
    assert memory == first["effective"]["memory"] and memory["peak_gib"] > 0 and memory["costs"] == []
    started, times, pictures = time.monotonic(), [], []
    for i in range(120):
        frame = await viewer.frame()
        times.append(frame.time)
        pictures.append(frame.to_ndarray(format="rgb24"))
        if i == 30:
            assert (await viewer.ask("switch_prompt", prompt=MOVING))["type"] == "done"
        if i == 60:
            assert (await viewer.ask("set_optimization_preset", preset="realtime"))["type"] == "done"
    gaps = np.diff(times)
    assert gaps.min() > 0.061 and np.median(gaps) < 0.25  # at the world's pace, or evenly at what this machine can do
    assert time.monotonic() - started > 0.9 * 119 / 16  # not in a rush
    assert pictures[0].shape == (64, 96, 3) and np.std(pictures, axis=0).mean() > 3  # a picture that moves
    pipeline = room.feed.pipeline
    assert np.array_equal(pipeline.stream.prompt.embedding, pipeline.engine.prompts.get(MOVING))
    state = await viewer.wait_for(lambda m: m["type"] == "state" and m["effective"]["preset"] == "realtime")
    assert state["effective"]["denoising_steps"] == [1000, 500, 250] and state["effective"]["precision"] == "float32"
    stats = LatencyStats(**(await viewer.ask("get_latency_stats"))["stats"])
    assert stats.frame_count >= 108 and stats.block_ms > 0 and stats.prompt_switch_ms > 0 and stats.preset == "realtime"
    figures = (await http.get("/metrics")).text
    assert value(figures, "longlive_frames_generated_total") == stats.frame_count
    assert value(figures, "longlive_frames_sent_total") >= 120
    assert value(figures, "longlive_block_ms_count") >= 10 and value(figures, "longlive_prompt_switch_ms_count") == 1
    assert value(figures, "longlive_viewers") == 1
    await viewer.leave()


def value(figures: str, name: str) -> float:
    return float(next(line for line in figures.splitlines() if line.startswith(name + " ")).rpartition(" ")[2])


@in_room(painted(0.1))
async def test_every_frame_arrives_once_and_in_order(room, http):
    viewer = await Viewer(http).join()
    seen = await numbers(viewer, 60)
    assert seen == [*range(seen[0], seen[0] + 60)]
    await viewer.leave()


@in_room(painted(0.05))
async def test_a_new_prompt_is_seen_within_three_blocks(room, http):
    viewer = await Viewer(http).join()
    await numbers(viewer, 30)
    pipeline = room.feed.pipeline
    asked = len(pipeline.painted)
    await viewer.ask("switch_prompt", prompt="a boat")
    while read_level(picture := await viewer.picture()) != level("a boat"):
        pass
    assert read_number(picture) - asked <= 24
    await viewer.leave()


@in_room()
async def test_a_video_begins_anew_with_another_seed_and_size(room, http):
    viewer = await Viewer(http).join()
    await viewer.ask("switch_prompt", prompt="a boat")
    await viewer.ask("set_optimization_preset", preset="turbo")
    await numbers(viewer, 30)
    assert (await viewer.ask("reset", seed=7, height=48, width=160))["type"] == "done"
    for _ in range(100):
        picture = await viewer.picture()
        if picture.shape[:2] == (48, 160):
            break
    assert picture.shape == (48, 160, 3) and read_level(picture) == level("a boat")
    state = await viewer.wait_for(lambda m: m["type"] == "state" and m["effective"]["seed"] == 7)
    effective = state["effective"]
    assert (effective["height"], effective["width"], room.inputs.size) == (48, 160, (48, 160))
    assert room.config.precision == "int8"  # what was wished for before still holds
    assert [pipeline.config.seed for pipeline in room.worker.source.opened] == [42, 7]
    too_large = await viewer.ask("reset", height=160)
    assert "at most 64x128 pixels together" in too_large["error"]
    await viewer.ask("reset", seed=8)
    await viewer.wait_for(lambda m: m["type"] == "state" and m["effective"]["seed"] == 8)
    assert room.config.size == (48, 160)
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
async def test_bad_messages_are_answered_and_do_nothing(room, http):
    viewer = await Viewer(http).join()
    before = room.status(), room.feed.prompt, room.feed.overlay, room.feed.paused
    for message in ("{", b"\x00\x01", "x" * 20_000, '{"type": "set_overlay", "enabled": 1}', '{"type": "exit"}'):
        viewer.say(message)
        answer = await viewer.wait_for(lambda m: m["type"] == "error")
        assert answer["error"] and answer["id"] is None
    assert (await viewer.ask("set_optimization_preset", preset="warp"))["type"] == "error"
    assert (room.status(), room.feed.prompt, room.feed.overlay, room.feed.paused) == before
    assert room.feed.pipeline.calls == []
    await numbers(viewer, 5)
    await viewer.leave()


@in_room(painted(0.05))
@pytest.mark.parametrize("count", [2, 100, 1000])
async def test_a_burst_of_wishes(room, http, count):
    """Each is answered, in order; the last is in force with the next block; others hear of it a few times."""
    viewer, other = await Viewer(http).join(), await Viewer(http).join()
    await numbers(viewer, 30)
    began = time.monotonic()
    for i in range(count):
        viewer.say({"type": "switch_prompt", "prompt": f"wish {i}", "id": i})
    await viewer.wait_for(lambda m: m.get("id") == count - 1)
    assert room.feed.prompt.prompt == f"wish {count - 1}"
    asked = len(room.feed.pipeline.painted)
    answers = [m["id"] for m in viewer.heard if m["type"] == "done"]
    assert answers == [*range(count - 1)]  # the last one has been taken out
    state = await other.wait_for(lambda m: m["type"] == "state" and m["prompt"] == f"wish {count - 1}")
    assert (state["changed"], state["by"]) == ("switch_prompt", "viewer 1")
    assert sum(m["type"] == "state" for m in other.heard) <= 35 + 10 * (time.monotonic() - began)
    while read_level(picture := await viewer.picture()) != level(f"wish {count - 1}"):
        pass
    assert read_number(picture) - asked <= 24
    await asyncio.gather(viewer.leave(), other.leave())


@in_room()
async def test_a_burst_of_everything_ends_as_it_was_said_last(room, http):
    viewer = await Viewer(http).join()
    wishes = [
        {"type": "switch_prompt", "prompt": "a boat"},
        {"type": "set_transition", "blocks": 8},
        {"type": "set_overlay", "enabled": True},
        {"type": "set_paused", "paused": True},
        {"type": "set_optimization_preset", "preset": "turbo"},
        {"type": "reset"},
        {"type": "get_latency_stats"},
        {"type": "switch_prompt", "prompt": " "},
        {"type": "set_paused", "paused": False},
        {"type": "set_transition", "blocks": 2},
    ]
    for i in range(300):
        viewer.say({**wishes[i % 10], "id": f"wish {i}"})
    viewer.say({"type": "switch_prompt", "prompt": "a fox at last", "id": 300})
    await viewer.wait_for(lambda m: m.get("id") == 300)
    answers = [m for m in viewer.heard if str(m.get("id")).startswith("wish")]
    assert [m["id"] for m in answers] == [f"wish {i}" for i in range(300)]
    assert {m["type"] for m in answers[7::10]} == {"error"} and sum(m["type"] == "error" for m in answers) == 30
    state = await viewer.wait_for(lambda m: m["type"] == "state" and m["prompt"] == "a fox at last")
    assert state["transition"]["blocks"] == 2 and state["overlay"] and not state["paused"]
    await viewer.leave()


@in_room()
async def test_pause_and_start_over(room, http):
    viewer = await Viewer(http).join()
    await numbers(viewer, 20)
    await viewer.ask("set_paused", paused=True)
    await asyncio.sleep(0.3)  # what is on its way arrives
    held = (await numbers(viewer, 4))[-2:]
    assert held[0] == held[1]  # sent again and again, for those who join
    await viewer.ask("set_paused", paused=False)
    while (number := read_number(await viewer.picture())) == held[0]:
        pass
    assert number == held[0] + 1
    await viewer.ask("reset")
    await numbers(viewer, 40)
    assert room.feed.pipeline.calls == ["reset"]
    await viewer.leave()


@in_room()
async def test_who_joins_a_paused_video_sees_a_picture(room, http):
    one = await Viewer(http).join()
    await numbers(one, 5)
    await one.ask("set_paused", paused=True)
    two = await Viewer(http).join()
    await two.frame()
    await asyncio.gather(one.leave(), two.leave())


def test_trouble_is_told_and_passes(monkeypatch):
    monkeypatch.setattr(feed_module, "FIRST_DELAY", 0.05)

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


def without(*names: str):
    """A change to an offer: no lines of these attributes."""
    return lambda sdp: re.sub(rf"a=({'|'.join(names)}).*\r\n", "", sdp)


def printed(text: str):
    """A change to an offer: other fingerprints."""
    return lambda sdp: re.sub(r"a=fingerprint:.*(?=\r)", f"a=fingerprint:{text}", sdp)


def h264(profile: str, mode: int):
    """A change to an offer: no VP8, and H264 in no other form."""
    form = f"packetization-mode={mode};profile-level-id={profile}"
    return lambda sdp: re.sub("packetization-mode=1;profile-level-id=[0-9a-f]+", form, sdp.replace("VP8", "VP9"))


@in_room()
async def test_offers_without_a_way_are_refused_in_words(room, http):
    viewer = Viewer(http)
    await viewer.connection.setLocalDescription(await viewer.connection.createOffer())
    good = viewer.connection.localDescription.sdp
    room._offers._burst = room._offers._left = 100
    for sdp, words in (
        ("", "no video section: a viewer calls addTransceiver('video'"),
        ("nonsense", "no video section"),
        (good.replace("m=video", "m=audio"), "no video section, but ['audio', 'application']"),
        (re.sub("m=video [0-9]+", "m=video 0", good), "no video section, but ['application']"),
        (good.replace("recvonly", "sendonly"), "must be recvonly, or sendrecv"),
        (good.replace("recvonly", "inactive"), "must be recvonly, or sendrecv"),
        (good.replace("VP8", "VP9").replace("H264", "H265"), "the server sends VP8 and H264"),
        (without("fingerprint")(good), "no a=fingerprint: only encrypted connections"),
        (without("ice-ufrag", "ice-pwd")(good), "no a=ice-ufrag and no a=ice-pwd"),
        (without("setup")(good), "no a=setup"),
        (good.replace("a=mid:1", "a=mid:0"), "each must have one name of its own"),
        (good.replace("a=mid:1", "a=mid:1\r\na=mid:2"), "each must have one name of its own"),
        (without("rtcp-mux")(good), "no a=rtcp-mux: only encrypted connections with all media on one port"),
        (without("recvonly")(good).replace("t=0 0", "t=0 0\r\na=sendonly"), "must be recvonly, or sendrecv"),
        (printed("sha-1 " + PRINT)(good), "says 'a=fingerprint:sha-1 AA:"),
        (printed("sha-256 hello")(good), "a fingerprint must be one of sha-256, sha-384, sha-512"),
        (printed("sha-512 " + PRINT)(good), "a fingerprint must be one of"),
        (h264("640c1f", 1)(good), "no codec that the server sends: VP8, which browsers have, or H264 of the Baseline"),
        (h264("42e01f", 0)(good), "with packetization-mode 1"),
    ):
        answer = await http.post("/offer", json={"type": "offer", "sdp": sdp})
        assert (answer.status_code, answer.json().get("code")) == (400, "bad offer"), (answer.text, sdp)
        assert words in answer.json()["error"]
    for body in (b"", b"{", b'{"type": "answer", "sdp": "x"}', b'{"type": "offer", "sdp": 3}', b"\xff"):
        assert (await http.post("/offer", content=body)).status_code == 422
    assert (await http.post("/offer", content=b"x" * 70_000)).status_code == 413
    assert (await http.get("/status")).json()["viewers"] == 0
    await viewer.leave()


@in_room()
@pytest.mark.parametrize("kinds", ["audio video", "video audio", "video video", "audio video audio video"])
async def test_what_is_not_taken_is_rejected(room, http, kinds):
    viewer = Viewer(http, kinds=kinds.split())
    await viewer.join()
    await numbers(viewer, 5)
    first = kinds.split().index("video")
    ports = re.findall(r"^m=(\w+) (\d+)", viewer.connection.remoteDescription.sdp, re.MULTILINE)
    assert [kind for kind, _ in ports] == [*kinds.split(), "application"]
    assert [port == "0" for _, port in ports] == [i != first for i in range(len(kinds.split()))] + [False]
    assert viewer.connection.connectionState == "connected"
    await viewer.leave()


STANDARD_OFFERS = {
    "no bundle": lambda sdp: re.sub("a=group:BUNDLE.*\r\n", "", sdp),
    "trickle": without("candidate", "end-of-candidates"),
    "line feeds": lambda sdp: sdp.replace("\r\n", "\n"),
    "sends, too": lambda sdp: sdp.replace("recvonly", "sendrecv"),
    "no direction": lambda sdp: sdp.replace("a=recvonly\r\n", ""),
    "H264 alone": lambda sdp: sdp.replace("VP8", "AV1"),
    "VP8 alone": lambda sdp: sdp.replace("H264", "H265"),
    "many addresses": lambda sdp: sdp + "a=candidate:1 1 udp 1 10.0.0.1 9 typ host\r\n" * 40,
    "unknown section": lambda sdp: sdp + "m=text 9 UDP/TLS/RTP/SAVPF 99\r\nc=IN IP4 0.0.0.0\r\na=mid:t\r\n",
    "unknown attributes": lambda sdp: sdp.replace("a=recvonly", "a=recvonly\r\na=extmap-allow-mixed\r\na=foo:bar"),
    "other transports": lambda sdp: sdp.replace("UDP/DTLS/SCTP", "TCP/DTLS/SCTP").replace("UDP/TLS/RTP", "RTP"),
    "the session's direction": lambda sdp: sdp.replace("a=recvonly\r\n", "").replace("t=0 0", "t=0 0\r\na=recvonly"),
    "several fingerprints": lambda sdp: sdp.replace("a=setup", f"a=fingerprint:sha-1 {PRINT}\r\na=setup"),
    "active": lambda sdp: sdp.replace("a=setup:actpass", "a=setup:active"),
}


@in_room()
@pytest.mark.parametrize("how", STANDARD_OFFERS)
async def test_standard_offers_are_answered(room, http, how):
    viewer = Viewer(http)
    await viewer.connection.setLocalDescription(await viewer.connection.createOffer())
    offered = STANDARD_OFFERS[how](viewer.connection.localDescription.sdp)
    answer = await http.post("/offer", json={"type": "offer", "sdp": offered, "name": "some client's own"})
    assert answer.status_code == 200, answer.text
    sdp = answer.json()["sdp"]
    sections = re.findall(r"^m=\w+", offered, re.MULTILINE)
    assert re.findall(r"^m=\w+", sdp, re.MULTILINE) == sections
    # A viewer who may send is heard out, should they want to.
    assert f"a={'sendrecv' if how in ('sends, too', 'no direction') else 'sendonly'}\r\n" in sdp
    forms = r"^m=\w+ \d+ (\S+)"
    assert re.findall(forms, sdp, re.MULTILINE) == re.findall(forms, offered, re.MULTILINE)
    assert ("a=group:BUNDLE" in sdp) == (how != "no bundle")
    if how != "unknown section":  # which this viewer never offered
        await viewer.connection.setRemoteDescription(RTCSessionDescription(**answer.json()))
        await numbers(viewer, 3)
    await viewer.leave()


def test_a_browser_is_answered_to_the_letter():
    """The rejected section is not in the bundle (RFC 9143, 7.3.3), and holds nothing that would mean anything."""
    transport = (
        "a=ice-ufrag:u\r\na=ice-pwd:p\r\na=fingerprint:sha-256 " + PRINT + "\r\na=setup:actpass\r\na=rtcp-mux\r\n"
    )
    candidate = "a=candidate:1 1 udp 1 10.0.0.1 9 typ host\r\n"
    head = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\n"
    audio = "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\na=recvonly\r\n"
    video = "m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\na=recvonly\r\na=rtpmap:96 VP8/90000\r\n"
    made = "v=0\r\na=group:BUNDLE 1\r\nm=video 7 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\na=ice-ufrag:s\r\n"
    offer = Offer(head + audio + transport + candidate + video + transport + candidate)
    assert offer.taken(local=False) == head.replace(" 0 1\r", " 1\r") + video + transport + candidate
    assert offer.answer(made) == (
        "v=0\r\na=group:BUNDLE 1\r\n"
        "m=audio 0 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 0.0.0.0\r\na=inactive\r\na=mid:0\r\na=rtcp-mux\r\n"
        "m=video 7 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\na=ice-ufrag:s\r\n"
    )
    # The transport of all stands in the first section alone: the video has the same, and the section is kept, inactive.
    offer = Offer(head + audio + transport + candidate + video.replace("video 9", "video 0") + "a=bundle-only\r\n")
    assert all(line in offer.taken(local=False) for line in (transport + candidate).splitlines())
    assert "a=group:BUNDLE 0 1\r\nm=audio 9 " in offer.answer(made) and "a=inactive" in offer.answer(made)


def test_spoilt_offers_are_read_or_refused():
    """Nothing but BadOffer comes out, and what is read can be answered."""
    head = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1 2\r\n"
    same = "a=ice-ufrag:u\r\na=ice-pwd:p\r\na=fingerprint:sha-256 " + PRINT + "\r\na=setup:actpass\r\na=rtcp-mux\r\n"
    audio = "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\na=recvonly\r\na=candidate:1 1 udp 1 10.0.0.1 9 typ host\r\n"
    video = "m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\na=recvonly\r\na=rtpmap:96 VP8/90000\r\n"
    data = "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:2\r\n"
    good = (head + audio + same + video + same + data + same).split("\r\n")
    strange = [
        "",
        "m=",
        "m=video",
        "m=video 0",
        "a=mid:",
        "a=mid:1",
        "a=group:BUNDLE",
        "a=bundle-only",
        "a=inactive",
        "☂",
    ]
    dice, read = random.Random(0), 0
    for _ in range(3000):
        lines = list(good)
        for _ in range(dice.randint(1, 4)):
            i, j = (dice.randrange(len(lines)) for _ in range(2))
            match dice.randrange(5):
                case 0:
                    del lines[i]
                case 1:
                    lines.insert(i, lines[j])
                case 2:
                    lines[i], lines[j] = lines[j], lines[i]
                case 3:
                    lines[i] = lines[i][: dice.randrange(len(lines[i]) + 1)]
                case 4:
                    lines.insert(i, dice.choice(strange))
        try:
            offer = Offer("\r\n".join(lines))
        except BadOffer as error:
            assert str(error)
            continue
        taken = offer.taken(local=dice.random() < 0.5)
        sections = sum(line.startswith("m=") for line in lines)
        assert len(re.findall("^m=", offer.answer(taken), re.MULTILINE)) == sections
        read += 1
    assert 500 < read < 2500


@in_room()
async def test_offers_are_limited(room, http):
    codes = [(await http.post("/offer", json={"type": "offer", "sdp": ""})).status_code for _ in range(14)]
    assert codes[:10] == [400] * 10 and 429 in codes[10:]


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


@in_room(host="0.0.0.0", token="correct horse battery")
async def test_what_needs_a_token(room, http):
    async with httpx.AsyncClient(transport=http._transport, base_url="http://gpu.example") as stranger:
        for path in ("/status", "/metrics", "/recording.mp4"):
            assert (await stranger.get(path)).status_code == 401
        assert (await stranger.post("/offer", json={})).status_code == 401
        for path in ("/", "/app.js", "/healthz", "/readyz"):
            assert (await stranger.get(path)).status_code == 200
    assert (await http.get("/status")).status_code == 200


@in_room()
async def test_an_offer_that_never_ends_is_not_waited_for(room, http, monkeypatch):
    monkeypatch.setattr(app, "BODY_SECONDS", 0.1)

    async def slowly():
        yield b'{"type": "offer",'
        await asyncio.sleep(1)
        yield b"}"

    answer = await http.post("/offer", content=slowly())
    assert (answer.status_code, answer.json()["code"]) == (408, "too slow")


@in_room()
async def test_pages_of_others_are_kept_out(room, http):
    evil = {"Origin": "http://evil.example"}
    assert (await http.post("/offer", json={"type": "offer", "sdp": ""}, headers=evil)).status_code == 403
    assert (await http.get("/recording.mp4", headers=evil)).status_code == 403
    assert (await http.get("/status", headers={"Host": "evil.example"})).status_code == 403


@in_room(origins=("https://demo.example",))
async def test_a_page_elsewhere_gets_its_headers_and_nothing_more(room, http):
    mine, evil = {"Origin": "https://demo.example"}, {"Origin": "https://evil.example"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    for path in ("/offer", "/status", "/recording.mp4", "/metrics"):
        answer = await http.options(path, headers=mine | asks)
        assert answer.status_code == 204 and answer.headers["access-control-allow-origin"] == mine["Origin"]
        assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST"
        assert answer.headers["access-control-allow-headers"].lower() == "authorization, content-type"
        assert "access-control-allow-credentials" not in answer.headers
        answer = await http.options(path, headers=evil | asks)
        assert answer.status_code == 403 and "--origin" in answer.json()["error"]
        assert not any(name.startswith("access-control") for name in answer.headers)
    for method, path, status in (
        ("GET", "/status", 200),
        ("HEAD", "/status", 200),
        ("GET", "/nothing", 404),
        ("POST", "/offer", 422),
        ("GET", "/recording.mp4", 404),
        ("GET", "/recording.mp4?seconds=-1", 422),
        ("PUT", "/status", 405),
    ):
        answer = await http.request(method, path, headers=mine)
        assert answer.status_code == status and answer.headers["access-control-allow-origin"] == mine["Origin"]
        assert "origin" in answer.headers["vary"].lower() and (status == 200 or answer.json()["error"])
        answer = await http.request(method, path, headers=evil)
        assert not any(name.startswith("access-control") for name in answer.headers)


@in_room(host="0.0.0.0", token="correct horse battery", origins=("https://demo.example",))
async def test_a_page_elsewhere_needs_the_token_and_can_read_that(room, http):
    async with httpx.AsyncClient(transport=http._transport, base_url="http://gpu.example") as stranger:
        mine = {"Origin": "https://demo.example"}
        assert (await stranger.options("/offer", headers=mine)).status_code == 204
        answer = await stranger.post("/offer", headers=mine)
        assert answer.status_code == 401 and "Bearer TOKEN" in answer.json()["error"]
        assert answer.headers["access-control-allow-origin"] == mine["Origin"]


@in_room()
async def test_nobody_elsewhere_unless_told(room, http):
    for method in ("OPTIONS", "GET"):
        answer = await http.request(method, "/status", headers={"Origin": "https://demo.example"})
        assert answer.status_code == 403 and not any(name.startswith("access-control") for name in answer.headers)


@in_room()
async def test_every_page_answers_head(room, http):
    for path in ("/", "/app.js", "/healthz", "/readyz", "/status", "/metrics"):
        assert (await http.head(path)).status_code == (await http.get(path)).status_code == 200


@in_room()
async def test_the_page_is_what_it_is(room, http):
    page = await http.get("/")
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    for name in {*re.findall(r'(?:src|href)="([\w.]+)"', page.text)} | {
        "chart.js",
        "connection.js",
        "prompts.js",
        "settings.js",
    }:
        found = await http.get(f"/{name}")
        assert found.status_code == 200 and found.headers["x-content-type-options"] == "nosniff"
        for imported in re.findall(r'from "\./([\w.]+)"', found.text):
            assert (await http.get(f"/{imported}")).status_code == 200
    for path in (
        "/page/index.html",
        "/../room.py",
        "/%2e%2e/room.py",
        "/index.html",
        "/app.js/",
        "//etc/passwd",
        "/docs",
        "/openapi.json",
    ):
        assert (await http.get(path)).status_code in (307, 404)


@in_room(painted(playback_speed=4))
async def test_a_recording_holds_what_was_made(room, http):
    """Every frame once, at the model's rate, though the world went four times as fast, stood still for a while, and
    was begun anew."""
    import av

    for path in ("/recording", "/recording.mp4"):
        assert (await http.get(path)).json()["code"] == "empty"
    viewer = await Viewer(http).join()
    seen = await numbers(viewer, 40)
    await viewer.ask("set_paused", paused=True)
    await asyncio.sleep(0.7)
    await viewer.ask("set_paused", paused=False)
    await viewer.ask("reset")
    seen += await numbers(viewer, 40)
    await viewer.ask("set_paused", paused=True)
    answer = await http.get("/recording?seconds=30")
    assert answer.status_code == 200 and answer.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(answer.content)) as video:
        kept = [(frame.time, read_number(frame.to_ndarray(format="rgb24"))) for frame in video.decode(video=0)]
    assert {*seen} <= {number for _, number in kept} and [number for _, number in kept] == [*range(len(kept))]
    assert [at for at, _ in kept] == pytest.approx([i / 16 for i in range(len(kept))], abs=1e-4)
    assert "longlive.mp4" in answer.headers["content-disposition"]
    for form, kind, begin in (("gif", "image/gif", b"GIF89a"), ("webp", "image/webp", b"RIFF")):
        room._downloads._left = 3
        answer = await http.get(f"/recording?seconds=1&format={form}&scale=2")
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind) and answer.content.startswith(begin)
        assert f"longlive.{form}" in answer.headers["content-disposition"]
    await viewer.leave()


@in_room()
async def test_bad_clips_are_named(room, http):
    viewer = await Viewer(http).join()
    await numbers(viewer, 20)
    for query, name in [
        *((f"seconds={seconds}", "seconds") for seconds in ("0", "-1", "nan", "601", "x")),
        *((f"scale={scale}", "scale") for scale in ("0", "9", "1.5", "-1", "x")),
        *((f"format={form}", "format") for form in ("avi", "", "MP4")),
    ]:
        answer = await http.get(f"/recording?{query}")
        assert answer.status_code == 422 and answer.json()["error"].startswith(f"{name}: "), answer.text
    before, clip.MOST_CLIP = clip.MOST_CLIP, {"gif": 1000}
    try:
        answer = await http.get("/recording?format=gif&scale=8")
    finally:
        clip.MOST_CLIP = before
    assert answer.status_code == 422 and answer.json()["error"].startswith("seconds: gif of 512x1024 may have at most")
    await viewer.leave()


@in_room()
async def test_the_worlds_speed_changes_at_once_and_for_all(room, http):
    """No preset changes it."""
    viewer, other = await Viewer(http).join(), await Viewer(http).join()
    effective = (await viewer.wait_for(lambda m: m["type"] == "state"))["effective"]
    names = "playback_speed", "interpolation", "shown_fps", "model_fps"
    assert [effective[name] for name in names] == [1.0, "none", None, 16.0]

    async def gap(count: int = 30) -> float:
        times = [(await viewer.frame()).time for _ in range(count)]
        return float(np.median(np.diff(times)))

    assert await gap() == pytest.approx(1 / 16, abs=1e-3)
    await viewer.ask("set_optimization_preset", preset="ultra")
    assert await gap() == pytest.approx(1 / 16, abs=1e-3)
    assert (await viewer.ask("settings", playback_speed=2.5))["type"] == "done"
    state = await other.wait_for(lambda m: m["type"] == "state" and m["changed"] == "settings")
    assert [state["effective"][name] for name in names] == [2.5, "none", None, 40.0] and state["by"] == "viewer 1"
    await viewer.frame()
    assert await gap() == pytest.approx(1 / 40, abs=1e-3)
    await viewer.ask("set_optimization_preset", preset="quality")
    state = await other.wait_for(lambda m: m["type"] == "state" and m["effective"]["preset"] == "quality_stream")
    assert state["effective"]["playback_speed"] == 2.5
    assert await gap() == pytest.approx(1 / 40, abs=1e-3)
    refused = await viewer.ask("settings", shown_fps=30)
    assert refused["type"] == "error" and refused["error"].startswith("shown_fps must be None or interpolation must be")
    await asyncio.gather(viewer.leave(), other.leave())


@in_room(codec="vp8")
async def test_interpolation_shows_more_pictures_of_the_same_world(room, http):
    """Numbers are read where a picture is near a frame; those go on at 16 a second, pictures at 48."""
    viewer = await Viewer(http).join()
    await numbers(viewer, 10)
    assert (await viewer.ask("settings", interpolation="blend", shown_fps=48))["type"] == "done"
    await numbers(viewer, 10)
    frames = [await viewer.frame() for _ in range(96)]
    gaps = np.diff([frame.time for frame in frames])
    assert np.median(gaps) == pytest.approx(1 / 48, abs=1e-3)
    first, last = (read_number(frame.to_ndarray(format="rgb24")) for frame in (frames[0], frames[-1]))
    assert (last - first) / (frames[-1].time - frames[0].time) == pytest.approx(16, rel=0.15)
    await viewer.wait_for(lambda m: m["type"] == "block" and 38 < m["shown_fps"] < 54 and 13 < m["model_fps"] < 18)
    stream = (await http.get("/status")).json()["streams"][0]
    assert 13 < stream["fps"] < 18 and stream["p99_interval_ms"] > 60
    assert (await viewer.ask("settings", interpolation="none"))["type"] == "done"  # takes the rate along
    state = await viewer.wait_for(lambda m: m["type"] == "state" and m["effective"]["interpolation"] == "none")
    await viewer.wait_for(lambda m: m["type"] == "block" and m["shown_fps"] < 18)
    assert state and room.feed.config_in_force.shown_fps is None
    await viewer.leave()


@in_room(record_seconds=0)
async def test_no_recording(room, http):
    assert (await http.get("/recording.mp4")).json()["code"] == "off"


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


def test_before_the_model_is_there():
    from longlive_optimized.demo.server.app import create_app
    from longlive_optimized.demo.server.sessions import Sessions

    loaded = threading.Event()

    def slow(progress):
        progress("VAE", 1, 4)
        loaded.wait(20)
        return painted()(progress)

    async def scene():
        app = create_app(Sessions(slow, "a fox", ServerSettings()))
        async with app.router.lifespan_context(app):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
                assert (await http.get("/healthz")).status_code == 200
                assert (await http.get("/readyz")).status_code == 503
                status = (await http.get("/status")).json()
                assert (status["phase"], status["detail"], status["done"], status["total"]) == ("loading", "VAE", 1, 4)
                answer = await http.post("/offer", json={"type": "offer", "sdp": ""})
                assert answer.status_code == 503 and answer.json()["code"] == "loading"
                loaded.set()

    asyncio.run(scene())


@in_room()
async def test_a_browser_that_hides_its_addresses(room, http):
    """Its candidates are names that cannot be looked up, and it says that no more will come."""

    def hide(sdp: str) -> str:
        assert "127.0.0.1" in sdp and "a=end-of-candidates" in sdp
        return re.sub(r"(a=candidate:\S+ 1 udp \d+) \S+", r"\1 0d6e2c1a-hidden.local", sdp)

    viewer = await Viewer(http).join(rewrite=hide)
    await viewer.frame()
    await viewer.leave()


@pytest.mark.parametrize(
    ("settings", "addresses"),
    [
        ({}, ["127.0.0.1"]),
        ({"host": "::1"}, ["::1"]),
        ({"ice_addresses": ("10.0.0.7",)}, ["127.0.0.1", "10.0.0.7"]),
        ({"host": "0.0.0.0", "ice_addresses": ("10.0.0.7",)}, ["10.0.0.7"]),
        ({"host": "gpu.example"}, None),
    ],
)
def test_addresses_that_video_may_use(settings, addresses):
    usual = aioice.ice.get_host_addresses
    token = "correct horse battery" if settings.get("host", "::1") != "::1" else None
    with rtc.local_addresses(ServerSettings(**settings, token=token)):
        addresses = addresses or usual(use_ipv4=True, use_ipv6=True)
        assert aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=True) == addresses
    assert aioice.ice.get_host_addresses is usual


def test_one_task_may_use_other_addresses():
    usual = aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=True)

    def found() -> list[str]:
        return aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=True)

    async def publish(meanwhile: asyncio.Event) -> list[str]:
        with rtc.all_addresses(besides="127.0.0.1"):
            meanwhile.set()
            await asyncio.sleep(0.01)
            inside = await asyncio.create_task(asyncio.to_thread(found))
        assert found() == ["127.0.0.1"]
        return inside

    async def look() -> None:
        meanwhile = asyncio.Event()
        task = asyncio.create_task(publish(meanwhile))
        await meanwhile.wait()
        assert found() == ["127.0.0.1"]
        assert await task == ["127.0.0.1", *usual]

    with rtc.local_addresses(ServerSettings()):
        asyncio.run(look())


def test_no_server_is_asked_for_addresses_by_default():
    assert ServerSettings().ice_servers == ()
