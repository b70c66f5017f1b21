"""Many streams of one server: who gets one, who waits, who may see it, and when it ends."""

import asyncio
import contextlib
import gc
import re
import threading
import time
import weakref

import httpx
import numpy as np
import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")

from longlive_optimized.demo.server import rtc
from longlive_optimized.demo.server import sessions as sessions_module
from longlive_optimized.demo.server.access import ClientBuckets, Refused, stream_token
from longlive_optimized.demo.server.sessions import PRIVATE, check_name, private_name
from longlive_optimized.demo.server.settings import ServerSettings
from longlive_optimized.demo.server.wishes import Wishes
from support.event_loop import as_test, nothing_left
from support.painted import level, painted, read_level
from support.room import numbers, value
from support.server_peer import Viewer, visit_all

PAINTED = painted()
TOKEN = "correct horse battery"


def with_streams(load=PAINTED, **settings):
    """Run a test with an open server and a client of it; no task of it may be left afterwards."""

    def decorate(test):
        async def run(**values):
            async with visit_all(load, ServerSettings(**{"sessions_per_client": 20} | settings)) as (sessions, http):
                await asyncio.wait_for(test(sessions, http, **values), 60)
            await nothing_left()

        return as_test(run, test, 2)

    return decorate


async def until(look, seconds: float = 20):
    """What ``look`` returns once it is something."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.01)
    return found


async def refused(viewer: Viewer) -> tuple[int, dict]:
    """How a viewer is refused."""
    with pytest.raises(httpx.HTTPStatusError) as caught:
        await viewer.join()
    await viewer.leave()
    return caught.value.response.status_code, caught.value.response.json()


@with_streams(sessions=3)
async def test_streams_have_prompts_viewers_and_settings_of_their_own(sessions, http):
    one, two = await Viewer(http, stream="/s/one").join(), await Viewer(http, stream="/s/two").join()
    shared, guest = await Viewer(http).join(), await Viewer(http, stream="/s/two").join()
    await one.ask("switch_prompt", prompt="a boat")
    await two.ask("set_overlay", enabled=True)
    await guest.wait_for(lambda m: m["type"] == "state" and m["overlay"])
    for viewer, prompt in ((one, "a boat"), (shared, "a fox")):
        while read_level(await viewer.picture()) != level(prompt):
            pass
    rooms = {name: sessions.room(name) for name in ("main", "one", "two")}
    assert {name: room.people for name, room in rooms.items()} == {"main": 1, "one": 1, "two": 2}
    assert [rooms[name].feed.overlay for name in rooms] == [False, False, True]
    assert not any(m.get("changed") for viewer in (shared, guest) for m in viewer.heard if m.get("by") == "viewer 9")
    assert (await http.get("/s/two/status")).json()["viewers"] == 2
    assert [hello.hello["stream"] for hello in (one, two, shared)] == ["one", "two", "main"]
    await one.ask("reset")
    await until(lambda: "reset" in rooms["one"].feed.pipeline.calls)
    assert not rooms["two"].feed.pipeline.calls and not rooms["main"].feed.pipeline.calls
    await asyncio.gather(*(viewer.leave() for viewer in (one, two, shared, guest)))


@with_streams(sessions=3)
async def test_the_shared_stream_has_a_name_too(sessions, http):
    viewer = await Viewer(http, stream="/s/main").join()
    assert sessions.main.people == 1 and len(sessions._rooms) == 1
    await viewer.leave()


@with_streams(sessions=3)
async def test_who_opens_a_stream_chooses_what_is_fixed(sessions, http):
    wishes = {"prompt": "a boat", "preset": "ultra", "height": 48, "width": 128, "seed": 7}
    viewer = await Viewer(http, stream="/s/mine", wishes=wishes).join()
    assert (viewer.hello["height"], viewer.hello["width"]) == (48, 128)
    picture = await viewer.picture()
    assert picture.shape == (48, 128, 3)
    config = sessions.room("mine").feed.pipeline.config
    assert (config.seed, config.denoising_steps, config.target_fps) == (7, (1000, 250), 40)
    assert config.model_fps == 16
    assert sessions.room("mine").feed.prompt.prompt == "a boat"
    again = await Viewer(http, stream="/s/mine", wishes=wishes).join()  # a reload
    status, answer = await refused(Viewer(http, stream="/s/mine", wishes={"seed": 8}))
    assert (status, answer["code"]) == (409, "open") and "another seed" in answer["error"]
    await asyncio.gather(viewer.leave(), again.leave())


@with_streams(sessions=3)
@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"preset": "warp"}, "preset"),
        ({"prompt": " "}, "prompt"),
        ({"height": 50}, "height"),
        ({"seed": -1}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"speed": 3}, "speed"),
        ({"height": 4096, "width": 4096}, "at most 64x128 pixels"),
    ],
)
async def test_bad_wishes_are_named_and_open_nothing(sessions, http, wishes, words):
    status, answer = await refused(Viewer(http, stream="/s/mine", wishes=wishes))
    assert status == 422 and words in answer["error"] and list(sessions._rooms) == ["main"]


@with_streams(sessions=3)
@pytest.mark.parametrize("name", ["a b", "x" * 65, "ä", "a.b", "%2e%2e"])
async def test_names_that_are_none(sessions, http, name):
    assert (await http.get(f"/s/{name}")).status_code in (404, 422)
    assert (await http.get(f"/s/{name}/status")).status_code in (404, 422)
    answer = await http.post(f"/s/{name}/offer", json={"type": "offer", "sdp": ""})
    assert answer.status_code in (404, 422) and list(sessions._rooms) == ["main"]


@with_streams(sessions=3)
async def test_the_page_of_a_stream_is_the_page(sessions, http):
    answer = await http.get("/s/one?preset=ultra")
    assert (answer.status_code, answer.headers["location"]) == (307, "one/?preset=ultra")
    page = await http.get("/s/one/")
    assert page.text == (await http.get("/")).text
    for name in re.findall(r'(?:src|href)="([\w.]+)"', page.text):
        assert (await http.get(f"/s/one/{name}")).status_code == 200
    assert list(sessions._rooms) == ["main"]  # to look is not to open
    status = (await http.get("/s/one/status")).json()
    assert (status["phase"], status["viewers"], status["queue"]) == ("ready", 0, None)
    for path in ("/s/one/recording.mp4", "/s/one/picture?seat=x&role=reference"):
        answer = await http.request("GET" if "mp4" in path else "POST", path)
        assert (answer.status_code, answer.json()["code"]) == (404, "no stream")


@with_streams(private=True, sessions=3)
async def test_each_visitor_gets_a_private_stream(sessions, http):
    places = [(await http.get("/?seed=3")).headers["location"] for _ in range(2)]
    assert places[0] != places[1] and all(re.fullmatch(r"s/p-[\w-]{16}/\?seed=3", place) for place in places)
    one, two = await Viewer(http).join(), await Viewer(http).join()  # as programs do
    assert one.hello["stream"] != two.hello["stream"] and one.hello["stream"].startswith(PRIVATE)
    await one.ask("switch_prompt", prompt="a boat")
    friend = await Viewer(http, stream=f"/s/{one.hello['stream']}").join()
    assert one.hello["link"] == f"s/{one.hello['stream']}/"
    for viewer, prompt in ((one, "a boat"), (friend, "a boat"), (two, "a fox")):
        while read_level(await viewer.picture()) != level(prompt):
            pass
    figures, status = (await http.get("/metrics")).text, (await http.get("/status")).text
    for viewer in (one, two):  # whoever knows the name may watch
        assert viewer.hello["stream"] not in figures and viewer.hello["stream"] not in status
    assert 'longlive_stream_viewers{stream="private 1"} 2' in figures
    assert (await http.get("/recording.mp4")).json()["code"] == "no stream"
    await asyncio.gather(*(viewer.leave() for viewer in (one, two, friend)))


@with_streams(sessions=2)
async def test_who_comes_too_late_waits_and_is_told(sessions, http):
    one, two = await Viewer(http, stream="/s/one").join(), await Viewer(http, stream="/s/two").join()
    await asyncio.gather(numbers(one, 3), numbers(two, 3))
    three, four = await Viewer(http, stream="/s/three").join(), await Viewer(http, stream="/s/four").join()
    states = [await viewer.wait_for(lambda m: m["type"] == "state") for viewer in (three, four)]
    assert [state["queue"] for state in states] == [1, 2]
    assert states[0]["status"]["phase"] == "queued" and states[0]["effective"]["preset"] == "balanced"
    status = (await http.get("/status")).json()["sessions"]
    assert (status["limit"], status["open"], status["queued"]) == (2, 2, 2)
    assert (await http.get("/s/four/status")).json()["queue"] == 2
    await four.ask("switch_prompt", prompt="a boat")  # is kept
    await one.leave()
    await until(lambda: not sessions.room("one").people)
    sessions._rest(sessions.room("one"))  # the time that it stays open is over
    await three.wait_for(lambda m: m["type"] == "state" and m["queue"] is None)
    await four.wait_for(lambda m: m["type"] == "state" and m["queue"] == 1)
    await numbers(three, 3)
    await numbers(two, 20)
    await two.leave()
    await until(lambda: not sessions.room("two").people)
    sessions._rest(sessions.room("two"))
    assert read_level(await four.picture()) == level("a boat")
    await asyncio.gather(three.leave(), four.leave())


@with_streams(sessions=1, max_queued=1)
async def test_a_full_queue_says_so(sessions, http):
    one, two = await Viewer(http, stream="/s/one").join(), await Viewer(http, stream="/s/two").join()
    status, answer = await refused(Viewer(http, stream="/s/three"))
    assert (status, answer["code"]) == (503, "full")
    assert answer["error"] == "all places are taken, and 1 streams wait for one: try again later"
    figures = (await http.get("/metrics")).text
    assert (
        'longlive_sessions_refused_total{code="full"} 1' in figures and value(figures, "longlive_sessions_queued") == 1
    )
    guest = await Viewer(http, stream="/s/one").join()  # it is open
    await asyncio.gather(one.leave(), two.leave(), guest.leave())


@with_streams(sessions=1, max_queued=0)
async def test_the_shared_stream_gives_its_place_to_those_who_watch(sessions, http):
    assert sessions.main.feed.pipeline
    one = await Viewer(http, stream="/s/one").join()
    await numbers(one, 3)
    assert sessions.main.feed.pipeline is None and sessions.position(sessions.main) is None
    late = await Viewer(http).join()  # of the shared one, which is open to all: it waits whatever the queue's length
    assert (await late.wait_for(lambda m: m["type"] == "state"))["queue"] == 1
    await one.leave()
    await until(lambda: not sessions.room("one").people)
    sessions._rest(sessions.room("one"))
    await numbers(late, 3)
    await late.leave()


@with_streams(keep_seconds=0.5, sessions=3)
async def test_a_stream_without_viewers_keeps_its_place_for_a_while(sessions, http):
    viewer = await Viewer(http, stream="/s/one").join()
    await numbers(viewer, 20)
    await viewer.ask("switch_prompt", prompt="a boat")
    room = sessions.room("one")
    made = room.feed.pipeline
    await viewer.leave()
    await until(lambda: not room.people)
    blocks = len(made.blocks)
    await asyncio.sleep(0.2)
    assert len(made.blocks) <= blocks + 1  # one may have been under way
    back = await Viewer(http, stream="/s/one").join()
    await asyncio.sleep(0.6)
    assert sessions.room("one") is room and room.feed.pipeline is made  # they came back in time
    await back.leave()
    await until(lambda: "one" not in sessions._rooms)
    await until(lambda: room.feed.pipeline is None)
    assert 'stream="one"' not in (await http.get("/metrics")).text
    assert sessions.main.feed.pipeline  # the shared one stays
    new = await Viewer(http, stream="/s/one").join()
    assert read_level(await new.picture()) == level("a fox")
    await new.leave()


@with_streams(sessions=3)
async def test_who_does_not_come_keeps_no_place(sessions, http):
    viewer = Viewer(http)
    await viewer.connection.setLocalDescription(await viewer.connection.createOffer())
    sdp = viewer.connection.localDescription.sdp
    await viewer.leave()
    before, rtc.CONNECT_SECONDS = rtc.CONNECT_SECONDS, 0.2
    try:
        assert (await http.post("/s/one/offer", json={"type": "offer", "sdp": sdp})).status_code == 200
        assert "one" in sessions._rooms
        await until(lambda: "one" not in sessions._rooms, 5)
    finally:
        rtc.CONNECT_SECONDS = before


@with_streams(sessions=1)
async def test_who_leaves_the_queue_is_forgotten(sessions, http):
    one, two = await Viewer(http, stream="/s/one").join(), await Viewer(http, stream="/s/two").join()
    three = await Viewer(http, stream="/s/three").join()
    before, sessions_module.QUEUE_KEEP = sessions_module.QUEUE_KEEP, 0.2
    try:
        await two.leave()
        await until(lambda: "two" not in sessions._rooms)
    finally:
        sessions_module.QUEUE_KEEP = before
    await three.wait_for(lambda m: m["type"] == "state" and m["queue"] == 1)
    await asyncio.gather(one.leave(), three.leave())


@with_streams(sessions=8, sessions_per_client=2)
async def test_a_client_may_have_so_many_streams(sessions, http):
    one, two = await Viewer(http, stream="/s/one").join(), await Viewer(http, stream="/s/two").join()
    status, answer = await refused(Viewer(http, stream="/s/three"))
    assert (status, answer["code"]) == (429, "too many") and "2 streams" in answer["error"]
    elsewhere = httpx.ASGITransport(http._transport.app, client=("10.0.0.9", 1))
    async with httpx.AsyncClient(transport=elsewhere, base_url="http://localhost") as other:
        three = await Viewer(other, stream="/s/three").join()
    guest = await Viewer(http, stream="/s/three").join()  # to watch another's is no stream of one's own
    await asyncio.gather(*(viewer.leave() for viewer in (one, two, three, guest)))


@with_streams(sessions=20)
async def test_streams_are_not_opened_in_a_rush(sessions, http):
    for i in range(10):
        answer = await http.post(f"/s/s{i}/offer", json={"type": "offer", "sdp": ""})
        assert answer.status_code == (400 if i < 8 else 429), answer.text
    assert list(sessions._rooms) == ["main"]  # who is not let in leaves none behind


@with_streams(sessions=2)
async def test_a_stream_that_cannot_be_opened_is_told(sessions, http):
    source = sessions.worker.source

    def fail(config):
        raise ValueError("no memory for it")

    source.open = fail
    before, sessions_module.FAILED_KEEP = sessions_module.FAILED_KEEP, 0.5
    viewer = await Viewer(http, stream="/s/one", wishes={"seed": 7}).join()
    sessions_module.FAILED_KEEP = before
    state = await viewer.wait_for(lambda m: m["type"] == "state")
    assert (state["status"]["phase"], state["status"]["detail"]) == ("failed", "no memory for it")
    assert (await refused(Viewer(http, stream="/s/one")))[1]["code"] == "failed"
    bye = await viewer.wait_for(lambda m: m["type"] == "bye")
    assert bye["reason"] == "no memory for it" and "one" not in sessions._rooms
    await viewer.leave()
    shared = await Viewer(http).join()
    await numbers(shared, 5)
    await shared.leave()


@with_streams(painted(0.12))
async def test_as_many_as_the_device_can_make(sessions, http):
    """10 ms a frame: five at 16 frames a second, once that is known; until then the second one waits."""
    viewers = [await Viewer(http, stream=f"/s/s{i}").join() for i in range(7)]
    await until(lambda: (sessions.status()["sessions"]["open"], len(sessions._queue)) == (5, 2), 40)
    await asyncio.sleep(1)
    assert sessions.status()["sessions"]["open"] == 5 and 0.7 < sessions.status()["sessions"]["load"] <= 0.95
    refusal = await viewers[0].ask("set_optimization_preset", preset="quality_stream")
    assert refusal["type"] == "done"  # no more than it has
    refusal = await viewers[0].ask("settings", playback_speed=2)
    assert refusal["type"] == "error" and "no room for playback_speed 2.0 beside the other streams" in refusal["error"]
    assert (await viewers[0].ask("settings", playback_speed=0.5))["type"] == "done"  # which makes room for one more
    await until(lambda: (sessions.status()["sessions"]["open"], len(sessions._queue)) == (6, 1), 40)
    await asyncio.gather(*(viewer.leave() for viewer in viewers))


@with_streams(sessions=3)
async def test_figures_of_each_stream_and_of_all(sessions, http):
    one, two = await Viewer(http).join(), await Viewer(http, stream="/s/two").join()
    await asyncio.gather(numbers(one, 40), numbers(two, 40))
    figures, status = (await http.get("/metrics")).text, (await http.get("/status")).json()
    made = [value(figures, f'longlive_stream_frames_generated_total{{stream="{name}"}}') for name in ("main", "two")]
    assert min(made) >= 40 and value(figures, "longlive_frames_generated_total") == sum(made)
    shown = [value(figures, f'longlive_stream_frame_interval_ms_count{{stream="{name}"}}') for name in ("main", "two")]
    assert min(shown) >= 30 and value(figures, "longlive_frame_interval_ms_count") == sum(shown)
    assert value(figures, "longlive_viewers") == 2 and value(figures, "longlive_sessions_open") == 2
    assert [stream["stream"] for stream in status["streams"]] == ["main", "two"]
    for stream in status["streams"]:
        assert 10 < stream["fps"] < 18 and 61 < stream["p99_interval_ms"] < 400 and stream["viewers"] == 1
        assert (stream["height"], stream["width"], stream["preset"]) == (64, 128, "balanced")
    assert "streams" not in (await http.get("/s/two/status")).json()  # other people's are none of theirs
    await asyncio.gather(one.leave(), two.leave())


@with_streams(host="0.0.0.0", token=TOKEN, sessions=3, record_seconds=10)
async def test_a_streams_token_opens_that_stream_alone(sessions, http):
    one, two = await Viewer(http, stream="/s/one").join(), await Viewer(http, stream="/s/two").join()
    await asyncio.gather(numbers(one, 30), numbers(two, 30))
    place, _, token = one.hello["link"].partition("#token=")
    assert place == "s/one/" and token == stream_token(TOKEN, "one") and TOKEN not in one.hello["link"]
    bearer = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(transport=http._transport, base_url="http://gpu.example", headers=bearer) as friend:
        guest = await Viewer(friend, stream="/s/one").join()
        assert (await friend.get("/s/one/status")).status_code == 200
        assert (await friend.get("/s/one/recording.mp4")).status_code == 200
        for path in (
            "/s/two/status",
            "/s/two/recording.mp4",
            "/status",
            "/metrics",
            "/recording.mp4",
            "/s/main/status",
        ):
            answer = await friend.get(path)
            assert (answer.status_code, answer.json()["code"]) == (401, "token"), path
        assert (await friend.post("/s/two/offer", json={"type": "offer", "sdp": ""})).status_code == 401
        answer = await friend.post(f"/s/two/picture?seat={two.hello['seat']}&role=reference", content=b"")
        assert answer.status_code == 401
    answer = await http.post(f"/s/one/picture?seat={two.hello['seat']}&role=reference", content=b"")
    assert (answer.status_code, answer.json()["code"]) == (403, "seat")  # of another stream
    await asyncio.gather(*(viewer.leave() for viewer in (one, two, guest)))


@with_streams(origins=("https://demo.example",), sessions=3)
async def test_pages_elsewhere_may_use_a_stream_as_the_shared_one(sessions, http):
    mine, evil = {"Origin": "https://demo.example"}, {"Origin": "https://evil.example"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    for path in ("/s/one/offer", "/s/one/status", "/s/one/recording.mp4", "/s/one/picture"):
        answer = await http.options(path, headers=mine | asks)
        assert answer.status_code == 204 and answer.headers["access-control-allow-origin"] == mine["Origin"]
        assert (await http.options(path, headers=evil | asks)).status_code == 403
    answer = await http.get("/s/one/status", headers=mine)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == mine["Origin"]


@with_streams(sessions=6, keep_seconds=0.2)
async def test_people_who_come_and_go_leave_nothing_behind(sessions, http):
    """Streams, tasks, threads and tracks are as many as before."""
    sessions._openings = ClientBuckets(1000.0, 1000, time.monotonic)

    made: list[weakref.ref] = []

    async def come_and_go(i: int) -> None:
        with contextlib.suppress(httpx.HTTPStatusError):  # the queue may be full
            viewer = await Viewer(http, stream=f"/s/{'abcdefgh'[i % 8]}").join()
            room = sessions.room(viewer.hello["stream"])
            made.extend(map(weakref.ref, [room, room.feed, *room._peers, *(peer.track for peer in room._peers)]))
            del room
            if i % 3:
                await viewer.wait_for(lambda m: m["type"] == "block")
            await viewer.leave()

    async def closed() -> None:
        await until(lambda: list(sessions._rooms) == ["main"] and not sessions._closing)

    def counted() -> tuple[int, int]:
        pools = "asyncio_", "AnyIO"  # which fill up
        threads = [one for one in threading.enumerate() if not one.name.startswith(pools)]
        return len(asyncio.all_tasks()), len(threads)

    await asyncio.gather(*map(come_and_go, range(8)))
    await closed()
    before = counted()
    for turn in range(4):
        await asyncio.gather(*(come_and_go(8 * turn + i) for i in range(8)))
    await closed()
    assert len(made) >= 4 * 40
    await until(lambda: all(now <= then for now, then in zip(counted(), before, strict=True)))  # threads end in a while
    await until(lambda: (gc.collect(), not any(one() for one in made))[1])
    assert not sessions._timers and not sessions._queue


@with_streams(sessions=1, keep_seconds=1)
async def test_a_shared_stream_that_cannot_be_opened_for_nobody_comes_back(sessions, http):
    """Its viewer has just left when it gets a place, and there is no memory for it."""
    one = await Viewer(http, stream="/s/one").join()
    await one.frame()
    waits = await Viewer(http).join()
    await one.leave()
    await until(lambda: not sessions.room("one").people)
    await asyncio.sleep(0.5)
    source, open_stream = sessions.worker.source, sessions.worker.source.open

    def fail(config):
        raise MemoryError("no memory for it")

    source.open = fail
    await waits.leave()
    await until(lambda: sessions.main.feed.status.phase == "failed")
    source.open = open_stream
    await until(lambda: "main" not in sessions.names)
    viewer = await Viewer(http).join()
    await viewer.frame()
    await viewer.leave()


def test_names():
    for name in ("a", "A-b_9", "x" * 64, private_name()):
        check_name(name)
    for name in ("", "a b", "x" * 65, "../x", "a/b", "☂"):
        with pytest.raises(Refused, match="1 to 64 letters"):
            check_name(name)
    assert len({private_name() for _ in range(1000)}) == 1000


def test_wishes_that_wish_for_nothing_change_nothing():
    from longlive_optimized.demo.scope_integration import ScopeOptimizationConfig

    usual = ScopeOptimizationConfig.preset_speed(height=320, width=576, seed=3)
    assert Wishes().config(usual) is usual and Wishes().differ_from(usual) == []
    wished = Wishes(preset="ultra", seed=4).config(usual)
    assert wished == ScopeOptimizationConfig.preset_ultra(height=320, width=576, seed=4)
    assert Wishes(height=576, width=320, seed=3).differ_from(usual) == ["height", "width"]
    assert np.prod(Wishes(height=576, width=320).config(usual).size) == 320 * 576


def test_a_streams_token_tells_nothing_of_the_servers():
    tokens = {stream_token(token, name) for token in (TOKEN, TOKEN + "!") for name in ("a", "b", "ab")}
    assert len(tokens) == 6 and all(len(token) == 32 and token.isascii() for token in tokens)


def test_clients_are_limited_each_by_themselves():
    now = 0.0
    buckets = ClientBuckets(1.0, 2, lambda: now, most=3)
    assert [buckets.take("a") for _ in range(3)] == [True, True, False] and buckets.take("b")
    now = 1.0
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    for client in "cdef":
        assert buckets.take(client)
    assert len(buckets._buckets) == 3
