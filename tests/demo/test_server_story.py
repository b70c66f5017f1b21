"""A server's session as a story, and the story played again: the same video, bit for bit."""

import asyncio
import gc
import json

import numpy as np
import pytest
import torch

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")

import longlive_optimized
from longlive_optimized import LongLiveEngine, OptimizationConfig
from longlive_optimized.demo.scope_integration import OptimizedScopePipeline, ScopeOptimizationConfig, story_recorder
from longlive_optimized.demo.server.settings import ServerSettings
from longlive_optimized.story import Story
from support.event_loop import as_test, nothing_left
from support.server_peer import Viewer, visit

SIZE = {"height": 32, "width": 48}
CIRCLE, SQUARE = "a red circle moves left over a green field", "a blue square rests on a black night"


class Watched:
    """A source whose streams' blocks are kept, with the latents behind each."""

    def __init__(self, loras=()):
        self.config = ScopeOptimizationConfig.preset_balanced(**SIZE, enable_latency_overlay=False)
        self.engine = LongLiveEngine("tiny", OptimizationConfig.of(self.config), "cpu", loras=loras)
        self.blocks: list[tuple[np.ndarray, torch.Tensor]] = []
        self.last = 0, 0  # how many there were when the last one came, and how many its stream's story had

    def open(self, config, snapshot=None):
        pipeline = OptimizedScopePipeline.on(self.engine, config, warm=True, snapshot=snapshot)
        make = pipeline.next_block

        def next_block(**source):
            block = make(**source)
            self.blocks.append((block.numpy().copy(), pipeline.stream.history[-3:].clone()))
            self.last = len(self.blocks), pipeline.story().blocks
            return block

        pipeline.next_block = next_block
        return pipeline


@pytest.fixture(scope="module")
def source():
    return Watched()


def in_a_room(test):
    """Run a test with the shared stream's room, whose source it is given, and a client."""

    async def run(source):
        source.blocks.clear()
        async with visit(lambda progress: source, ServerSettings(), CIRCLE) as (room, http):
            await asyncio.wait_for(test(source, room, http), 120)
        await nothing_left()

    return as_test(run, test, 3, "source")


async def until(look):
    while not (found := look()):
        await asyncio.sleep(0.005)
    return found


async def made(source, count):
    await until(lambda: len(source.blocks) >= count)


async def stop(viewer, room, source):
    """Hold the stream; how many blocks there are then."""
    await viewer.ask("set_paused", paused=True)
    before = -1
    while before != len(source.blocks):
        before = len(source.blocks)
        await asyncio.sleep(0.3)
    return before


def told_blocks(room):
    """How many blocks the session's story has."""
    story = room.feed.story()
    return story.blocks if story else 0


async def replayed(room, source, count):
    """The first blocks of the story that is being replayed, when it has been; one of before may have been under way."""
    await until(lambda: room.feed.replaying is None and source.last[1] >= count)
    blocks, told = source.last
    return source.blocks[blocks - told : blocks - told + count]


def same(one, other):
    """Whether blocks are equal to the last bit."""
    return len(one) == len(other) and all(
        np.array_equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(one, other, strict=True)
    )


async def a_session(viewer, room, source):
    """Prompts, transitions, presets, a reset, in the midst of blocks."""
    await made(source, 2)
    await viewer.ask("switch_prompt", prompt=SQUARE, transition_blocks=3)
    await made(source, 4)
    await viewer.ask("set_optimization_preset", preset="ultra")
    await made(source, 7)
    await stop(viewer, room, source)  # so that no block begins between the two
    await viewer.ask("switch_prompt", prompt=CIRCLE)
    await viewer.ask("switch_prompt", prompt="a yellow cross stands still over a blue sea")
    await viewer.ask("set_paused", paused=False)
    await made(source, 9)
    await viewer.ask("reset")
    await made(source, 12)
    await viewer.ask("set_optimization_preset", preset="realtime")
    await viewer.ask("switch_prompt", prompt=SQUARE)
    await made(source, 15)


def played(story, engine):
    """The story's blocks, by the engine alone."""
    config, blocks = story.config(), []
    settings = {name: getattr(config, name) for name in ("height", "width", "seed", "denoising_steps", "precision")}
    stream = engine.open_stream(local_attn_size=config.local_attn_size, **settings)
    for moment in story.moments():
        moment.take_hold(engine, stream)
        block = engine.generate_block(moment.request(), stream)
        assert len(block) == moment.frames
        blocks.append((block.numpy().copy(), stream.history[-3:].clone()))
    return blocks


@in_a_room
async def test_a_session_is_replayed_to_the_last_bit(source, room, http):
    viewer = await Viewer(http).join()
    assert (await http.get("/story")).status_code in (200, 404)
    await a_session(viewer, room, source)
    count = await stop(viewer, room, source)
    first = source.blocks[:count]
    answer = await http.get("/s/main/story")
    told = answer.json()
    story = Story.read(told)
    assert story.blocks == count and story.model == "tiny" and story.preset == "balanced"
    assert [entry.what for entry in story.prompts].count(SQUARE) == 2
    assert {change.preset for change in story.changes} >= {"ultra", "realtime"}
    assert any(change.restart for change in story.changes)
    assert CIRCLE not in [entry.what for entry in story.prompts[1:]]  # it was never seen again

    # By the engine alone.
    assert same(played(story, source.engine), first)

    # By the same server.
    source.blocks.clear()
    await viewer.ask("set_paused", paused=False)
    assert (await viewer.ask("replay", story=told))["type"] == "done"
    state = await viewer.wait_for(lambda m: m["type"] == "state" and m["replaying"] and m["replaying"]["block"] > 2)
    assert state["replaying"]["blocks"] == count
    assert same(await replayed(room, source, count), first)
    await viewer.wait_for(lambda m: m["type"] == "state" and m["replaying"] is None and m["prompt"] == SQUARE)
    await until(lambda: told_blocks(room) > count)  # and it goes on
    again = room.feed.story().as_dict()
    assert {**again, "blocks": count} == told
    await viewer.leave()


@in_a_room
async def test_the_last_wish_ends_a_replay(source, room, http):
    viewer = await Viewer(http).join()
    story = {"version": 1, **SIZE, "blocks": 50, "prompts": [{"block": 0, "prompt": CIRCLE}]}
    story["prompts"].append({"block": 3, "prompt": SQUARE})
    for wish in (
        {"type": "switch_prompt", "prompt": CIRCLE},
        {"type": "set_optimization_preset", "preset": "turbo"},
        {"type": "reset"},
    ):
        assert (await viewer.ask("replay", story=story))["type"] == "done"
        await until(lambda: (room.feed.replaying or (0, 0))[0] > 1)
        await viewer.ask(**wish)
        assert room.feed.replaying is None
        blocks = len(source.blocks)
        await made(source, blocks + 4)  # past where the story changes the prompt
        assert room.feed.prompt.prompt == CIRCLE
        assert room.feed.pipeline.prompt == CIRCLE
        assert room.feed.config_in_force.local_attn_size == (9 if "preset" in wish else 12)
    await viewer.leave()


LONG = {"version": 1, **SIZE, "seed": 3, "blocks": 60, "prompts": [{"block": 0, "prompt": CIRCLE}]}
LONG["prompts"] += [{"block": 2, "prompt": SQUARE}, {"block": 8, "prompt": CIRCLE}]
LONG["changes"] = [{"block": 1, "preset": "realtime"}, {"block": 9, "preset": "ultra"}]


async def plays(room, blocks):
    """Wait until so many blocks of a story are made again."""
    await until(lambda: (room.feed.replaying or (0, 0))[0] >= blocks)


@in_a_room
async def test_a_replay_is_stopped_and_the_video_goes_on(source, room, http):
    """Without a cut, with what is in force there; every viewer is told."""
    viewer, other = await Viewer(http).join(), await Viewer(http).join()
    assert (await viewer.ask("replay", story=LONG))["type"] == "done"
    await plays(room, 4)
    assert (await other.ask("stop_replay"))["type"] == "done"
    assert room.feed.replaying is None
    state = await viewer.wait_for(lambda m: m["type"] == "state" and m["changed"] == "stop_replay")
    assert (state["by"], state["replaying"], state["prompt"]) == ("viewer 2", None, SQUARE)
    assert state["effective"]["preset"] == state["preset"] == "realtime" and state["effective"]["seed"] == 3
    blocks = len(source.blocks)
    await made(source, blocks + 7)  # beyond where the story changes prompt and preset
    told = room.feed.story()
    assert not any(change.restart for change in told.changes) and told.seed == 3
    assert room.feed.prompt.prompt == room.feed.pipeline.prompt == SQUARE
    assert room.feed.config_in_force.local_attn_size == 9 and room.feed.pipeline.preset == "realtime"

    # There is nothing to stop: nothing changes.
    before = room.feed.story()
    assert (await viewer.ask("stop_replay"))["type"] == "done"
    await made(source, len(source.blocks) + 2)
    told = room.feed.story()
    assert (told.prompts, told.changes) == (before.prompts, before.changes) and room.feed.prompt.prompt == SQUARE
    await asyncio.gather(viewer.leave(), other.leave())


@in_a_room
async def test_what_ends_a_replay_and_what_does_not(source, room, http):
    """A prompt goes on from where the story is, at once and without a cut; what changes no block does not end it."""
    viewer = await Viewer(http).join()
    assert (await viewer.ask("replay", story=LONG))["type"] == "done"
    await plays(room, 3)
    for harmless in (
        {"type": "settings", "playback_speed": 4.0},
        {"type": "set_overlay", "enabled": True},
        {"type": "set_transition", "blocks": 3},
        {"type": "set_strength", "noise_scale": 0.4},
        {"type": "set_paused", "paused": True},
        {"type": "set_paused", "paused": False},
        {"type": "switch_prompt", "prompt": " "},  # no prompt
        {"type": "settings", "denoising_steps": []},
    ):
        await viewer.ask(**harmless)
        assert room.feed.replaying, harmless
    assert (await viewer.ask("switch_prompt", prompt="a white cross"))["type"] == "done"
    assert room.feed.replaying is None
    at = told_blocks(room)
    await until(lambda: told_blocks(room) >= at + 8)
    told = room.feed.story()
    assert [entry.what for entry in told.prompts][-1] == "a white cross" and told.prompts[-1].transition_blocks == 3
    assert at <= told.prompts[-1].block <= at + 1 and not any(change.restart for change in told.changes)
    await viewer.leave()


@in_a_room
async def test_a_replay_is_stopped_before_it_has_begun(source, room, http):
    """It begins as the story does, also where that is of another size, and follows it no further."""
    viewer = await Viewer(http).join()
    await made(source, 1)
    for size in (SIZE, {"height": 32, "width": 32}):
        await viewer.ask("switch_prompt", prompt=SQUARE)
        await stop(viewer, room, source)
        assert (await viewer.ask("replay", story=LONG | size))["type"] == "done"
        assert room.feed.replaying == (0, LONG["blocks"])  # the page has its button
        assert (await viewer.ask("stop_replay"))["type"] == "done"
        assert room.feed.replaying is None
        await viewer.ask("set_paused", paused=False)
        wide = size["width"]
        await until(lambda wide=wide: room.config.width == wide and room.config.seed == 3 and told_blocks(room) == 5)
        told = room.feed.story()
        assert (told.seed, [entry.what for entry in told.prompts], told.changes) == (3, [CIRCLE], ())
        assert room.feed.replaying is None and room.feed.prompt.prompt == CIRCLE
        await viewer.ask("reset", seed=8)
        await until(lambda: room.config.seed == 8)
    await viewer.leave()


@in_a_room
async def test_wishes_before_a_replay_has_begun_count(source, room, http):
    """The story's beginning, with its seed and settings, but for what was wished for later."""
    viewer = await Viewer(http).join()
    story = {"version": 1, **SIZE, "blocks": 50, "seed": 3, "prompts": [{"block": 0, "prompt": CIRCLE}]}
    story |= {"preset": "ultra", "settings": {"denoising_steps": [1000, 300]}}
    await made(source, 1)
    await stop(viewer, room, source)
    viewer.say({"type": "replay", "story": story})
    assert (await viewer.ask("switch_prompt", prompt=SQUARE))["type"] == "done"
    await viewer.ask("set_paused", paused=False)
    await until(lambda: room.feed.pipeline.prompt == SQUARE and room.feed.story())
    assert room.feed.replaying is None and room.feed.prompt.prompt == SQUARE
    told = room.feed.story()
    assert (told.seed, told.settings["denoising_steps"], told.settings["local_attn_size"]) == (3, [1000, 300], 9)
    assert [entry.what for entry in told.prompts] == [SQUARE] and room.feed.config_in_force.seed == 3
    await viewer.leave()


@in_a_room
async def test_a_story_of_another_size(source, room, http):
    """Smaller than the server's own, and back; what is wished for before it has begun holds too."""
    viewer = await Viewer(http).join()
    await made(source, 2)
    small = {"version": 1, "seed": 9, "height": 32, "width": 32, "blocks": 3, "preset": "ultra"}
    small["prompts"] = [{"block": 0, "prompt": CIRCLE}, {"block": 1, "prompts": [[CIRCLE, 1], [SQUARE, 2]]}]
    source.blocks.clear()
    assert (await viewer.ask("replay", story=small))["type"] == "done"
    await until(lambda: room.feed.config_in_force.size == (32, 32) and told_blocks(room) > 4)
    state = await viewer.wait_for(
        lambda m: m["type"] == "state" and m["effective"]["width"] == 32 and not m["replaying"]
    )
    assert state["prompt"] == f"{CIRCLE} (1) + {SQUARE} (2)" and state["preset"] == "ultra"
    small_ones = [block for block in source.blocks if block[0].shape[2] == 32]
    assert same(small_ones[:3], played(Story.read(small), source.engine))
    while (await viewer.picture()).shape != (32, 32, 3):
        pass
    assert room.inputs.size == (32, 32)

    big = {"version": 1, "seed": 5, **SIZE, "blocks": 1, "prompts": [{"block": 0, "prompt": CIRCLE}]}
    await stop(viewer, room, source)
    viewer.say({"type": "replay", "story": big})
    viewer.say({"type": "set_optimization_preset", "preset": "realtime"})
    assert (await viewer.ask("switch_prompt", prompt=SQUARE))["type"] == "done"
    await viewer.ask("set_paused", paused=False)
    await until(lambda: room.feed.config_in_force.size == (32, 48) and told_blocks(room) > 2)
    told = room.feed.story()
    assert (told.seed, told.preset, told.width) == (5, "realtime", 48)
    assert [entry.what for entry in told.prompts] == [SQUARE] and room.feed.replaying is None
    await until(lambda: room.recorder._done or room.recorder._open)
    while (await viewer.picture()).shape != (32, 48, 3):
        pass
    await viewer.leave()


@in_a_room
async def test_what_is_wished_while_a_size_waits_takes_no_memory(source, room, http):
    """However much is said while the video is paused, the last words count."""
    viewer = await Viewer(http).join()
    await made(source, 1)
    await stop(viewer, room, source)
    await viewer.ask("reset", height=32, width=32)

    def say(times):
        for i in range(times):
            room.obey(json.dumps({"type": "switch_prompt", "prompt": f"{CIRCLE} {i}"}), "someone")
            room.obey(json.dumps({"type": "settings", "playback_speed": 1 + i / times}), "someone")
            room.obey('{"type": "stop_replay"}', "someone")

    say(100)  # prompts whose numbers are known are some
    gc.collect()
    before = len(gc.get_objects())
    say(1000)
    gc.collect()
    assert len(gc.get_objects()) - before < 1000
    await viewer.ask("settings", interpolation="blend", shown_fps=48)
    await viewer.ask("settings", interpolation="none")
    await viewer.ask("set_paused", paused=False)
    await until(lambda: room.config.width == 32 and room.feed.story())
    assert room.config.playback_speed == 1.999 and room.feed.pipeline.prompt == f"{CIRCLE} 999"
    assert room.config.interpolation == "none" and room.config.shown_fps is None
    await viewer.leave()


@in_a_room
async def test_a_stream_that_cannot_be_made_larger_goes_on(source, room, http):
    viewer = await Viewer(http).join()
    await made(source, 1)
    opened, source.open = source.open, lambda *how: 1 / 0
    small = {"version": 1, "height": 32, "width": 32, "blocks": 3, "prompts": [{"block": 0, "prompt": SQUARE}]}
    assert (await viewer.ask("replay", story=small))["type"] == "done"
    await viewer.wait_for(lambda m: m["type"] == "state" and m["status"]["phase"] == "trouble")
    await until(lambda: room.feed.status.phase == "ready" and room.feed.resize is None)
    blocks = len(source.blocks)
    await made(source, blocks + 2)
    assert room.feed.config_in_force.size == (32, 48) and room.feed.replaying is None
    source.open = opened
    await viewer.leave()


@in_a_room
async def test_what_cannot_be_replayed_is_refused_and_nothing_changes(source, room, http):
    viewer = await Viewer(http).join()
    await made(source, 2)
    good = {"version": 1, **SIZE, "blocks": 9, "prompts": [{"block": 0, "prompt": CIRCLE}]}
    webcam = [{"block": 4, "what": "video input"}]
    bad = [
        ({"unrecorded": webcam}, "story cannot be replayed: from block 4 on it was made from what it does not hold"),
        ({"height": 64}, "story may have at most 32x48 pixels"),
        ({"height": 20}, "story: height must be a multiple of 16, got 20"),
        ({"prompts": [{"block": 0, "prompt": "x" * 2001}]}, "story has a prompt of more than 2000 characters"),
        ({"prompts": [{"block": 0, "prompts": [["x", 1]] * 5}]}, "story has more than 4 prompts at once"),
        ({"changes": [{"block": 1, "settings": {"vae_type": "lighttae"}}]}, "story may not change vae_type here"),
        ({"model": "LongLive-1.3B"}, "story must be of the model that is loaded, 'tiny', got 'LongLive-1.3B'"),
        ({"settings": {"sink_size": 0}}, "story must have the stream's sink_size, 3, in its settings, got 0"),
        ({"settings": {"vae_type": "tae"}}, "story must have the stream's vae_type, 'wan', got 'tae'"),
        ({"settings": {"model_dtype": "bfloat16"}}, "story must have the stream's model_dtype, 'auto'"),
        ({"settings": {"denoising_steps": [9, 8, 7, 6, 5]}}, "story has more denoising_steps than the presets"),
        ({"changes": [{"block": 1, "settings": {"local_attn_size": 64}}]}, "story has more local_attn_size than"),
        (
            {"loras": {"/etc/passwd": 1}},
            "story has LoRAs that are not served here, passwd: start the server with --lora",
        ),
        ({"prompts": []}, "story: prompts must have at least 1 item"),
        ({"blocks": 10**6}, "story: blocks must be less than or equal to 200000"),
        ({"version": 2}, "version must be 1"),
    ]
    for change, reason in bad:
        answer = await viewer.ask("replay", story=good | change)
        assert answer["type"] == "error" and reason in answer["error"], answer
    assert room.feed.replaying is None
    assert (await viewer.ask("replay", story=good | {"unrecorded": webcam, "blocks": 4}))["type"] == "done"
    await viewer.leave()


@in_a_room
async def test_video_that_comes_in_is_said_in_the_story(source, room, http):
    viewer = await Viewer(http).join()
    await made(source, 2)
    video = [np.zeros((32, 48, 3), np.uint8)] * 13
    room.inputs.of_block = room.feed.of_block = lambda begins: {"video": video, "noise_scale": 0.5}
    at = len(source.blocks)
    await made(source, at + 3)
    count = await stop(viewer, room, source)
    story = (await http.get("/story")).json()
    assert story["blocks"] == count
    (entry,) = story["unrecorded"]
    assert entry["what"] == "video input" and at <= entry["block"] <= at + 1
    assert "video input" in (await viewer.ask("replay", story=story))["error"]
    room.feed.of_block = room.inputs.of_block = lambda begins: {}
    await viewer.leave()


@in_a_room
async def test_a_recording_is_bounded(source, room, http):
    viewer = await Viewer(http).join()
    await made(source, 1)
    recorder = room.feed.pipeline.recorder
    recorder._bytes = 10**6
    await made(source, len(source.blocks) + 3)
    story = (await http.get("/story")).json()
    assert story["unrecorded"][-1] == {"block": story["blocks"] - 1, "what": "more than a recording holds"}
    await viewer.ask("reset")
    await until(lambda: not recorder._full and recorder.story())
    assert "unrecorded" not in (await http.get("/story")).json()
    await viewer.leave()


@in_a_room
async def test_a_long_story_fits_into_a_message(source, room, http):
    """As long as a recording may become."""
    viewer = await Viewer(http).join()
    each = {"prompt": "狐狸" * 300}
    count = story_recorder.MOST_BYTES // len(json.dumps(each, ensure_ascii=False).encode())
    prompts = [{"block": i, **each} for i in range(count)]
    story = {"version": 1, **SIZE, "blocks": count, "prompts": prompts}
    viewer.say(json.dumps({"type": "replay", "id": 1, "story": story}, ensure_ascii=False))
    assert (await viewer.wait_for(lambda m: m.get("id") == 1))["type"] == "done"
    await viewer.leave()


def test_a_pipelines_story_without_a_server(source):
    pipeline = OptimizedScopePipeline.on(source.engine, source.config, warm=True)
    with pytest.raises(RuntimeError, match="no block has been made"):
        pipeline.story()
    first = []
    for prompt, count in ((CIRCLE, 2), ([(CIRCLE, 1.0), (SQUARE, 2.0)], 2), (SQUARE, 1)):
        pipeline.switch_prompt(prompt, blend="slerp", transition_blocks=2)
        pipeline._prompts.hold_nothing_back()
        first += [pipeline.next_block().clone() for _ in range(count)]
    story = pipeline.story()
    other = OptimizedScopePipeline.on(source.engine, source.config, warm=True)
    other.replay(story.as_dict())
    assert other.replaying == (0, 5)
    assert all(torch.equal(block, other.next_block()) for block in first) and other.replaying is None
    assert other.story() == story


def test_a_story_that_changes_the_vae_is_replayed_twice(source):
    """The stream is then decoded by the VAE that the story ended with."""
    change = {"block": 1, "settings": {"vae_type": "lighttae"}}
    story = {"version": 1, **SIZE, "blocks": 3, "prompts": [{"block": 0, "prompt": CIRCLE}], "changes": [change]}
    pipeline = OptimizedScopePipeline.on(source.engine, source.config, warm=True)
    seen = []
    for _ in range(2):
        pipeline.replay(story)
        seen.append([pipeline.next_block().clone() for _ in range(3)])
        assert pipeline.story().changes == Story.read(story).changes and "vae_type" not in pipeline.story().settings
    wanted = [torch.from_numpy(block) for block, _ in played(Story.read(story), source.engine)]
    assert all(map(torch.equal, seen[0], wanted)) and all(map(torch.equal, seen[1], wanted))
    with pytest.raises(ValueError, match="story must have the stream's vae_type, 'lighttae', got 'wan'"):
        pipeline.replay({**story, "changes": []})
    pipeline.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_story_on_a_gpu():
    """With CUDA graphs and in 8 bits, made again by an engine of its own."""
    first = []
    config = ScopeOptimizationConfig.preset_balanced(height=64, width=96, enable_latency_overlay=False)
    with OptimizedScopePipeline("tiny", config, "cuda") as pipeline:
        for prompt, preset, count in ((CIRCLE, "balanced", 3), (SQUARE, "ultra", 3), (CIRCLE, "speed", 2)):
            pipeline.set_optimization_preset(preset)
            pipeline.switch_prompt(prompt, transition_blocks=2)
            pipeline._prompts.hold_nothing_back()
            first += [pipeline.next_block().cpu() for _ in range(count)]
        story = pipeline.story()
    again = longlive_optimized.generate(story, device="cuda")
    assert np.array_equal(again.frames, torch.cat(first).numpy())
