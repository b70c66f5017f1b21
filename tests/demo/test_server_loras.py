"""LoRAs of a server: one viewer turns what acts in all streams."""

import asyncio
import contextlib
import dataclasses
import json
import math
import time

import numpy as np
import pytest
import torch

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")

from demo.test_server_story import (
    CIRCLE,
    SIZE,
    SQUARE,
    Watched,
    made,
    played,
    replayed,
    same,
    stop,
    told_blocks,
    until,
)
from demo.test_server_streams import feed_of, working

from longlive_optimized import LongLiveEngine, generate
from longlive_optimized.demo.scope_integration import OptimizedScopePipeline, ScopeOptimizationConfig
from longlive_optimized.demo.server import loras as loras_module
from longlive_optimized.demo.server.loras import Loras, served
from longlive_optimized.demo.server.settings import ServerSettings
from longlive_optimized.demo.server.source import EngineSource
from longlive_optimized.story import Story
from longlive_optimized.weights import CheckpointError
from longlive_optimized.weights.user_lora import UserLora
from support.event_loop import as_test, nothing_left
from support.loras import for_the_built_in_model
from support.networks import stored
from support.painted import painted
from support.server_peer import Viewer, visit, visit_all
from support.sink import Sink

INK, OIL = 0.8, 0.25
QUICK = 0.05


class Source(Watched):
    """With two LoRAs. merges: when set_loras was called, and the scales."""

    def __init__(self, folder):
        self.files = [
            for_the_built_in_model(folder / f"{name}.safetensors", i) for i, name in enumerate(("ink", "oil"))
        ]
        super().__init__(served(dict(zip(map(str, self.files), (INK, OIL), strict=True))))
        self.engine.keep_loras(self.engine.loras)
        self.merges: list[tuple[float, dict[str, float]]] = []
        self.set_loras = self.engine.set_loras
        self.engine.set_loras = self._set_loras
        self.fails: list[Exception] = []

    def _set_loras(self, loras):
        if self.fails:
            raise self.fails.pop(0)
        self.set_loras(loras)
        self.merges.append((time.monotonic(), {lora.path.stem: lora.scale for lora in loras}))

    def begin(self):
        """As it was loaded."""
        self.set_loras([UserLora(path, scale) for path, scale in zip(self.files, (INK, OIL), strict=True)])
        self.blocks.clear(), self.merges.clear(), self.fails.clear()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return Source(tmp_path_factory.mktemp("loras"))


@pytest.fixture(autouse=True)
def merges_follow_each_other(monkeypatch):
    monkeypatch.setattr(loras_module, "REST", QUICK)


def with_loras(**settings):
    """Run a test with a server of LoRAs, whose source it is given, and a client of it; however slow the machine is,
    there are places for two streams."""

    def decorate(test):
        async def run(source, **values):
            source.begin()
            async with visit_all(lambda progress: source, ServerSettings(**{"sessions": 2} | settings), CIRCLE) as (
                sessions,
                http,
            ):
                await asyncio.wait_for(test(source, sessions, http, **values), 120)
            await nothing_left()

        return as_test(run, test, 3, "source")

    return decorate


async def told(viewer: Viewer, last: dict | None = None, **scales: float) -> dict:
    """The state in which these scales are in force: the ``last`` one that was heard, or a later one."""

    def is_so(message: dict) -> bool:
        return message["type"] == "state" and message["effective"]["loras"] == {"ink": INK, "oil": OIL} | scales

    return last if last and is_so(last) else await viewer.wait_for(is_so)


def listed(**scales: float) -> list[dict]:
    return [{"name": name, "scale": scale} for name, scale in ({"ink": INK, "oil": OIL} | scales).items()]


def weights(engine) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in stored(engine.model).values()]


def fresh(source, **scales: float) -> LongLiveEngine:
    """An engine that is loaded with these scales."""
    wanted = {"ink": INK, "oil": OIL} | scales
    return LongLiveEngine(
        "tiny", source.engine.config, "cpu", loras=served({str(p): wanted[p.stem] for p in source.files})
    )


@with_loras()
async def test_a_lora_is_turned_for_all_streams(source, sessions, http):
    """Two viewers of the shared stream, and one of another in the midst of its video, who is told by whom."""
    one, two = await Viewer(http).join(), await Viewer(http).join()
    guest = await Viewer(http, stream="/s/lobby").join()
    assert one.hello["loras"] == guest.hello["loras"] == listed()
    assert "loras" in one.hello["commands"]["settings"] and "loras" not in guest.hello["commands"]["settings"]
    state = await told(guest)
    assert state["loras"] == listed()
    main, lobby = sessions.main, sessions.room("lobby")
    await until(lambda: told_blocks(main) > 2 and told_blocks(lobby) > 2)
    scene, at = lobby.feed.frames.scene, told_blocks(lobby)
    assert (await one.ask("settings", loras={"ink": -0.5}))["type"] == "done"
    seen = await two.wait_for(lambda m: m["type"] == "state" and m["changed"] == "settings")
    assert seen["by"] == "viewer 1" and seen["loras"] == listed(ink=-0.5)
    heard = await guest.wait_for(lambda m: m["type"] == "state" and m["changed"] == "loras")
    assert heard["by"] == "viewer 1 of main" and heard["loras"] == listed(ink=-0.5)
    for viewer, last in ((one, None), (two, seen), (guest, heard)):
        await told(viewer, last, ink=-0.5)
    assert all(map(torch.equal, weights(source.engine), weights(fresh(source, ink=-0.5))))
    assert [scales for _, scales in source.merges] == [{"ink": -0.5, "oil": OIL}]
    await until(lambda: told_blocks(lobby) > at + 3)
    (change,) = lobby.feed.story().changes
    assert change.loras == {str(source.files[0]): -0.5} and change.block >= at
    assert lobby.feed.frames.scene == scene  # without a cut
    refused = await guest.ask("settings", loras={"ink": 1.0})
    assert refused["error"].startswith("loras: they act in all streams of the server, and only those who watch the sh")
    await asyncio.gather(*(viewer.leave() for viewer in (one, two, guest)))


@with_loras()
async def test_two_viewers_turn_at_once(source, sessions, http):
    one, two = await Viewer(http).join(), await Viewer(http).join()
    for scale in (0.1, 0.2, 0.3):
        await asyncio.gather(one.ask("settings", loras={"ink": scale}), two.ask("settings", loras={"oil": -scale}))
    for viewer in (one, two):
        await told(viewer, ink=0.3, oil=-0.3)
    await one.ask("settings", loras={"ink": 1.5})
    await two.ask("settings", loras={"ink": 0.5, "oil": 0.0})  # the last word counts
    for viewer in (one, two):
        await told(viewer, ink=0.5, oil=0.0)
    await asyncio.gather(one.leave(), two.leave())


@with_loras()
async def test_a_story_turns_no_faster_than_a_viewer(source, sessions, http, monkeypatch):
    monkeypatch.setattr(loras_module, "REST", 0.5)
    viewer, room = await Viewer(http).join(), sessions.main
    await made(source, 1)
    turns = [{"block": i, "loras": {"ink.safetensors": i / 10}} for i in range(1, 4)]
    story = {"version": 1, **SIZE, "blocks": 4, "changes": turns, "prompts": [{"block": 0, "prompt": SQUARE}]}
    story |= {"loras": {"ink.safetensors": 0}}
    wanted = played(Story.read(sessions.worker.loras.ours(Story.read(story))), fresh(source, ink=0.0, oil=0.0))
    assert (await viewer.ask("replay", story=story))["type"] == "done"
    shown = await replayed(room, source, 4)
    assert np.diff([at for at, _ in source.merges]).min() > 0.49
    assert [scales["ink"] for _, scales in source.merges] == [0.0, 0.1, 0.2, 0.3]
    assert same(shown, wanted)
    await viewer.leave()


@with_loras(sessions=2)
async def test_a_slider_is_merged_now_and_then(source, sessions, http, monkeypatch):
    """However fast it is moved, and the less often the more streams are watched; the last position is in force."""
    monkeypatch.setattr(loras_module, "REST", 0.4)
    viewer = await Viewer(http).join()
    guest = await Viewer(http, stream="/s/lobby").join()
    await until(lambda: told_blocks(sessions.main) and told_blocks(sessions.room("lobby")))
    guest.heard.clear()
    began = time.monotonic()
    for i in range(300):
        viewer.say({"type": "settings", "loras": {"ink": i / 300}, "id": i})
        await asyncio.sleep(0.004)
    await viewer.wait_for(lambda m: m.get("id") == 299)
    assert [m["id"] for m in viewer.heard if m["type"] == "done"] == [*range(299)]
    for each in (viewer, guest):
        await told(each, ink=299 / 300)
    times = [at for at, _ in source.merges]
    assert np.diff(times).min() > 0.79 and 2 <= len(times) <= 2 + (time.monotonic() - began) / 0.8
    states = sum(m["type"] == "state" for m in guest.heard)
    assert states <= 35 + 10 * (time.monotonic() - began)
    await asyncio.gather(viewer.leave(), guest.leave())


@with_loras()
async def test_what_is_no_scale_changes_nothing(source, sessions, http):
    viewer = await Viewer(http).join()
    await made(source, 1)
    for loras, reason in (
        ('{"ikn": 1}', "loras: no LoRA 'ikn' is served; did you mean 'ink'?; ink, oil are"),
        ('{"ink.safetensors": 1}', "no LoRA 'ink.safetensors' is served"),
        ('{"ink": 0.1, "chalk": 1}', "no LoRA 'chalk' is served"),
        ('{"ink": NaN}', "loras.ink: Input should be"),
        ('{"ink": Infinity}', "loras.ink: Input should be"),
        ('{"ink": 1e999}', "loras.ink: Input should be"),
        ('{"ink": 5.1}', "loras.ink: Input should be less than or equal to 5"),
        ('{"ink": -6}', "loras.ink: Input should be greater than or equal to -5"),
        ('{"ink": "1"}', "loras.ink: Input should be a valid number"),
        ('{"ink": true}', "loras.ink: Input should be a valid number"),
        ('{"ink": null}', "loras.ink: Input should be a valid number"),
        ("{}", "loras: Dictionary should have at least 1 item"),
        ('["ink", 1]', "loras: Input should be an object"),
        (json.dumps({f"x{i}": 1 for i in range(65)}), "loras: Dictionary should have at most 64 items"),
    ):
        viewer.say(f'{{"type": "settings", "playback_speed": 2.0, "loras": {loras}, "id": 7}}')
        answer = await viewer.wait_for(lambda m: m.get("id") == 7)
        assert answer["type"] == "error" and reason in answer["error"], answer
    assert (await viewer.ask("settings", loras={"ink": 0.5}, shown_fps=30))["type"] == "error"  # nor by half
    blocks = len(source.blocks)
    await made(source, blocks + 2)
    assert not source.merges and sessions.main.config.playback_speed == 1.0
    assert (await viewer.ask("settings", loras={"ink": 0.5}, playback_speed=2.0))["type"] == "done"
    state = await told(viewer, ink=0.5)
    assert state["effective"]["playback_speed"] == 2.0
    await viewer.leave()


@with_loras(private=True, keep_seconds=0.2)
async def test_nobody_turns_what_strangers_see(source, sessions, http):
    """On a server of private streams, the one that is called like the shared one too."""
    for stream in ("/s/mine", "/s/main"):
        viewer = await Viewer(http, stream=stream).join()
        assert "loras" not in viewer.hello["commands"]["settings"] and viewer.hello["loras"] == listed()
        refused = await viewer.ask("settings", loras={"ink": 1.0})
        assert refused["error"].endswith("and none is shared: they stay as the server was started")
        story = {"version": 1, **SIZE, "blocks": 2, "prompts": [{"block": 0, "prompt": SQUARE}]}
        assert "other scales of LoRAs" in (await viewer.ask("replay", story=story))["error"]
        await until(lambda stream=stream: told_blocks(sessions.room(stream.rpartition("/")[2])))
        as_served = {"loras": {"ink.safetensors": INK, "oil.safetensors": OIL}}
        assert (await viewer.ask("replay", story=story | as_served))["type"] == "done"
        await viewer.leave()
    assert not source.merges


def test_a_server_without_loras_says_so():
    """As each replica of a cluster is."""

    async def scene():
        async with visit_all(painted(), ServerSettings(private=True, sessions=2)) as (_, http):
            viewer = await Viewer(http, stream="/s/one").join()
            assert viewer.hello["loras"] == [] and "loras" not in viewer.hello["commands"]["settings"]
            refused = await viewer.ask("settings", loras={"ink": 1.0})
            assert refused["error"] == "loras: none are served: start the server with --lora, which no cluster has"
            state = await viewer.wait_for(lambda m: m["type"] == "state")
            assert state["loras"] == [] and state["effective"]["loras"] == {}
            await viewer.leave()
        async with visit(painted()) as (_, http):
            viewer = await Viewer(http).join()
            assert "none are served" in (await viewer.ask("settings", loras={"ink": 1.0}))["error"]
            await viewer.leave()

    asyncio.run(scene())


@with_loras()
async def test_a_paused_stream_is_told_too(source, sessions, http):
    viewer = await Viewer(http).join()
    await made(source, 1)
    await stop(viewer, sessions.main, source)
    await viewer.ask("settings", loras={"oil": 1.0})
    await told(viewer, oil=1.0)
    await viewer.leave()


@with_loras()
async def test_a_merge_that_cannot_be(source, sessions, http, monkeypatch):
    monkeypatch.setattr(loras_module, "FIRST_DELAY", 0.1)
    viewer = await Viewer(http).join()
    guest = await Viewer(http, stream="/s/lobby").join()
    source.fails.append(CheckpointError("ink.safetensors at scale 5 adds NaN"))
    await viewer.ask("settings", loras={"ink": 5.0})
    fault = await viewer.wait_for(lambda m: m["type"] == "error")
    assert fault == {"type": "error", "error": "LoRAs: ink.safetensors at scale 5 adds NaN", "id": None}
    await viewer.wait_for(lambda m: m["type"] == "state" and m["loras"] == listed())  # the wish is given up
    assert not source.merges
    source.fails += [RuntimeError("out of memory"), RuntimeError("out of memory")]
    await viewer.ask("settings", loras={"ink": 0.5})  # half-way: it is tried until it works
    assert (await viewer.wait_for(lambda m: m["type"] == "error"))["error"] == "LoRAs: out of memory"
    for each in (viewer, guest):
        await told(each, ink=0.5)
    blocks = len(source.blocks)
    await made(source, blocks + 4)
    assert not any(m["type"] == "error" for m in guest.heard)
    await asyncio.gather(viewer.leave(), guest.leave())


async def a_session(viewer, source):
    """LoRAs are turned, prompts and presets changed, in the midst of blocks."""
    await made(source, 2)
    await viewer.ask("settings", loras={"ink": 0.1})
    await until(lambda: source.merges)
    await made(source, len(source.blocks) + 2)
    await viewer.ask("switch_prompt", prompt=SQUARE, transition_blocks=2)
    await viewer.ask("settings", loras={"ink": 1.5, "oil": -0.5})
    await until(lambda: len(source.merges) == 2)
    await made(source, len(source.blocks) + 5)  # beyond the window
    await viewer.ask("settings", loras={"oil": 0.0})
    await until(lambda: len(source.merges) == 3)
    await made(source, len(source.blocks) + 2)


@with_loras()
async def test_a_session_is_replayed_to_the_last_bit(source, sessions, http, tmp_path):
    viewer, room = await Viewer(http).join(), sessions.main
    await a_session(viewer, source)
    count = await stop(viewer, room, source)
    first = source.blocks[:count]
    story = (await http.get("/story")).json()
    assert story["loras"] == {"ink.safetensors": INK, "oil.safetensors": OIL}
    assert [change["loras"] for change in story["changes"]] == [
        {"ink.safetensors": 0.1},
        {"ink.safetensors": 1.5, "oil.safetensors": -0.5},
        {"oil.safetensors": 0.0},
    ]

    # As ``generate --story`` plays it, with the files beside it.
    for file in source.files:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "story.json").write_text(json.dumps(story))
    video = generate(Story.load(tmp_path / "story.json"), device="cpu")
    assert np.array_equal(video.frames, np.concatenate([block for block, _ in first]))

    # By the same server, which has other scales meanwhile.
    source.blocks.clear()
    await viewer.ask("set_paused", paused=False)
    assert (await viewer.ask("replay", story=story))["type"] == "done"
    assert same(await replayed(room, source, count), first)
    state = await told(viewer, ink=1.5, oil=0.0)
    assert state["loras"] == listed(ink=1.5, oil=0.0)
    again = (await http.get("/story")).json()
    assert {**again, "blocks": count} == story
    await viewer.leave()


@with_loras()
async def test_a_story_without_loras_is_played_without_them(source, sessions, http):
    viewer, room = await Viewer(http).join(), sessions.main
    plain = {"version": 1, "seed": 4, **SIZE, "blocks": 3, "prompts": [{"block": 0, "prompt": CIRCLE}]}
    wanted = played(Story.read(plain), LongLiveEngine("tiny", source.engine.config, "cpu"))
    await made(source, 1)
    source.blocks.clear()
    assert (await viewer.ask("replay", story=plain))["type"] == "done"
    assert same(await replayed(room, source, 3), wanted)
    await told(viewer, ink=0.0, oil=0.0)
    await viewer.leave()


@with_loras()
async def test_stories_of_other_loras_are_refused_by_name(source, sessions, http):
    viewer = await Viewer(http).join()
    await made(source, 1)
    story = {"version": 1, **SIZE, "blocks": 4, "prompts": [{"block": 0, "prompt": CIRCLE}]}
    for loras, reason in (
        ({"chalk.pt": 1, "ink.safetensors": 1}, "LoRAs that are not served here, chalk.pt, but ink.safetensors, oil.s"),
        ({"C:\\loras\\chalk.pt": 1, "/x/wax.pt": 1}, "are not served here, chalk.pt, wax.pt, but"),
        ({"a/ink.safetensors": 1, "b/ink.safetensors": 1}, "story must name each LoRA's file once"),
        ({"ink.safetensors": 7}, "story's ink.safetensors must have a scale from -5 to 5, got 7"),
        ({"ink.safetensors": "x"}, "loras.ink.safetensors must be a valid number"),
    ):
        answer = await viewer.ask("replay", story=story | {"loras": loras})
        assert answer["type"] == "error" and reason in answer["error"], answer
        assert "/" not in answer["error"].removeprefix("story").replace("x/", "")
    late = {"loras": {"ink.safetensors": 1}, "changes": [{"block": 1, "loras": {"ink.safetensors": -9}}]}
    assert "must have a scale from -5 to 5" in (await viewer.ask("replay", story=story | late))["error"]
    assert not source.merges and sessions.main.feed.replaying is None
    elsewhere = {"loras": {"D:\\loras\\ink.safetensors": 0.5, "/home/someone/oil.safetensors": OIL}}
    assert (await viewer.ask("replay", story=story | elsewhere))["type"] == "done"
    await told(viewer, ink=0.5)
    await viewer.leave()


@with_loras()
async def test_who_turns_ends_what_is_replayed(source, sessions, http):
    """In each stream: it would be another video. A story that has other scales is for the shared stream alone."""
    viewer, guest = await Viewer(http).join(), await Viewer(http, stream="/s/lobby").join()
    main, lobby = sessions.main, sessions.room("lobby")
    story = {"version": 1, **SIZE, "blocks": 500, "prompts": [{"block": 0, "prompt": SQUARE}]}
    here = {"loras": {"ink.safetensors": INK, "oil.safetensors": OIL}}
    await until(lambda: told_blocks(main) and told_blocks(lobby))
    for other in ({}, {"loras": {"ink.safetensors": INK}}, here | {"changes": [{"block": 3, **here}]}):
        refused = await guest.ask("replay", story=story | other)
        assert refused["error"].startswith("story has other scales of LoRAs than are in force: they act in all streams")
    for each, room in ((viewer, main), (guest, lobby)):
        assert (await each.ask("replay", story=story | here))["type"] == "done"
        await until(lambda room=room: (room.feed.replaying or (0, 0))[0] > 1)
    assert main.feed.replaying and lobby.feed.replaying and not source.merges
    assert (await viewer.ask("settings", loras={"ink": INK}))["type"] == "done"  # as it is: nothing happens
    assert main.feed.replaying and lobby.feed.replaying
    assert (await viewer.ask("settings", loras={"ink": 0.4}))["type"] == "done"
    assert main.feed.replaying is lobby.feed.replaying is None
    await told(guest, ink=0.4)

    # The shared stream's story turns for all, and goes on.
    here = {"loras": {"ink.safetensors": 0.4, "oil.safetensors": OIL}}
    assert (await guest.ask("replay", story=story | here))["type"] == "done"
    await until(lambda: (lobby.feed.replaying or (0, 0))[0] > 1)
    change = {"changes": [{"block": 3, "loras": {"oil.safetensors": 1.0}}]}
    assert (await viewer.ask("replay", story=story | here | change))["type"] == "done"
    assert lobby.feed.replaying
    await told(guest, ink=0.4, oil=1.0)
    assert lobby.feed.replaying is None and main.feed.replaying
    await asyncio.gather(viewer.leave(), guest.leave())


@with_loras()
async def test_a_wish_behind_a_story_counts(source, sessions, http, monkeypatch):
    """What is turned and not merged yet is the story's to say, what is said behind it the viewer's."""
    viewer, room = await Viewer(http).join(), sessions.main
    await made(source, 1)
    monkeypatch.setattr(loras_module, "REST", 2.0)
    await viewer.ask("settings", loras={"ink": 0.1})
    await told(viewer, ink=0.1)
    story = {"version": 1, **SIZE, "blocks": 500, "prompts": [{"block": 0, "prompt": SQUARE}]}
    story |= {"loras": {"ink.safetensors": 0.6, "oil.safetensors": OIL}}
    viewer.say({"type": "settings", "loras": {"ink": -1.0}})  # waits for its turn
    assert (await viewer.ask("replay", story=story))["type"] == "done"
    await told(viewer, ink=0.6)
    await asyncio.sleep(2.2)
    assert room.feed.replaying and [scales["ink"] for _, scales in source.merges] == [0.1, 0.6]
    viewer.say({"type": "replay", "story": story | {"loras": {"ink.safetensors": 0.9}}})
    assert (await viewer.ask("settings", loras={"oil": 0.5}))["type"] == "done"
    await told(viewer, ink=0.9, oil=0.5)
    assert room.feed.replaying is None

    # What was wished for and taken back says nothing any more.
    await viewer.ask("settings", loras={"ink": 0.3})
    await viewer.ask("settings", loras={"ink": 0.9})
    change = {"changes": [{"block": 2, "loras": {"ink.safetensors": 0.2}}]}
    begins = {"loras": {"ink.safetensors": 0.9, "oil.safetensors": 0.5}}
    assert (await viewer.ask("replay", story=story | begins | change))["type"] == "done"
    await told(viewer, ink=0.2, oil=0.5)
    await until(lambda: (room.feed.replaying or (0, 0))[0] > 4)
    assert sessions.worker.loras.merged == {"ink": 0.2, "oil": 0.5}
    await viewer.leave()


@with_loras()
async def test_a_story_that_begins_with_what_is_still_to_be_merged(source, sessions, http, monkeypatch):
    """It is no other video with these scales, in whichever stream: their merge does not end it."""
    viewer, guest = await Viewer(http).join(), await Viewer(http, stream="/s/lobby").join()
    main, lobby = sessions.main, sessions.room("lobby")
    await until(lambda: told_blocks(main) and told_blocks(lobby))
    monkeypatch.setattr(loras_module, "REST", 0.5)  # for each of two streams
    await viewer.ask("settings", loras={"ink": 0.1})
    await told(viewer, ink=0.1)
    await viewer.ask("settings", loras={"ink": 0.6})
    story = {"version": 1, **SIZE, "blocks": 500, "prompts": [{"block": 0, "prompt": SQUARE}]}
    story |= {"loras": {"ink.safetensors": 0.6, "oil.safetensors": OIL}}
    for each in (viewer, guest):
        assert (await each.ask("replay", story=story))["type"] == "done"
    assert [scales["ink"] for _, scales in source.merges] == [0.1]
    await told(viewer, ink=0.6)
    await until(lambda: all((room.feed.replaying or (0, 0))[0] > 1 for room in (main, lobby)))
    assert [scales["ink"] for _, scales in source.merges] == [0.1, 0.6]
    await asyncio.gather(viewer.leave(), guest.leave())


@with_loras()
async def test_stories_of_other_sizes_turn_no_faster(source, sessions, http, monkeypatch):
    monkeypatch.setattr(loras_module, "REST", 0.5)
    viewer = await Viewer(http).join()
    await made(source, 1)
    story = {"version": 1, "blocks": 500, "prompts": [{"block": 0, "prompt": SQUARE}]}
    for i in range(6):
        size = SIZE if i % 2 else {"height": 16, "width": 32}
        scales = {"loras": {"ink.safetensors": i / 10, "oil.safetensors": OIL}}
        assert (await viewer.ask("replay", story=story | size | scales))["type"] == "done"
        await asyncio.sleep(0.1)
    await told(viewer, ink=0.5)
    assert np.diff([at for at, _ in source.merges]).min() > 0.49
    await viewer.leave()


@with_loras()
async def test_a_file_that_is_gone(source, sessions, http, monkeypatch, caplog):
    """Scales stay, and a story that turns it ends; the streams go on, and viewers are told of no folder."""
    monkeypatch.setattr(loras_module, "REST", 1.0)
    viewer, room = await Viewer(http).join(), sessions.main
    await made(source, 1)
    kept, ink = source.files[0].read_bytes(), source.files[0]
    turns = [{"block": i, "loras": {ink.name: i / 100}} for i in range(1, 40)]
    story = {"version": 1, **SIZE, "blocks": 40, "prompts": [{"block": 0, "prompt": SQUARE}], "changes": turns}
    story |= {"loras": {ink.name: INK, "oil.safetensors": OIL}}
    try:
        assert (await viewer.ask("replay", story=story))["type"] == "done"
        await until(lambda: source.merges)
        ink.unlink()
        await until(lambda: room.feed.replaying is None)
        await viewer.ask("settings", loras={"ink": 0.5})
        fault = await viewer.wait_for(lambda m: m["type"] == "error")
        assert fault["error"] == "LoRAs: a LoRA's path must name a file: there is none at ink.safetensors"
        await viewer.wait_for(lambda m: m["type"] == "state" and m["status"]["phase"] == "trouble")
        blocks = len(source.blocks)
        await made(source, blocks + 3)
        assert not any(str(ink.parent) in json.dumps(message) for message in viewer.heard)
        assert len(caplog.records) < 10
    finally:
        ink.write_bytes(kept)
        source.engine.keep_loras(source.engine.loras)
    await viewer.leave()


def test_what_is_wished_while_it_is_merged(source):
    """Whoever asks in the midst of that is told the new scales, not those before."""

    class Meanwhile(Loras):
        @property
        def merged(self):
            before = super().merged
            if self._wish:
                self.merge()
            return before

    source.begin()
    ours = Meanwhile()
    ours.serve(source.engine)
    ours.wish({"ink": 0.4})
    assert ours.wished == {"ink": 0.4, "oil": OIL}


def test_scales_that_come_back_between_two_blocks_are_in_the_story(source):
    """The window was computed anew, though the scales are as they were."""
    source.begin()
    pipeline = OptimizedScopePipeline.on(source.engine, source.config, warm=True)
    pipeline.switch_prompt(CIRCLE)
    first = [pipeline.next_block().clone() for _ in range(2)]
    before = [*source.engine.loras]
    source.engine.set_loras([dataclasses.replace(lora, scale=0.0) for lora in before])
    source.engine.set_loras(before)
    first += [pipeline.next_block().clone() for _ in range(2)]
    story = pipeline.story()
    assert [(change.block, [*change.loras.values()]) for change in story.changes] == [(2, [INK, OIL])]
    other = OptimizedScopePipeline.on(source.engine, source.config, warm=True)
    other.replay(story)
    source.merges.clear()
    assert all(torch.equal(block, other.next_block()) for block in first)
    assert len(source.merges) == 1 and other.story() == story  # none where the video begins
    pipeline.close(), other.close()


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")],
        ),
    ],
)
def test_what_is_turned_beside_another_stream_is_made_again(tmp_path, device):
    """Two streams of one engine, one of them in 8 bits; each story's video is the one that was seen."""
    files = {str(for_the_built_in_model(tmp_path / "ink.safetensors")): 0.1}
    base = ScopeOptimizationConfig.preset_balanced(**SIZE, playback_speed=4, enable_latency_overlay=False)
    seen: list[list[np.ndarray]] = [[], []]
    source = EngineSource("tiny", base, device, loras=served(files))
    with working(source) as worker, contextlib.ExitStack() as stack:
        feeds = [feed_of(worker, config, CIRCLE) for config in (base, base.changed(precision="int8"))]
        sinks = [
            stack.enter_context(Sink(*each)) for each in zip(feeds, (frames.append for frames in seen), strict=True)
        ]
        for scale in (0.1, 0.2, -0.1):
            before = [len(frames) for frames in seen]
            worker.turn_loras({"ink": scale})
            for sink, count in zip(sinks, before, strict=True):
                sink.wait(count + 48)
        stories = [feed.story() for feed in feeds]
    for story, frames in zip(stories, seen, strict=True):
        assert [[*change.loras.values()] for change in story.changes if change.loras] == [[0.2], [-0.1]]
        again = generate(story, device=device).frames
        count = min(len(again), len(frames))
        assert count > 100 and np.array_equal(again[:count], np.stack(frames[:count]))


def test_loras_that_can_be_served(tmp_path):
    paths = [str(for_the_built_in_model(tmp_path / name)) for name in ("ink.safetensors", "ink.pt", "oil.safetensors")]
    assert [(lora.path.name, lora.scale) for lora in served({paths[0]: 1, paths[2]: -5})] == [
        ("ink.safetensors", 1.0),
        ("oil.safetensors", -5.0),
    ]
    with pytest.raises(ValueError, match="two files are called 'ink', by which viewers and stories name a LoRA"):
        served(dict.fromkeys(paths, 1.0))
    for scale in (5.5, -7.0):
        with pytest.raises(ValueError, match=f"ink must have a scale from -5 to 5, got {scale:g}"):
            served({paths[0]: scale})
    with pytest.raises(ValueError, match="finite"):
        served({paths[0]: math.nan})
    for name in ("a\nb.pt", "caf\udce9.pt"):  # the latter as Python has it where it is no UTF-8
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match="which viewers and stories cannot say: rename it"):
            served({str(tmp_path / name): 1.0})
    with pytest.raises(FileNotFoundError, match="there is none at"):
        served({str(tmp_path / "none.pt"): 1.0})
    assert served({}) == [] and Loras().merged == Loras().wished == {} and not Loras().is_due(0.0)
