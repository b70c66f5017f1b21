"""The plugin under a double of scope: what a user of scope's LongLive expects of it."""

import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch

from longlive_optimized.engine.request import BlockRequest
from longlive_optimized.weights.locate import CONTROL_FILE
from support.results import same
from support.scope_double.streams import BOAT, FOX, LOAD, covered, engine_of, expected, run, session_of, told

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
