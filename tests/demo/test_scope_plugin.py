"""The plugin under a double of scope: what a user of scope's LongLive expects of it."""

import dataclasses
import subprocess
import sys
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from longlive_optimized.config import PRESETS
from longlive_optimized.demo.scope_integration import LatencyStats
from longlive_optimized.engine import block
from longlive_optimized.engine.engine import LongLiveEngine
from longlive_optimized.engine.memory_plan import MemoryShort
from longlive_optimized.engine.request import BlockRequest
from longlive_optimized.model.ring_cache import RingCache
from longlive_optimized.vae.stream import DecoderStream
from longlive_optimized.weights.locate import CONTROL_FILE
from longlive_optimized.weights.random_checkpoint import TINY
from longlive_optimized.weights.user_lora import UserLora
from support.results import same
from support.scope_double.streams import engine_of, expected

LOAD = {"model_path": "tiny", "height": 32, "width": 48, "show_messages": False}
FOX, BOAT = [{"text": "a fox", "weight": 1.0}], [{"text": "a boat", "weight": 1.0}]


@pytest.fixture
def scope(installed, pipeline_class):
    """Scope with the pipeline loaded; sessions end and messages are forgotten after each test, the instance stays."""
    installed.notifications.clear()
    assert installed.manager.load(pipeline_class, LOAD), installed.manager.error
    yield installed
    while installed.manager._sessions:
        installed.manager._sessions.pop().stop()


def run(session, calls: int, **changes) -> list[torch.Tensor]:
    """The video of so many calls, after sending ``changes`` if there are any."""
    if changes:
        session.send(changes)
    return [session.step().result["video"] for _ in range(calls)]


def told(scope, kind: str) -> list[dict]:
    return [message for message in scope.notifications if message["type"] == kind]


# Discovery and loading


def test_the_plugin_is_light_until_asked():
    code = "import sys, longlive_optimized.demo.scope_plugin; print({'torch', 'pydantic', 'scope'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_the_schema_has_scopes_controls_and_ours(pipeline_class):
    config = pipeline_class.get_config_class()
    schema = config.get_schema_with_metadata()
    properties = schema["config_schema"]["properties"]
    runtime = {name for name, field in properties.items() if field.get("ui", {}).get("is_load_param") is False}
    assert {"noise_scale", "noise_controller", "optimization_preset", "show_latency_overlay"} <= runtime
    assert {"vae_type", "height", "width", "base_seed", "manage_cache", "denoising_steps", "quantization"} <= {
        *properties
    }
    assert schema["supports_lora"] and config.inputs[0] == "video"
    assert {file for artifact in pipeline_class.get_artifacts() for file in artifact.files} == {
        *("config.json", "Wan2.1_VAE.pth", "google", "umt5-xxl-enc-fp8_e4m3fn.safetensors", "lightvaew2_1.pth"),
        *("taew2_1.pth", "lighttaew2_1.pth", "models/longlive_base.pt", "models/lora.pt", CONTROL_FILE.name),
    }


def test_the_overlays_corner_has_a_control(pipeline_class):
    field = pipeline_class.get_config_class().get_schema_with_metadata()["config_schema"]["properties"][
        "overlay_position"
    ]
    assert field["ui"]["is_load_param"] is False and field["default"] == "top-right"
    corner = pipeline_class.get_config_class().model_fields["overlay_position"].annotation
    assert {choice.value for choice in corner} == {"top-left", "top-right", "bottom-left", "bottom-right"}


@pytest.mark.parametrize(
    ("record", "url"),
    [
        ('{"url": "https://git.example/team/fast.git", "vcs_info": {"vcs": "git"}}', "https://git.example/team/fast"),
        ('{"url": "https://me:secret@git.example:8443/fast"}', "https://git.example:8443/fast"),
        ('{"url": "file:///home/me/fast", "dir_info": {"editable": true}}', None),
        ('{"url": 7}', None),
        ("[]", None),
        ("{", None),
        (None, None),
    ],
)
def test_the_documents_are_where_it_was_installed_from(pipeline_class, monkeypatch, record, url):
    from longlive_optimized.demo.scope_plugin import home

    monkeypatch.setattr(home.metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: record))
    assert home.docs_url() == url


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"height": 0}, "height"),
        ({"height": float("inf")}, "height"),
        ({"width": "wide"}, "width"),
        ({"denoising_steps": [250, 500]}, "denoising_steps"),
        ({"base_seed": -1}, "base_seed"),
        ({"vae_type": "vae9"}, "vae_type"),
        ({"quantization": "int4"}, "quantization"),
        ({"optimization_preset": "fast"}, "quality_stream, balanced"),
        ({"max_sessions": 0}, "max_sessions"),
        ({"low_memory": "perhaps"}, "low_memory"),
        ({"vace_enabled": "perhaps"}, "vace_enabled"),
        ({"loras": [{"scale": 1.0}]}, "loras.0.path"),
        ({"loras": [{"path": "/nowhere.safetensors"}]}, "nowhere"),
        ({"model_path": "/no/such/folder"}, "/no/such/folder"),
    ],
)
def test_bad_load_parameters_are_named(installed, pipeline_class, params, message):
    assert not installed.manager.load(pipeline_class, LOAD | params)
    assert message in installed.manager.error


@pytest.mark.parametrize(
    ("asked", "taken"), [((100, 683), (96, 688)), ((8, 24), (16, 32)), ((1, 40.4), (16, 48)), ((64, 96), (64, 96))]
)
def test_a_size_is_rounded_to_what_the_model_has_and_told(installed, pipeline_class, asked, taken):
    load = LOAD | {"height": asked[0], "width": asked[1], "show_messages": True, "vae_type": "lighttae"}
    installed.notifications.clear()
    assert installed.manager.load(pipeline_class, load), installed.manager.error
    assert engine_of(installed).config.size == taken
    if taken[1] < 600:
        session = installed.manager.open({"prompts": FOX, "height": asked[0], "width": asked[1]})
        (frames,) = run(session, 1)
        session.stop()
        assert frames.shape == (9, *taken, 3)
        said = [notice["message"] for notice in told(installed, "longlive_notice")]
        wanted = [f"{a} is no multiple of 16, {b} is taken" for a, b in zip(asked, taken, strict=True)]
        assert all(text in notice for text, notice in zip(wanted, said, strict=False))
        assert len(said) == (2 if asked != taken else 0) and not told(installed, "longlive_error")
        assert bool(covered(frames, expected(installed, BlockRequest("a fox"))[0])) == (asked != taken)


def test_raw_json_is_taken_as_it_comes(installed, pipeline_class):
    params = {"height": 32.0, "base_seed": 7.0, "quantization": "fp8_e4m3fn", "ref_images": [], "whatever": {"a": 1}}
    params["low_memory"] = True
    assert installed.manager.load(pipeline_class, LOAD | params), installed.manager.error
    config = installed.manager.pipeline._engine.config
    assert config.seed == 7 and config.precision == "int8" and config.low_memory


def test_without_a_path_scopes_models_folder_is_looked_in(installed, pipeline_class, tmp_path, monkeypatch):
    monkeypatch.setenv("DAYDREAM_SCOPE_MODELS_DIR", str(tmp_path))
    assert not installed.manager.load(pipeline_class, {"height": 32, "width": 48})
    assert str(tmp_path) in installed.manager.error and "longlive_base.pt" in installed.manager.error


def test_unloading_leaves_nothing(installed, pipeline_class):
    assert installed.manager.load(pipeline_class, LOAD | {"base_seed": 3})
    session = installed.manager.open({"prompts": FOX})
    run(session, 2)
    pipeline = weakref.ref(installed.manager.pipeline)
    engine, stream = weakref.ref(pipeline()._engine), weakref.ref(pipeline()._engine.stream)
    session.stop()
    installed.manager.close()
    assert pipeline() is None and engine() is None and stream() is None


# Text mode


def test_nine_frames_then_twelve_from_scopes_schedule(scope):
    session = scope.manager.open({"prompts": FOX})
    frames = run(session, 3)
    assert [[*block.shape] for block in frames] == [[9, 32, 48, 3], [12, 32, 48, 3], [12, 32, 48, 3]]
    assert frames[0].dtype == torch.uint8 and not session.errors
    config = engine_of(scope).config
    assert (config.step_schedule, config.positions, config.restart_at, config.seed) == ("scope", "base", 1021, 42)
    assert same(frames, expected(scope, *[BlockRequest("a fox")] * 3))


def test_nothing_comes_without_a_prompt_and_a_prompt_starts_it(scope):
    session = scope.manager.open()
    assert session.step().result == {} and session.step().kwargs["init_cache"]
    session.send({"prompts": " "})
    assert session.step().result == {} and not told(scope, "longlive_error")
    assert [len(block) for block in run(session, 2, prompts="a fox")] == [9, 12]


@pytest.mark.parametrize("prompts", ["a boat", ["a boat"], [{"text": "a boat"}], [{"text": "a boat", "weight": 3}]])
def test_a_new_prompt_recaches_and_cuts_nothing(scope, prompts):
    session = scope.manager.open({"prompts": FOX})
    frames = run(session, 2) + run(session, 2, prompts=prompts)
    fox, boat = BlockRequest("a fox"), BlockRequest("a boat")
    assert same(frames, expected(scope, fox, fox, boat, boat)) and len(frames[2]) == 12


def test_weighted_prompts_are_blended(scope):
    pairs = [{"text": "a fox", "weight": 3.0}, {"text": "a boat", "weight": 1.0}]
    frames = run(scope.manager.open({"prompts": pairs}), 2)
    mix = BlockRequest((("a fox", 3.0), ("a boat", 1.0)))
    assert same(frames, expected(scope, mix, mix)) and not same(frames, expected(scope, *[BlockRequest("a fox")] * 2))
    slerped = run(scope.manager.open({"prompts": pairs, "prompt_interpolation_method": "slerp"}), 1)
    assert not torch.equal(slerped[0], frames[0])


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_a_transition_takes_its_steps_and_does_not_bounce_back(scope, method):
    session = scope.manager.open({"prompts": FOX})
    frames = run(session, 2)
    session.send({"transition": {"target_prompts": BOAT, "num_steps": 3, "temporal_interpolation_method": method}})
    sent = []
    for _ in range(5):
        turn = session.step()
        sent.append("transition" in turn.kwargs)
        frames.append(turn.result["video"])
    assert sent == [True, True, True, False, False] and turn.kwargs["prompts"] == FOX
    fox = BlockRequest("a fox")
    way = BlockRequest("a boat", transition_blocks=3, transition_from_source=True, transition_blend=method)
    assert same(frames, expected(scope, fox, fox, *[way] * 5))


@pytest.mark.parametrize("steps", [0, 1])
def test_a_transition_without_steps_is_there_at_once(scope, steps):
    session = scope.manager.open({"prompts": FOX})
    frames = run(session, 1) + run(session, 2, transition={"target_prompts": BOAT, "num_steps": steps})
    assert same(frames, expected(scope, BlockRequest("a fox"), *[BlockRequest("a boat")] * 2))


def test_a_transition_without_end_costs_nothing(scope):
    session = scope.manager.open({"prompts": FOX})
    run(session, 1)
    assert len(run(session, 1, transition={"target_prompts": BOAT, "num_steps": 10**400})[0]) == 12


def test_new_prompts_end_a_transition(scope):
    session = scope.manager.open({"prompts": FOX})
    frames = run(session, 2) + run(session, 1, transition={"target_prompts": BOAT, "num_steps": 4})
    frames += run(session, 2, prompts="a storm")
    fox, storm = BlockRequest("a fox"), BlockRequest("a storm")
    way = BlockRequest("a boat", transition_blocks=4, transition_from_source=True)
    assert same(frames, expected(scope, fox, fox, way, storm, storm))
    assert "transition" not in session.step().kwargs


# Resets


def test_reset_cache_starts_the_same_video_again(scope):
    session = scope.manager.open({"prompts": FOX})
    first = run(session, 2)
    assert same(run(session, 2, reset_cache=True), first)


def test_a_reset_in_a_transition_arrives_at_once(scope):
    session = scope.manager.open({"prompts": FOX})
    run(session, 1)
    run(session, 1, transition={"target_prompts": BOAT, "num_steps": 4})
    assert same(run(session, 1, reset_cache=True), expected(scope, BlockRequest("a boat")))


def test_other_steps_cut_only_with_manage_cache(scope):
    session = scope.manager.open({"prompts": FOX, "denoising_step_list": [1000, 750, 500, 250]})
    run(session, 2)
    assert [len(block) for block in run(session, 2, denoising_step_list=[1000, 500])] == [9, 12]
    assert [len(block) for block in run(session, 1, denoising_step_list=[1000, 250], manage_cache=False)] == [12]
    assert [len(block) for block in run(session, 1, manage_cache=True)] == [12]  # the list is the same
    steps = BlockRequest("a fox", denoising_steps=(1000, 500))
    assert same(run(session, 1, denoising_step_list=[1000, 500]), expected(scope, steps))


def test_a_modulated_list_does_not_cut(scope):
    session = scope.manager.open({"prompts": FOX})
    run(session, 1)
    session.processor.beat = lambda kw: kw | {"denoising_step_list": [1000, 400], "_modulated_step_list": True}
    assert [len(block) for block in run(session, 1)] == [12]


def test_a_beat_reset_brings_its_seed_and_the_seed_stays(scope):
    session = scope.manager.open({"prompts": FOX})
    run(session, 2)
    session.processor.beat = lambda kw: kw | {"init_cache": True, "base_seed": 9}
    frames = run(session, 1)
    session.processor.beat = None
    frames += run(session, 1)
    assert same(frames, expected(scope, BlockRequest("a fox", seed=9), BlockRequest("a fox")))


def test_the_table_of_positions_ends_where_scopes_does(scope):
    session = scope.manager.open({"prompts": FOX})
    run(session, 1)
    session_of(scope, session)._stream.position = 1020
    assert [len(block) for block in run(session, 3)] == [12, 9, 12]


def session_of(scope, session):
    return scope.manager.pipeline._sessions._busy[session._thread]


# Video mode


def feed(session, frames: int, value: int = 90, size=(20, 30)) -> None:
    for _ in range(frames):
        session.put_frame(torch.full((*size, 3), value, dtype=torch.uint8))


def video_run(session, calls: int, value: int = 90, **changes) -> list[torch.Tensor]:
    blocks = []
    for _ in range(calls):
        feed(session, 12, value)
        blocks += run(session, 1, **changes)
        changes = {}
    return blocks


def test_video_comes_back_in_thirteen_and_twelve_frames(scope):
    session = scope.manager.open({"prompts": FOX, "input_mode": "video", "noise_controller": False})
    assert session.step().kwargs is None  # it waits for frames
    frames = video_run(session, 2)
    video = [torch.full((20, 30, 3), 90, dtype=torch.uint8)] * 12
    assert [len(block) for block in frames] == [13, 12]
    assert same(frames, expected(scope, *[BlockRequest("a fox", video=video, noise_steps="scope")] * 2))


def test_noise_scale_and_its_controller(scope):
    session = scope.manager.open({"prompts": FOX, "input_mode": "video"})
    frames = video_run(session, 1)
    video = [torch.full((20, 30, 3), 90, dtype=torch.uint8)] * 12
    still = BlockRequest("a fox", video=video, noise_from_motion=True, noise_steps="scope")
    assert same(frames, expected(scope, still))
    low = video_run(session, 1, noise_controller=False, noise_scale=0.02, reset_cache=True)
    least = BlockRequest("a fox", video=video, noise_scale=0.1, noise_steps="scope")
    assert same(low, expected(scope, least))


def test_a_new_prompt_over_a_video_cuts_unless_told_otherwise(scope):
    session = scope.manager.open({"prompts": FOX, "input_mode": "video"})
    video_run(session, 2)
    assert [len(block) for block in video_run(session, 2, prompts=BOAT)] == [13, 12]
    assert [len(block) for block in video_run(session, 1, prompts=FOX, manage_cache=False)] == [12]
    way = {"target_prompts": BOAT, "num_steps": 3}
    assert [len(block) for block in video_run(session, 4, manage_cache=True, transition=way)] == [12] * 4


def test_a_new_prompt_within_a_transition_does_not_cut_a_video(scope):
    session = scope.manager.open({"prompts": FOX, "input_mode": "video"})
    video_run(session, 1)
    video_run(session, 1, transition={"target_prompts": BOAT, "num_steps": 4})
    assert [len(block) for block in video_run(session, 1, prompts="a storm")] == [12]


def test_changing_the_mode_starts_the_vae_anew_only(scope):
    session = scope.manager.open({"prompts": FOX})
    run(session, 2)
    assert [len(block) for block in video_run(session, 2, input_mode="video")] == [9, 12]
    assert [len(block) for block in run(session, 2, input_mode="text")] == [9, 12]
    assert session_of(scope, session)._stream.position == 18


def test_video_frames_may_differ_in_size(scope):
    session = scope.manager.open({"prompts": FOX, "input_mode": "video"})
    feed(session, 6, size=(20, 30))
    feed(session, 6, size=(64, 16))
    assert [*session.step().result["video"].shape] == [13, 32, 48, 3]


# Presets, statistics, overlay


def test_a_preset_by_message_acts_once_and_is_answered(scope):
    session = scope.manager.open({"prompts": FOX})
    run(session, 2)
    frames = run(session, 1, type="set_optimization_preset", preset="realtime", request_id="r1")
    assert len(frames[0]) == 12
    (answer,) = told(scope, "optimization_preset")
    assert answer["request_id"] == "r1" and answer["preset"] == "realtime"
    assert answer["effective"]["denoising_steps"] == [1000, 500, 250] and answer["effective"]["local_attn_size"] == 9
    assert answer["effective"]["precision"] == ("bf16" if torch.cuda.is_available() else "float32")
    run(session, 2)
    assert len(told(scope, "optimization_preset")) == 1  # the message is still among the parameters
    run(session, 1, type="set_optimization_preset", preset="turbo", request_id="r2")
    assert told(scope, "optimization_preset")[1]["effective"]["precision"] == "int8 products"  # of the next block
    run(session, 1, request_id="r2")
    assert len(told(scope, "optimization_preset")) == 2
    assert session_of(scope, session)._stream.ring.window == 9


def test_quantization_asked_for_at_load_holds_under_every_preset(installed, pipeline_class):
    assert installed.manager.load(pipeline_class, LOAD | {"quantization": "fp8_e4m3fn"}), installed.manager.error
    session = installed.manager.open({"prompts": FOX})
    run(session, 1)
    inner = session_of(installed, session)
    runs = "int8 products"  # frames of 6 tokens
    assert inner._stream.precision == runs
    for preset in PRESETS:
        assert inner.set_preset(preset)["precision"] == runs
        run(session, 1)
        assert inner._stream.precision == inner.stats()["precision"] == runs and inner.stats()["preset"] == preset
    session.stop()


def test_the_later_change_of_steps_wins(scope):
    session = scope.manager.open({"prompts": FOX, "denoising_step_list": [1000, 750]})
    inner = lambda: session_of(scope, session)._stream.settings.denoising_steps  # noqa: E731
    run(session, 1)
    assert inner() == (1000, 750)
    run(session, 1, optimization_preset="ultra")
    assert inner() == (1000, 250)
    run(session, 1, denoising_step_list=[1000, 600])
    assert inner() == (1000, 600)
    run(session, 1, type="set_optimization_preset", preset="turbo")
    assert inner() == (1000, 500, 250) and not session.errors


def test_a_preset_chosen_before_the_start_keeps_its_steps(installed, pipeline_class):
    assert installed.manager.load(pipeline_class, LOAD | {"optimization_preset": "ultra"}), installed.manager.error
    session = installed.manager.open(
        {"prompts": FOX, "denoising_step_list": [1000, 750, 500, 250], "optimization_preset": "ultra"}
    )
    run(session, 1)
    assert session_of(installed, session).effective()["denoising_steps"] == [1000, 250]
    session.stop()


# Load fields in calls, as the graph editor sends them


def settings_of(scope, session):
    return session_of(scope, session)._stream.settings


def test_the_graph_editors_step_sliders_act(scope):
    session = scope.manager.open({"prompts": FOX, "denoising_steps": [1000, 750, 500, 250]})
    run(session, 1)
    assert len(run(session, 1)[0]) == 12  # the schema's defaults are no wish
    assert len(run(session, 1, denoising_steps=[1000, 500])[0]) == 9  # as another denoising_step_list, a cut
    assert settings_of(scope, session).denoising_steps == (1000, 500)
    assert len(run(session, 1, denoising_steps=[1000, 400], manage_cache=False)[0]) == 12
    run(session, 1, denoising_step_list=[900, 300])
    assert settings_of(scope, session).denoising_steps == (900, 300)
    run(session, 1, denoising_steps=[250, 500])
    assert settings_of(scope, session).denoising_steps == (900, 300)
    assert ["denoising_steps" in message["message"] for message in told(scope, "longlive_error")] == [True]


def test_load_fields_that_a_stream_can_change_act_in_calls(scope):
    session = scope.manager.open({"prompts": FOX})
    run(session, 1)
    run(session, 1, step_schedule="longlive", restart_at=9, quantization="fp8_e4m3fn")
    settings = settings_of(scope, session)
    assert (settings.step_schedule, settings.restart_at, settings.precision) == ("longlive", 9, "int8")
    run(session, 1, optimization_preset="realtime")  # quantization holds under every preset
    assert settings_of(scope, session).precision == "int8"
    assert len(run(session, 1)[0]) == 9  # at latent frame 9
    run(session, 1, restart_at=0, quantization="")
    assert settings_of(scope, session).restart_at is None and settings_of(scope, session).precision == "bf16"
    assert not told(scope, "longlive_error")
    session.stop()
    again = scope.manager.open({"prompts": FOX})
    run(again, 1)
    settings = settings_of(scope, again)
    assert (settings.step_schedule, settings.restart_at, settings.precision) == ("scope", 1021, "bf16")


def test_positions_change_at_a_reset(scope):
    session = scope.manager.open({"prompts": FOX})
    run(session, 2)
    assert len(run(session, 1, positions="relative")[0]) == 12 and settings_of(scope, session).positions == "base"
    assert ["next reset" in notice["message"] for notice in told(scope, "longlive_notice")] == [True]
    frames = run(session, 5, reset_cache=True)
    assert settings_of(scope, session).positions == "relative"
    stream = engine_of(scope).open_stream(**{**vars(settings_of(scope, session))})
    assert same(frames, [engine_of(scope).generate_block(BlockRequest("a fox"), stream) for _ in frames])
    session.stop()
    first = scope.manager.open({"prompts": FOX, "positions": "relative"})  # with a session's first call there is one
    run(first, 1)
    assert settings_of(scope, first).positions == "relative"
    first.stop()
    after = scope.manager.open({"prompts": FOX})
    assert same(run(after, 2), expected(scope, *[BlockRequest("a fox")] * 2))


def test_what_counts_at_load_only_is_told_once_if_it_would_be_another(scope):
    same_as_loaded = {"height": 32, "width": 44, "low_memory": False, "max_sessions": 2}
    session = scope.manager.open({"prompts": FOX, **same_as_loaded, "model_path": "tiny"})
    run(session, 2)
    assert not told(scope, "longlive_error")
    frames = run(session, 2, height=512, low_memory=True, max_sessions="many")
    assert frames[0].shape == (12, 32, 48, 3)
    said = [message["message"] for message in told(scope, "longlive_error")]
    assert [text.split(":")[0] for text in said] == ["height", "low_memory", "max_sessions"]
    assert "stays 32" in said[0]


def test_another_vae_decodes_from_the_next_block_on(scope, monkeypatch):
    session, bystander = (scope.manager.open({"prompts": FOX}) for _ in range(2))
    frames = run(session, 2) + run(session, 2, vae_type="lighttae")
    assert [len(block) for block in frames] == [9, 12, 9, 12]
    engine = engine_of(scope)
    small = LongLiveEngine("tiny", dataclasses.replace(engine.config, vae_type="lighttae"), device="cpu")
    stream = engine.open_stream()
    for _ in range(4):
        engine.generate_block(BlockRequest("a fox"), stream)
    decoder = DecoderStream(small.codec)
    with torch.no_grad():
        wanted = [decoder.decode_uint8(latents) for latents in stream.history[6:12].split(3)]
    assert same(frames[2:], wanted)
    assert same(run(bystander, 2), expected(scope, *[BlockRequest("a fox")] * 2))
    monkeypatch.setattr(
        "longlive_optimized.engine.engine.locate", lambda *_: (_ for _ in ()).throw(FileNotFoundError("no tae"))
    )
    assert [len(block) for block in run(session, 2, vae_type="tae")] == [12, 12]
    assert ["no tae" in message["message"] for message in told(scope, "longlive_error")] == [True]
    assert [len(block) for block in run(session, 1, vae_type="wan")] == [9]
    monkeypatch.undo()
    short = MemoryShort("memory is 1 GiB short")
    monkeypatch.setattr("longlive_optimized.engine.engine.with_another_vae", lambda *_: (_ for _ in ()).throw(short))
    assert [len(block) for block in run(session, 2, vae_type="tae")] == [12, 12]
    assert [message["message"] for message in told(scope, "longlive_error")][1:] == [f"vae_type: {short}, got 'tae'"]
    session.stop()
    again = scope.manager.open({"prompts": FOX})
    assert same(run(again, 2), expected(scope, *[BlockRequest("a fox")] * 2))


@pytest.mark.parametrize("bad", [{"step_schedule": "fast"}, {"restart_at": 2}, {"restart_at": -1}, {"positions": 3}])
def test_load_fields_in_calls_that_make_no_sense_change_nothing(scope, bad):
    session = scope.manager.open({"prompts": FOX})
    run(session, 1)
    before = settings_of(scope, session)
    run(session, 2, **bad)
    assert settings_of(scope, session) == before and len(told(scope, "longlive_error")) == 1


def test_presets_are_a_sessions_own(scope):
    one, other = (scope.manager.open({"prompts": FOX}) for _ in range(2))
    run(one, 1), run(other, 1)
    run(one, 1, optimization_preset="ultra")
    assert [session_of(scope, s)._stream.ring.window for s in (one, other)] == [9, 12]


@pytest.mark.parametrize("preset", ["fast", None, 3, {"a": [1]}, ["balanced"]])
def test_a_malformed_preset_changes_nothing_and_is_answered(scope, preset):
    session = scope.manager.open({"prompts": FOX})
    frames = run(session, 1) + run(session, 2, type="set_optimization_preset", preset=preset, request_id=5)
    assert same(frames, expected(scope, *[BlockRequest("a fox")] * 3))
    (answer,) = told(scope, "longlive_error")
    assert answer["request_id"] == 5 and all(name in answer["message"] for name in PRESETS)


def test_statistics_are_answered_with_the_sessions_own(scope):
    session, other = scope.manager.open({"prompts": FOX}), scope.manager.open({"prompts": FOX})
    run(other, 1)
    run(session, 3)
    run(session, 1, type="get_latency_stats", request_id="s")
    (answer,) = told(scope, "latency_stats")
    stats = LatencyStats(**answer["stats"])
    assert answer["request_id"] == "s" and stats.frame_count == 33 and stats.mean_ms > 0 and stats.preset == "balanced"


def test_strange_types_are_left_to_others(scope):
    session = scope.manager.open({"prompts": FOX})
    run(session, 1, type="something_else", preset="turbo", request_id=[1, {"b": 2}])
    assert scope.notifications == [] and session_of(scope, session)._stream.ring.window == 12


def test_the_overlay_is_drawn_on_request(scope):
    session = scope.manager.open({"prompts": FOX, "show_latency_overlay": True})
    clean = expected(scope, *[BlockRequest("a fox")] * 3)
    shown = run(session, 2)
    assert not any(torch.equal(a, b) for a, b in zip(shown, clean, strict=False))
    assert torch.equal(run(session, 1, show_latency_overlay=False)[0], clean[2])


@pytest.fixture
def three_foxes(scope, made={}):  # noqa: B006 - made once
    if not made:
        made["blocks"] = expected(scope, *[BlockRequest("a fox")] * 3)
    return made["blocks"]


@pytest.mark.parametrize(
    "bad",
    [
        {"denoising_step_list": "abc"},
        {"denoising_step_list": [250, 500]},
        {"denoising_step_list": [1000, 500.5]},
        {"denoising_step_list": [float("inf")]},
        {"denoising_step_list": [None]},
        {"denoising_step_list": [10**400]},
        {"denoising_step_list": list(range(1000, 900, -1))},
        {"prompts": [{"text": "a", "weight": 10**400}]},
        {"video": []},
        {"prompts": 17},
        {"prompts": [{"weight": 1.0}]},
        {"prompts": [{"text": "a", "weight": -1}]},
        {"prompts": [{"text": "a", "weight": "heavy"}]},
        {"transition": "now"},
        {"transition": {"target_prompts": BOAT, "num_steps": -3}},
        {"transition": {"target_prompts": [3]}},
        {"base_seed": "x"},
        {"noise_scale": 7},
        {"manage_cache": "perhaps"},
        {"lora_scales": [{"path": "x"}]},
        {"lora_scales": [{"path": "x", "scale": 0.5}]},
        {"optimization_preset": "fast"},
        {"overlay_position": "middle"},
        {"base_seed": "12"},
        {"base_seed": True},
        {"noise_scale": "0.5"},
        {"noise_scale": True},
        {"manage_cache": 1},
        {"show_latency_overlay": "off"},
        {"denoising_step_list": [True]},
        {"transition": {"target_prompts": BOAT, "num_steps": "4"}},
        {"video": 7},
        {"vace_ref_images": ["a.png"]},
    ],
)
def test_a_parameter_that_makes_no_sense_changes_nothing_and_is_told_once(scope, three_foxes, bad):
    session = scope.manager.open({"prompts": FOX})
    frames = run(session, 1) + run(session, 2, **bad)
    assert same(frames, three_foxes) and not session.errors
    (message,) = told(scope, "longlive_error")
    assert message["message"].startswith(next(iter(bad)))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["linear", "a fox"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "weight", "path"]), inner),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_json_at_all_raises(pipeline_class, data):
    from longlive_optimized.demo.scope_plugin import call_params, commands

    key = data.draw(st.sampled_from(sorted(call_params._KNOWN)))
    complaints = []
    call = call_params.read_call(
        {key: data.draw(JSON)}, call_params.CallParams(), lambda *what: complaints.append(what)
    )
    assert isinstance(call, call_params.CallParams) and len(complaints) <= 1
    message = {name: data.draw(JSON) for name in ("type", "preset", "request_id")}
    commands.Commands(lambda name: {}, dict).obey(
        message | {"type": data.draw(st.sampled_from(["x", commands.SET_PRESET]))}
    )


def test_baggage_is_ignored(scope):
    baggage = {
        "graph": {"nodes": []},
        "recording": True,
        "kv_cache_attention_bias": 0.3,
        "vace_enabled": False,
        "bpm": 120,
    }
    session = scope.manager.open({"prompts": FOX} | baggage)
    assert same(run(session, 2), expected(scope, *[BlockRequest("a fox")] * 2)) and scope.notifications == []


# LoRAs


@pytest.fixture
def lora_file(tmp_path):
    """A LoRA for one linear, strong enough to be seen."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((2, TINY.dim), (TINY.dim, 2)))
    name = "diffusion_model.blocks.0.self_attn.o"
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, tmp_path / "style.safetensors")
    return str(tmp_path / "style.safetensors")


def test_loras_are_merged_at_load_and_rescaled_while_streaming(installed, pipeline_class, lora_file):
    load = LOAD | {"loras": [{"path": lora_file, "scale": 0.5, "merge_mode": "permanent_merge"}]}
    assert installed.manager.load(pipeline_class, load), installed.manager.error
    session, bystander = (installed.manager.open({"prompts": FOX}) for _ in range(2))
    half = run(session, 1)
    run(bystander, 2)
    config = installed.manager.pipeline._engine.config
    full = [LongLiveEngine("tiny", config, loras=[UserLora(lora_file, scale)]) for scale in (0.5, 2.0)]
    assert torch.equal(half[0], full[0].generate_block(BlockRequest("a fox")))
    after = run(session, 1, lora_scales=[{"path": lora_file, "scale": 2.0}])
    assert torch.equal(after[0], full[1].generate_block(BlockRequest("a fox"))) and not torch.equal(after[0], half[0])
    assert installed.manager.pipeline.loaded_lora_adapters == [
        {"path": lora_file, "scale": 2.0, "merge_mode": "permanent_merge"}
    ]
    assert len(run(session, 1, manage_cache=False, lora_scales=[{"path": lora_file, "scale": 1.0}])[0]) == 12
    assert len(run(bystander, 1)[0]) == 12
    session.stop(), bystander.stop()


def test_a_slider_of_a_lora_loses_no_value_and_reads_no_file(installed, pipeline_class, lora_file, monkeypatch):
    """40 values, three of them while a block is made: blocks take the newest, the last one is exact."""
    assert installed.manager.load(pipeline_class, LOAD | {"loras": [{"path": lora_file}]}), installed.manager.error
    session, engine = installed.manager.open({"prompts": FOX, "manage_cache": False}), engine_of(installed)
    for module in ("load", "user_lora"):
        monkeypatch.setattr(
            f"longlive_optimized.weights.{module}.tensors_in", lambda *_: pytest.fail("a file was read")
        )
    merged, set_loras = [], engine.set_loras

    def noted(loras):
        merged.append([lora.scale for lora in loras])
        set_loras(loras)

    monkeypatch.setattr(engine, "set_loras", noted)
    blocks = len(run(session, 1)[0]) == 9
    for value in range(40):
        session.send({"lora_scales": [{"path": lora_file, "scale": value / 16}]})
        if value % 3 == 2:
            while not session.step().result:
                pass
            blocks += 1
    while session.processor.updates.qsize():
        blocks += bool(session.step().result)
    run(session, 1)
    assert session.processor.dropped_updates == 0
    assert len(merged) <= blocks < 20 and merged[-1] == [39 / 16]
    monkeypatch.undo()
    fresh = LongLiveEngine("tiny", engine.config, loras=[UserLora(lora_file, 39 / 16)]).model
    assert all(map(torch.equal, engine.model.state_dict().values(), fresh.state_dict().values()))
    assert installed.manager.pipeline.loaded_lora_adapters[0]["scale"] == 39 / 16
    session.stop()


def test_a_slider_of_a_lora_does_not_hold_up_a_video(installed, pipeline_class, lora_file):
    assert installed.manager.load(pipeline_class, LOAD | {"loras": [{"path": lora_file}]}), installed.manager.error
    session = installed.manager.open({"prompts": FOX, "input_mode": "video", "manage_cache": False})
    for value in range(3):
        for _ in range(12):
            session.put_frame(torch.full((8, 8, 3), 50 * value, dtype=torch.uint8))
        assert len(run(session, 1, lora_scales=[{"path": lora_file, "scale": value / 3}])[0]) == (12 if value else 13)
    session.stop()


@pytest.mark.parametrize("mode", ["permanent_merge", "runtime_peft", "module_targeted", None])
def test_a_lora_is_merged_whatever_its_mode(installed, pipeline_class, lora_file, mode):
    load = LOAD | {"loras": [{"path": lora_file, "scale": 0.5, "merge_mode": mode}], "lora_merge_mode": mode}
    assert installed.manager.load(pipeline_class, load), installed.manager.error
    merged = LongLiveEngine("tiny", engine_of(installed).config, loras=[UserLora(lora_file, 0.5)]).model
    assert all(map(torch.equal, engine_of(installed).model.state_dict().values(), merged.state_dict().values()))
    [adapter] = installed.manager.pipeline.loaded_lora_adapters
    assert adapter["merge_mode"] == (mode or "permanent_merge")


# Sessions, threads, failures


def test_two_sessions_give_what_each_gives_alone(scope):
    alone = [expected(scope, *[BlockRequest(text, seed=42)] * 5) for text in ("a fox", "a boat")]
    sessions = [scope.manager.open({"prompts": prompts}) for prompts in (FOX, BOAT)]
    got: list[list] = [[], []]

    def work(i):
        for _ in range(5):
            got[i] += run(sessions[i], 1)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert same(got[0], alone[0]) and same(got[1], alone[1])


def test_the_newest_of_too_many_sessions_waits_and_is_told_once(scope):
    sessions = [scope.manager.open({"prompts": FOX}) for _ in range(3)]
    [run(session, 1) for session in sessions[:2]]
    assert sessions[2].step().result == {} and sessions[2].step().result == {}
    assert len(told(scope, "longlive_error")) == 1 and "max_sessions" in told(scope, "longlive_error")[0]["message"]
    sessions[0].stop()
    assert same(run(sessions[2], 2), expected(scope, *[BlockRequest("a fox")] * 2))


def test_a_new_session_finds_nothing_of_the_last_one(scope):
    first = scope.manager.open({"prompts": BOAT, "base_seed": 5, "show_latency_overlay": True})
    run(first, 2, optimization_preset="ultra")
    stream = session_of(scope, first)._stream
    first.stop()
    second = scope.manager.open({"prompts": FOX})
    assert same(run(second, 2), expected(scope, *[BlockRequest("a fox")] * 2))
    assert session_of(scope, second)._stream is stream and session_of(scope, second).stats()["preset"] == "balanced"


@pytest.fixture
def failing(scope, monkeypatch):
    """``failing(error)`` makes the engine fail so from now on, ``failing(None)`` mends it; a fast clock for retries."""
    from longlive_optimized.demo.scope_plugin import session as module

    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    right = block.denoise
    tries = []

    def fail(error):
        def denoise(*args):
            tries.append(now[0])
            raise error

        monkeypatch.setattr(block, "denoise", right if error is None else denoise)

    fail.pass_time = lambda seconds: now.__setitem__(0, now[0] + seconds)
    fail.tries = tries
    return fail


def test_an_error_is_told_once_and_tried_again_ever_more_rarely(scope, failing):
    session = scope.manager.open({"prompts": FOX})
    frames = run(session, 2)
    failing(RuntimeError("the device is on fire"))
    for _ in range(100):
        assert session.step().result == {}
        failing.pass_time(0.1)
    assert 4 <= len(failing.tries) <= 7 and not session.errors
    assert ["on fire" in message["message"] for message in told(scope, "longlive_error")] == [True]
    failing(None)
    failing.pass_time(60)
    frames += run(session, 1)
    assert same(frames, expected(scope, *[BlockRequest("a fox")] * 3))
    assert told(scope, "longlive_notice")


def test_what_was_asked_during_a_failure_is_not_lost(scope, failing):
    session = scope.manager.open({"prompts": FOX})
    run(session, 2)
    failing(RuntimeError("no"))
    session.send({"reset_cache": True, "prompts": BOAT})
    session.processor.beat = lambda kw: kw | {"base_seed": 11}
    assert session.step().result == {}
    session.processor.beat = None
    session.processor._init_cache = False  # as after an exception
    assert session.step().result == {}
    failing(None)
    failing.pass_time(60)
    assert same(run(session, 1), expected(scope, BlockRequest("a boat", seed=11)))


def test_a_new_prompt_survives_the_failure_of_its_first_block(scope, failing):
    session = scope.manager.open({"prompts": FOX})
    frames = run(session, 1)
    failing(RuntimeError("no"))
    session.send({"prompts": BOAT})
    assert session.step().result == {}
    failing(None)
    failing.pass_time(60)
    frames += run(session, 1)
    assert same(frames, expected(scope, BlockRequest("a fox"), BlockRequest("a boat")))


def test_a_transition_loses_no_step_to_a_failure(scope, failing):
    session = scope.manager.open({"prompts": FOX})
    frames = run(session, 1)
    session.send({"transition": {"target_prompts": BOAT, "num_steps": 3}})
    for _ in range(3):
        failing(RuntimeError("no"))
        assert session.step().result == {}
        failing(None)
        failing.pass_time(60)
        frames += run(session, 1)
    way = BlockRequest("a boat", transition_blocks=3, transition_from_source=True)
    assert same(frames, expected(scope, BlockRequest("a fox"), *[way] * 3))


def test_out_of_memory_frees_what_nobody_uses_and_recovers(scope, failing):
    idle = scope.manager.open({"prompts": FOX})
    session = scope.manager.open({"prompts": FOX})
    run(idle, 1), run(session, 1)
    unused = weakref.ref(session_of(scope, idle)._stream)
    idle.stop()
    failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"))
    assert session.step().result == {} and not session.processor.ended
    assert "out of memory" in told(scope, "longlive_error")[0]["message"]
    assert unused() is None
    failing(None)
    failing.pass_time(60)
    assert [len(block) for block in run(session, 2)] == [12, 12]


def test_no_room_for_a_session_is_told_and_does_not_spin(scope, monkeypatch):
    def no_room(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    first = scope.manager.open({"prompts": FOX})
    run(first, 1)
    scope.manager.pipeline._sessions._idle.clear()
    monkeypatch.setattr(engine_of(scope), "open_stream", no_room)
    second = scope.manager.open({"prompts": FOX})
    assert [second.step().result for _ in range(3)] == [{}] * 3 and not second.processor.ended
    assert len(told(scope, "longlive_error")) == 1 and len(run(first, 1)[0]) == 12


# What is said where it is seen


def covered(frames: torch.Tensor, plain: torch.Tensor) -> list[int]:
    """The rows of the first frame that differ."""
    return (frames[0] != plain[0]).any(-1).any(-1).nonzero().flatten().tolist()


def test_a_complaint_is_drawn_into_the_frames_for_a_while(scope, failing):
    session = scope.manager.open({"prompts": FOX, "show_messages": True})
    plain = expected(scope, *[BlockRequest("a fox")] * 5)
    frames = run(session, 1) + run(session, 1, noise_scale="loud")
    assert same(frames[:1], plain[:1])
    rows = covered(frames[1], plain[1])
    assert rows and rows[-1] == 31 and rows[0] > 8
    failing.pass_time(1)
    frames += run(session, 1)
    assert covered(frames[2], plain[2]) == rows
    failing.pass_time(60)
    assert same(run(session, 1), plain[3:4])
    (muted,) = run(session, 1, noise_scale="LOUD", show_messages=False)
    assert torch.equal(muted, plain[4])
    assert len(told(scope, "longlive_error")) == 2


def test_the_banner_is_where_the_overlay_is_not(scope):
    session = scope.manager.open({"prompts": FOX, "show_messages": True, "overlay_position": "bottom-left"})
    plain = expected(scope, BlockRequest("a fox"))
    changes = {"noise_scale": "loud", "show_latency_overlay": True}
    rows = covered(run(session, 1, **changes)[0], plain[0])
    assert rows[0] == 0 and rows[-1] == 31


def test_what_the_engine_logs_as_a_warning_is_told(installed, pipeline_class, tmp_path):
    """Of loading, to each session at its beginning; of blocks, when it happens. To the session whose it is alone."""
    a, b = torch.zeros(2, TINY.dim), torch.zeros(TINY.dim, 2)
    name, path = "diffusion_model.blocks.0.self_attn", str(tmp_path / "half.safetensors")
    save_file({f"{name}.o.lora_A.weight": a, f"{name}.o.lora_B.weight": b, f"{name}.q.lora_A.weight": a.clone()}, path)
    for _ in range(2):  # of each load
        installed.notifications.clear()
        load = LOAD | {"loras": [{"path": path}], "show_messages": True}
        assert installed.manager.load(pipeline_class, load), installed.manager.error
        session = installed.manager.open({"prompts": FOX})
        (frames,) = run(session, 1)
        assert covered(frames, expected(installed, BlockRequest("a fox"))[0])
        run(session, 1)
        [notice] = told(installed, "longlive_notice")
        assert "half.safetensors" in notice["message"] and "blocks.0.self_attn.q.B" in notice["message"]
        installed.manager.unload()
    run(session, 1, prompts=[{"text": "a fox " * 600, "weight": 1.0}])
    assert ["the last" in notice["message"] for notice in told(installed, "longlive_notice")] == [False, True]
    session.stop()


def test_no_frames_for_seconds_are_told_as_scope_tells_it_where_nobody_has_frames(scope, failing):
    session = scope.manager.open({"prompts": FOX})
    run(session, 1)
    failing(RuntimeError("the device is on fire"))
    for seconds in (0.3, 0.6, 1.1, 2.1):
        assert session.step().result == {} and not told(scope, "pipeline_error")
        failing.pass_time(seconds)
    for _ in range(2):
        assert session.step().result == {}
        failing.pass_time(20)
    [message] = told(scope, "pipeline_error")
    assert message == {
        "type": "pipeline_error",
        "pipeline_id": "longlive-optimized",
        "message": "RuntimeError: the device is on fire",
        "exception_type": "RuntimeError",
        "recoverable": True,
        "fatal": False,
    }
    failing(None)
    assert len(run(session, 1)[0]) == 12
    # Its page would take the picture of every session away.
    run(scope.manager.open({"prompts": BOAT}), 1)
    failing(RuntimeError("again"))
    for _ in range(8):
        assert session.step().result == {}
        failing.pass_time(20)
    assert len(told(scope, "pipeline_error")) == 1


def test_prepare_is_cheap_and_takes_anything(scope):
    pipeline = scope.manager.pipeline
    assert pipeline.prepare() is None and pipeline.prepare(video=None, prompts=object()) is None
    assert pipeline.prepare(video=7) is None  # a client's
    assert pipeline.prepare(video=True, x=1).input_size == 12


def test_without_a_server_there_is_nobody_to_tell(scope, monkeypatch):
    monkeypatch.delitem(sys.modules, "scope.server.app")
    session = scope.manager.open({"prompts": FOX})
    assert len(run(session, 1, type="get_latency_stats")[0]) == 9


def test_a_preset_that_finds_no_memory_is_tried_again_and_loses_nothing(installed, pipeline_class, monkeypatch):
    """The reset of the same call and the answer to its message are given all the same."""
    monkeypatch.setattr("longlive_optimized.demo.scope_plugin.backoff.FIRST", 0.0)
    assert installed.manager.load(pipeline_class, LOAD | {"optimization_preset": "realtime"}), installed.manager.error
    session = installed.manager.open({"prompts": FOX})
    run(session, 2)
    real, calls = RingCache.take_sinks, []

    def full_once(ring, other):
        calls.append(ring)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no room")
        real(ring, other)

    monkeypatch.setattr(RingCache, "take_sinks", full_once)
    session.send({"reset_cache": True, "type": "set_optimization_preset", "preset": "balanced", "request_id": 1})
    assert session.step().result == {} and told(installed, "optimization_preset")[-1]["preset"] == "balanced"
    (frames,) = run(session, 1)
    assert len(frames) == 9 and session_of(installed, session)._stream.ring.window == 12 and len(calls) == 2
    session.stop()
