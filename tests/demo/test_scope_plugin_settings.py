"""The plugin's settings under a double of scope: presets, statistics, the overlay, and load fields in calls."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longlive_optimized.config import PRESETS
from longlive_optimized.demo.scope_integration import LatencyStats
from longlive_optimized.engine.engine import LongLiveEngine
from longlive_optimized.engine.memory_plan import MemoryShort
from longlive_optimized.engine.request import BlockRequest
from longlive_optimized.vae.stream import DecoderStream
from support.results import same
from support.scope_double.streams import BOAT, FOX, LOAD, engine_of, expected, run, session_of, told

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


def test_another_vae_decodes_from_the_next_block_on(scope, pipeline_class, monkeypatch):
    assert scope.manager.load(pipeline_class, LOAD | {"vae_type": "wan"}), scope.manager.error
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
