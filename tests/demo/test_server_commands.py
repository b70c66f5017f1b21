"""What viewers say to a stream, and see done, over real WebRTC on loopback."""

import asyncio
import time

import numpy as np
import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")
from longlive_optimized.demo.scope_integration import LatencyStats, ScopeOptimizationConfig
from longlive_optimized.demo.server.source import EngineSource
from support.painted import level, painted, read_level, read_number
from support.room import in_room, numbers, value
from support.server_peer import Viewer

MOVING = "a white circle and a red square move left over a black night"


def tiny(progress):
    config = ScopeOptimizationConfig.preset_balanced(height=64, width=96)
    return EngineSource("tiny", config, "cpu", progress)


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
    other.heard.clear()
    for i in range(count):
        viewer.say({"type": "switch_prompt", "prompt": f"wish {i}", "id": i})
    await viewer.wait_for(lambda m: m.get("id") == count - 1)
    assert room.feed.prompt.prompt == f"wish {count - 1}"
    asked = len(room.feed.pipeline.painted)
    answers = [m["id"] for m in viewer.heard if m["type"] == "done"]
    assert answers == [*range(count - 1)]  # the last one has been taken out
    state = await other.wait_for(lambda m: m["type"] == "state" and m["prompt"] == f"wish {count - 1}")
    assert (state["changed"], state["by"]) == ("switch_prompt", "viewer 1")
    assert sum(m["type"] == "state" for m in other.heard) <= 25 + 10 * (time.monotonic() - began)
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
