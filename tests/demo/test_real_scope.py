"""The plugin in a real scope, from its REST interface and over WebRTC.

    SCOPE_CHECKOUT=~/scope SCOPE_PYTHON=~/scope/.venv/bin/python pytest -s tests/demo/test_real_scope.py

SCOPE_PYTHON has scope's requirements and this package; without it the tests' own interpreter is taken. A CPU will do.
"""

import asyncio
import contextlib
import functools
import io
import os
import sys
import time

import av
import numpy as np
import pytest

pytest.importorskip("aiortc")

import torch
from safetensors.torch import save_file

from longlive_optimized.demo.scope_integration import LatencyStats
from longlive_optimized.model.config import ModelConfig
from longlive_optimized.weights.locate import locate
from longlive_optimized.weights.random_checkpoint import make_checkpoint
from support.scope_real import ScopeServer, Viewer, refused
from support.scope_real.starters import STARTERS

PLUGIN = PIPELINE = "longlive-optimized"
DEPTH, RIFE = "video-depth-anything", "rife"
HEIGHT, WIDTH = 64, 96
TINY = {"model_path": "tiny", "height": HEIGHT, "width": WIDTH}
MOVING = "a red circle moves left over a green field", "a blue square moves right over a grey floor"
FOX, BOAT = ([{"text": text, "weight": 1.0}] for text in MOVING)
TEXT = {"pipeline_ids": [PIPELINE], "input_mode": "text", "prompts": FOX}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    checkout = os.environ.get("SCOPE_CHECKOUT")
    if not checkout:
        pytest.skip("SCOPE_CHECKOUT does not name a checkout of scope")
    python = os.environ.get("SCOPE_PYTHON", sys.executable)
    with ScopeServer(checkout, python, tmp_path_factory.mktemp("scope")) as server:
        yield server


@pytest.fixture
def loaded(server) -> ScopeServer:
    assert server.load(PIPELINE, TINY) == "loaded", server.log()[-3000:]
    return server


class Calls:
    """The calls of a pipeline since this was made, as the server traced them."""

    def __init__(self, server: ScopeServer, pipeline_id: str = PIPELINE):
        self._traced = functools.partial(server.trace, "call", pipeline_id)
        self._start = len(self._traced())

    def all(self) -> list[dict]:
        return self._traced()[self._start :]

    async def until(self, true, count: int = 1) -> list[dict]:
        """All calls so far, once ``count`` of them are true of. Raises TimeoutError."""
        async with asyncio.timeout(60):
            while sum(true(call["kwargs"]) for call in self.all()) < count:
                await asyncio.sleep(0.1)
        return self.all()


def errors_in(log: str) -> list[str]:
    """But for those of scope's relay, whose track a viewer has left."""
    return [line for line in log.splitlines() if " ERROR " in line and " asyncio: " not in line]


def differ(pictures: list[np.ndarray]) -> bool:
    return len({picture.tobytes() for picture in pictures}) > len(pictures) // 2


def test_scope_lists_the_plugin_and_serves_its_schema(server):
    answer = server.get("/api/v1/plugins")
    assert answer["failed_plugins"] == []
    [plugin] = [plugin for plugin in answer["plugins"] if plugin["name"] == PLUGIN]
    assert [pipeline["pipeline_id"] for pipeline in plugin["pipelines"]] == [PIPELINE]
    schema = server.get("/api/v1/pipelines/schemas")["pipelines"][PIPELINE]
    assert "schema_error" not in schema and schema["plugin_name"] == PLUGIN and schema["supports_vace"] is True
    assert set(schema["supported_modes"]) == {"text", "video"} and schema["default_mode"] == "text"
    fields = schema["config_schema"]["properties"]
    assert {"height", "width", "denoising_steps", "optimization_preset", "show_latency_overlay"} <= fields.keys()
    [node] = [node for node in server.get("/api/v1/nodes/definitions")["nodes"] if node["node_type_id"] == PIPELINE]
    assert {port["name"]: port["port_type"] for port in node["inputs"]} == {
        **dict.fromkeys(("video", "vace_input_frames", "vace_input_masks"), "video"),
        "prompts": "string",
    }
    print(f"plugin listed, schema of {len(fields)} fields served")


def test_scope_knows_which_models_are_missing(server):
    assert server.get(f"/api/v1/models/status?pipeline_id={PIPELINE}")["downloaded"] is False


def test_text_streams_and_follows_prompts(loaded):
    async def watch():
        calls = Calls(loaded)
        async with Viewer(loaded, TEXT) as viewer:
            pictures = await viewer.more(30)
            assert pictures[0].shape == (HEIGHT, WIDTH, 3) and differ(pictures)
            viewer.send({"prompts": BOAT})
            await calls.until(lambda said: said["prompts"] == BOAT)
            viewer.send({"transition": {"target_prompts": FOX, "num_steps": 3}})
            await calls.until(lambda said: "transition" in said)
            await calls.until(lambda said: "transition" not in said and said["prompts"] == BOAT, count=2)
            await viewer.more(24)
        return calls.all(), len(viewer.pictures)

    calls, count = asyncio.run(watch())
    assert [call["shape"] for call in calls[:3]] == [[n, HEIGHT, WIDTH, 3] for n in (9, 12, 12)]
    assert {call["shape"][0] for call in calls[1:]} == {12}  # no cut anywhere
    assert [call["kwargs"]["init_cache"] for call in calls] == [True] + [False] * (len(calls) - 1)
    assert sum("transition" in call["kwargs"] for call in calls) == 3
    print(f"text: {len(calls)} calls, {count} frames received; prompt change and transition without a cut")


def test_messages_are_answered_and_wrong_ones_stop_nothing(loaded):
    async def watch():
        async with Viewer(loaded, TEXT) as viewer:
            await viewer.more(12)
            viewer.send({"type": "set_optimization_preset", "preset": "ultra", "request_id": "a"})
            preset = await viewer.answer("optimization_preset", "a")
            for wrong in ("{", "[1, 2]", '"text"'):  # not for the plugin: scope drops them
                viewer.send(wrong)
            viewer.send({"type": "set_optimization_preset", "preset": "warp 9", "request_id": "b"})
            error = await viewer.answer("longlive_error", "b")
            viewer.send({"prompts": 3, "denoising_step_list": "soon", "noise_scale": "loud", "video": 7})
            await viewer.answer("longlive_error")
            viewer.send({"type": "get_latency_stats", "request_id": "c", "prompts": BOAT, "video": None})
            stats = await viewer.answer("latency_stats", "c")
            await viewer.more(24)
        return preset, error, stats, len(viewer.pictures)

    preset, error, stats, count = asyncio.run(watch())
    assert preset["preset"] == "ultra" and preset["effective"]["denoising_steps"]
    assert "warp 9" in error["message"]
    figures = LatencyStats(**stats["stats"])
    assert figures.preset == "ultra" and figures.fps > 0 and figures.frame_count >= 21
    print(f"messages: preset, statistics and errors answered, {count} frames received")


def test_a_reset_and_new_steps_begin_again(loaded):
    async def watch():
        calls = Calls(loaded)
        async with Viewer(loaded, TEXT) as viewer:
            await calls.until(lambda said: True, count=2)
            viewer.send({"reset_cache": True})
            await calls.until(lambda said: said["init_cache"], count=2)
            viewer.send({"denoising_step_list": [1000, 500]})
            await calls.until(lambda said: "denoising_step_list" in said, count=2)
            await viewer.more(12)
        return calls.all(), len(viewer.pictures)

    calls, count = asyncio.run(watch())
    first_steps = next(i for i, call in enumerate(calls) if "denoising_step_list" in call["kwargs"])
    again = {i for i, call in enumerate(calls) if call["kwargs"]["init_cache"]} | {first_steps}
    assert [call["shape"][0] for call in calls] == [9 if i in again else 12 for i in range(len(calls))]
    print(f"reset and step list: {len(calls)} calls, {count} frames received")


def test_video_comes_back_in_blocks_of_twelve(loaded):
    async def watch():
        calls = Calls(loaded)
        async with Viewer(loaded, TEXT | {"input_mode": "video", "noise_scale": 0.5}) as viewer:
            pictures = await viewer.more(30)
        return calls.all(), pictures

    calls, pictures = asyncio.run(watch())
    assert {call["frames_in"] for call in calls} == {12} and len({picture.tobytes() for picture in pictures}) > 2
    assert [call["shape"] for call in calls] == [[n, HEIGHT, WIDTH, 3] for n in [13] + [12] * (len(calls) - 1)]
    print(f"video: {len(calls)} calls of 12 frames, {len(pictures)} frames received")


def test_two_sessions_stream_side_by_side_as_each_would_alone(loaded):
    both = [TEXT, TEXT | {"prompts": BOAT}]

    async def watch(*parameters):
        calls = Calls(loaded)
        async with contextlib.AsyncExitStack() as stack:
            viewers = [await stack.enter_async_context(Viewer(loaded, of_one)) for of_one in parameters]
            counts = [len(pictures) for pictures in await asyncio.gather(*(viewer.more(24) for viewer in viewers))]
        made = {}
        for call in calls.all():
            made.setdefault((str(call["kwargs"]["prompts"]), call["thread"]), []).append(call["sum"])
        return made, counts

    alone = {}
    for parameters in both:
        made, _ = asyncio.run(watch(parameters))
        alone |= {prompts: sums for (prompts, _), sums in made.items()}
    together, counts = asyncio.run(watch(*both))
    assert len(together) == 2 and len({thread for _, thread in together}) == 2
    for (prompts, _), sums in together.items():
        common = min(len(sums), len(alone[prompts]))
        assert common >= 2 and sums[:common] == alone[prompts][:common]
    print(f"two sessions: {[len(sums) for sums in together.values()]} calls, {counts} frames received, as each alone")


def test_a_headless_session_shows_a_picture(loaded):
    begin = {"pipeline_id": PIPELINE, "input_mode": "text", "prompts": FOX}
    assert loaded.post("/api/v1/session/start", begin)["status"] == "ok"
    end = time.monotonic() + 60
    while refused(loaded.fetch, "GET", "/api/v1/session/frame") == 404 and time.monotonic() < end:
        time.sleep(0.2)
    with av.open(io.BytesIO(loaded.fetch("GET", "/api/v1/session/frame")), format="mjpeg") as picture:
        [frame] = picture.decode(video=0)
    assert (frame.height, frame.width) == (HEIGHT, WIDTH)
    assert loaded.post("/api/v1/session/stop")["status"] == "ok"
    assert refused(loaded.post, "/api/v1/session/stop") == 404
    print("headless: started, one JPEG, stopped")


def test_a_size_that_cannot_be_is_refused_at_load(server):
    assert server.load(PIPELINE, TINY | {"height": -16}) == "error"
    assert server.get("/api/v1/pipeline/status")["status"] == "not_loaded"
    assert "height" in server.trace("init")[-1]["error"] and errors_in(server.log())
    assert refused(server.post, "/api/v1/webrtc/offer", {"sdp": "", "type": "offer"}) == 400
    print("bad size: refused at load")


def test_a_size_that_the_page_does_not_round_is_rounded_told_and_delivered(server):
    assert server.load(PIPELINE, TINY | {"height": HEIGHT + 3, "width": WIDTH - 5}) == "loaded"

    async def watch():
        calls = Calls(server)
        async with Viewer(server, TEXT) as viewer:
            pictures = await viewer.more(12)
            await viewer.answer("longlive_notice")  # of a busy machine frames may come first
            await viewer.more(12)
            notices = [message for message in viewer.messages if message["type"] == "longlive_notice"]
        return calls.all(), pictures, notices

    calls, pictures, notices = asyncio.run(watch())
    assert {tuple(call["shape"][1:]) for call in calls} == {(HEIGHT, WIDTH, 3)}
    assert pictures[-1].shape == (HEIGHT, WIDTH, 3)
    assert [f"{HEIGHT + 3} is no multiple" in notices[0]["message"], len(notices)] == [True, 2]
    print(f"odd size: {len(pictures)} frames of {HEIGHT}x{WIDTH} received, told in {len(notices)} notices")


@pytest.mark.parametrize("after", ["passthrough", RIFE])
@pytest.mark.parametrize("starter", STARTERS, ids=lambda starter: starter.name)
def test_a_starter_workflow_runs_with_this_pipeline_in_it(server, tmp_path, starter, after):
    """Source, or its depth, to VACE's frames, two LoRAs, two steps, no cache management, and what comes after it."""
    model, loras = make_checkpoint(tmp_path / "models", "tiny", control=True), []
    for name, scale in zip(("style", "dissolve"), starter.loras, strict=True):
        module, width = "diffusion_model.blocks.0.self_attn.q", ModelConfig.from_json(locate(model).config).dim
        halves = {"lora_A": torch.randn(2, width), "lora_B": torch.randn(width, 2) / 50}
        save_file({f"{module}.{half}.weight": t for half, t in halves.items()}, tmp_path / f"{name}.safetensors")
        loras.append({"path": str(tmp_path / f"{name}.safetensors"), "scale": scale, "merge_mode": "permanent_merge"})
    size = {"height": HEIGHT, "width": WIDTH}
    own = {"model_path": str(model), "quantization": None, "vace_enabled": True, "lora_merge_mode": "permanent_merge"}
    own |= {"vace_context_scale": starter.scale, "loras": loras}
    pipelines = starter.pipelines(PIPELINE, after)
    nodes = {node: (name, size | own if name == PIPELINE else size) for node, name in pipelines.items()}
    assert server.load_nodes(nodes) == "loaded", server.log()[-3000:]
    sent = {"pipeline_ids": [*pipelines.values()], "graph": starter.graph(PIPELINE, after), "prompts": FOX}
    calls, later, errors = Calls(server), Calls(server, after), len(errors_in(server.log()))
    depths = Calls(server, DEPTH)

    async def watch():
        async with Viewer(server, sent | starter.sent()) as viewer:
            await viewer.more(24)
            for scale in (0.5, 0.7, 0.9, 1.1):
                viewer.send({"lora_scales": [{"path": loras[0]["path"], "scale": scale}]})
            viewer.send({"node_id": "longlive", "vace_context_scale": 1.2})
            viewer.send({"prompts": BOAT})
            await calls.until(lambda said: said["prompts"] == BOAT)
            await viewer.more(24)
            return viewer.pictures, viewer.messages

    pictures, messages = asyncio.run(watch())
    made, after_it = calls.all(), later.all()
    assert all(call["shape"] == [9 if i == 0 else 12, HEIGHT, WIDTH, 3] for i, call in enumerate(made))
    assert "vace_input_frames" in made[0]["kwargs"] and "video" not in made[0]["kwargs"]
    taken, given = (12, 23) if after == RIFE else (4, 4)
    assert {(call["frames_in"], *call["shape"]) for call in after_it} == {(taken, given, HEIGHT, WIDTH, 3)}
    assert max(abs(call["level"] - call["level_in"]) for call in after_it) < 2
    assert bool(depths.all()) == (starter.before == DEPTH)
    assert {call["frames_in"] for call in depths.all()} <= {4} and differ(pictures)
    assert not [message for message in messages if message["type"].startswith(("longlive", "pipeline"))], messages
    assert server.get("/api/v1/pipeline/status")["loaded_lora_adapters"][0]["scale"] == 1.1
    assert not errors_in(server.log())[errors:]
    took, gave = sum(call["frames_in"] for call in after_it), sum(call["shape"][0] for call in after_it)
    made_frames = sum(call["shape"][0] for call in made)
    print(f"{starter.name}: {made_frames} frames made, {after} took {took} and gave {gave}, no error logged")


def test_another_load_releases_the_first_and_streams(server):
    numbers = []
    for seed in (1, 2, 1):
        assert server.load(PIPELINE, TINY | {"base_seed": seed}) == "loaded"
        numbers.append(server.trace("init")[-1]["number"])
    assert len(set(numbers)) == 3

    async def watch():
        async with Viewer(server, TEXT) as viewer:
            return await viewer.more(12)

    assert differ(asyncio.run(watch()))
    assert {record["number"] for record in server.trace("collected")} >= {*numbers[:2]}
    print("unloaded twice, collected both times, streams again")
