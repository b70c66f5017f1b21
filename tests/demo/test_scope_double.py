"""The stand-in for scope keeps its contract. test_scope_double_is_true.py holds it against scope's own code."""

import gc
import importlib
import sys
import threading
import weakref
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import Field

from support.scope_double import Session, scope_installed
from support.scope_double.names import BasePipelineConfig, ModeDefaults, Pipeline, Requirements
from support.scope_double.processor import Timestamp

FRAME = torch.zeros(4, 6, 3, dtype=torch.uint8)
PROMPTS = [{"text": "a fox", "weight": 1.0}]


class Flavour(str, Enum):  # noqa: UP042 — as scope's own
    PLAIN = "plain"


class FakeConfig(BasePipelineConfig):
    pipeline_id = "fake"
    pipeline_name = "Fake"
    modes = {"text": ModeDefaults(default=True, height=320), "video": ModeDefaults(noise_scale=0.5)}  # noqa: RUF012

    height: int = 320
    flavour: Flavour = Flavour.PLAIN
    made: list = Field(default_factory=list)
    secret: str | None = None


class Fake(Pipeline):
    """Answers from a list, then with one picture; an exception in the list is raised."""

    @classmethod
    def get_config_class(cls):
        return FakeConfig

    def __init__(self, **kwargs):
        self.loaded, self.threads = kwargs, {threading.get_ident()}
        self.answers, self.calls, self.prepared = [], [], []
        self.state = {}
        if kwargs.get("width") == 13:
            raise ValueError("width must be even")

    def prepare(self, **kwargs):
        self.prepared.append(kwargs)
        return Requirements(input_size=12) if kwargs.get("video") is not None else None

    def __call__(self, **kwargs):
        self.threads.add(threading.get_ident())
        self.calls.append(kwargs)
        answer = self.answers.pop(0) if self.answers else {"video": FRAME[None]}
        if isinstance(answer, BaseException):
            raise answer
        return answer() if callable(answer) else answer


@pytest.fixture
def scope():
    with scope_installed() as scope:
        yield scope


@pytest.fixture
def session(scope) -> Session:
    return open_session(scope)


def open_session(scope, **parameters) -> Session:
    scope.manager.load(Fake)
    return scope.manager.open({"prompts": PROMPTS, **parameters})


# Modules, hooks, notifications.


def test_the_modules_are_there_for_the_while_and_nothing_else_is():
    marker = sys.modules["scope"] = SimpleNamespace()
    try:
        with scope_installed():
            from scope.core import hookimpl
            from scope.core.pipelines.interface import Pipeline as Base
            from scope.server import app

            assert hookimpl.project_name == "scope" and Base is Pipeline and app.webrtc_manager
            assert importlib.util.find_spec("scope.core.config")
            with pytest.raises(ImportError):
                importlib.import_module("scope.core.pipelines.wan2_1")
        assert sys.modules.pop("scope") is marker and not [name for name in sys.modules if name.startswith("scope.")]
    finally:
        sys.modules.pop("scope", None)


def test_without_a_server_there_is_no_app():
    with scope_installed(server=False), pytest.raises(ImportError):
        importlib.import_module("scope.server.app")


def test_model_paths_follow_the_environment(scope, monkeypatch, tmp_path):
    from scope.core.config import get_assets_dir, get_model_file_path, get_models_dir

    monkeypatch.setenv("DAYDREAM_SCOPE_MODELS_DIR", str(tmp_path / "models"))
    assert get_model_file_path("a/b.pt") == tmp_path / "models/a/b.pt" and get_assets_dir() == tmp_path / "assets"
    monkeypatch.delenv("DAYDREAM_SCOPE_MODELS_DIR")
    assert get_models_dir() == Path.home() / ".daydream-scope/models"


@pytest.mark.parametrize("message", [{"stats": torch.zeros(1)}, {"stats": float("nan")}])
def test_a_notification_that_is_no_json_fails_the_test(message):
    with pytest.raises(AssertionError, match="not JSON"):
        with scope_installed():
            from scope.server.app import webrtc_manager

            webrtc_manager.broadcast_notification(message)


def test_notifications_are_recorded_as_clients_read_them(scope):
    from scope.server.app import pipeline_manager, webrtc_manager

    message = {"type": "latency_stats", "stats": {"window": (1, 2)}}
    webrtc_manager.broadcast_notification(message)
    message["type"] = "changed later"
    pipeline_manager.set_loading_stage("warming up")
    assert scope.notifications == [{"type": "latency_stats", "stats": {"window": [1, 2]}}]
    assert scope.stages == ["warming up"]


def plugin(make):
    from scope.core import hookimpl

    def register_pipelines(register):
        register(make())

    return SimpleNamespace(register_pipelines=hookimpl(register_pipelines))


def test_a_plugin_registers_by_its_hook_and_again_directly(scope):
    assert scope.register(plugin(lambda: Fake), "fake") == {"fake": Fake}
    with pytest.raises(AssertionError, match="again"):
        scope.register(plugin(lambda: type("Other", (Fake,), {})), "fake")


@pytest.mark.parametrize("points", [0, 1, 2])
def test_a_distribution_has_one_entry_point(scope, points, tmp_path, monkeypatch):
    (tmp_path / "some_dist-1.dist-info").mkdir()
    lines = [f"plugin{i} = some_plugin" for i in range(points)]
    (tmp_path / "some_dist-1.dist-info/entry_points.txt").write_text("\n".join(["[scope]", *lines]))
    (tmp_path / "some_dist-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: some-dist\nVersion: 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "some_plugin", plugin(lambda: Fake))
    if points == 1:
        assert scope.discover("some-dist") == {"fake": Fake}
    else:
        with pytest.raises(AssertionError, match=f"{points} entry points"):
            scope.discover("some-dist")


# Loading and unloading.


def test_construction_takes_defaults_and_raw_load_parameters(scope):
    from pydantic_core import PydanticUndefined

    assert scope.manager.load(Fake, {"height": "tall", "flavour": "plain", "vace": True})
    loaded = scope.manager.pipeline.loaded
    assert loaded["height"] == "tall" and loaded["vace"] is True and type(loaded["flavour"]) is str
    assert loaded["made"] is PydanticUndefined and "secret" not in loaded and "noise_scale" not in loaded
    assert loaded["base_seed"] == 42 and not {"node_id", "device", "config"} & set(loaded)
    assert scope.manager.load(Fake) and scope.manager.pipeline.loaded["flavour"] is Flavour.PLAIN


def test_construction_is_in_another_thread_and_shows_a_stage(scope):
    scope.manager.load(Fake)
    assert threading.get_ident() not in scope.manager.pipeline.threads
    assert scope.stages == ["Initializing pipeline...", None]


def test_a_failed_load_is_told_once_and_its_text_never(scope):
    assert scope.manager.load(Fake) and not scope.manager.load(Fake, {"width": 13})
    assert scope.manager.error == "ValueError: width must be even"
    assert [scope.manager.status() for _ in range(2)] == ["error", "not_loaded"]
    with pytest.raises(LookupError):
        scope.manager.open()
    assert scope.manager.load(Fake) and scope.manager.status() == "loaded"


def test_equal_parameters_keep_the_instance_others_release_it_first(scope):
    alive = []

    class Counting(Fake):
        def __init__(self, **kwargs):
            alive.append([ref() for ref in refs])
            super().__init__(**kwargs)

    refs = []
    scope.manager.load(Counting, {"height": 16})
    refs.append(weakref.ref(scope.manager.pipeline))
    assert scope.manager.load(Counting, {"height": 16.0}) and scope.manager.pipeline is refs[0]()
    assert scope.manager.load(Counting, {"height": 32}) and alive == [[], [None]]


def test_unload_drops_and_collects(scope):
    scope.manager.load(Fake)
    scope.manager.pipeline.itself = scope.manager.pipeline  # a cycle: only the collector ends it
    session, ref = scope.manager.open(), weakref.ref(scope.manager.pipeline)
    scope.manager.pipeline.answers = [ValueError("a traceback must not hold it either")]
    session.step(), session.step()
    scope.manager.unload()
    assert ref() is not None  # the session's
    session.stop()
    gc.collect()
    assert ref() is None and scope.manager.status() == "not_loaded"


# The chunk sequence.


def test_a_fresh_text_session(session):
    kwargs, result = session.step()
    assert kwargs == {
        "input_mode": "text",
        "pipeline_ids": ["fake"],
        "prompt_interpolation_method": "linear",
        "vace_context_scale": 1.0,
        "prompts": PROMPTS,
        "init_cache": True,
    }
    assert result["video"].shape == (1, 4, 6, 3) and len(session.frames()) == 1
    assert session.step().kwargs["init_cache"] is False and session.frames() and not session.frames()


def test_one_update_a_chunk_eight_wait_and_the_newest_is_dropped(session):
    for i in range(10):
        session.send({"n": i, f"key{i}": i})
    seen = [session.step().kwargs for _ in range(9)]
    assert [kwargs["n"] for kwargs in seen] == [0, 1, 2, 3, 4, 5, 6, 7, 7]
    assert {f"key{i}" for i in range(8)} <= set(seen[-1]) and "key8" not in seen[-1]
    assert session.processor.dropped_updates == 2


def test_messages_that_are_not_objects_are_ignored_and_the_servers_keys_go(session):
    for message in ("{", "[1]", '"text"', "3", "null"):
        session.send(message)
    session.send({"_quantized": True, "bpm": 120, "input_source": {}, "node_id": "fake", "type": "ping", "at": None})
    session.send({"node_id": "other", "lost": 1})
    kwargs = session.step().kwargs
    assert kwargs["type"] == "ping" and kwargs["at"] is None
    assert not {"_quantized", "bpm", "input_source", "node_id"} & set(kwargs)
    assert "lost" not in session.step().kwargs


def test_rest_brings_two_keys_along(session):
    session.send({"prompt_interpolation_method": "slerp"})
    session.post({"noise_scale": 0.5})
    methods = [session.step().kwargs["prompt_interpolation_method"] for _ in range(2)]
    assert methods == ["slerp", "linear"]


def test_pause_makes_no_calls_and_takes_updates(session):
    session.send({"paused": True})
    session.send({"noise_scale": 0.25, "paused": None})
    assert session.step() == (None, None) and session.step() == (None, None)
    session.send({"paused": False})
    kwargs = session.step().kwargs
    assert kwargs["noise_scale"] == 0.25 and kwargs["init_cache"] and "paused" not in kwargs


def test_reset_cache_empties_the_output_and_is_said_once(session):
    session.step()
    session.send({"reset_cache": True})
    kwargs = session.step().kwargs
    assert kwargs["init_cache"] and "reset_cache" not in kwargs and len(session.frames()) == 1
    session.send({"reset_cache": False})
    assert session.step().kwargs["init_cache"] is False and "reset_cache" not in session.step().kwargs


def test_one_shots_come_once_even_if_the_call_fails(session):
    pipeline = session.processor.pipeline
    pipeline.answers = [RuntimeError("no")]
    session.send({"lora_scales": [{"path": "a", "scale": 0.5}], "images": ["x.png"], "noise_scale": 0.5})
    kwargs, result = session.step()
    assert kwargs["lora_scales"] and kwargs["images"] and result is None and session.errors == ["RuntimeError: no"]
    assert not {"lora_scales", "images"} & set(session.step().kwargs)
    assert "images" in pipeline.prepared[1] and "lora_scales" not in pipeline.prepared[1]


def test_an_exception_uses_up_init_cache_and_an_empty_result_does_not(session):
    pipeline = session.processor.pipeline
    pipeline.answers = [{}, None, ValueError("no"), {"video": FRAME[None]}]
    assert [session.step().kwargs["init_cache"] for _ in range(4)] == [True, True, True, False]


def test_a_result_without_video_is_done(session):
    session.processor.pipeline.answers = [{"log": 1}]
    assert [session.step().kwargs["init_cache"] for _ in range(2)] == [True, False] and len(session.frames()) == 1


def test_an_error_in_prepare_ends_the_turn(session):
    session.processor.pipeline.prepare = None
    session.send({"lora_scales": [], "n": 1})
    assert session.step() == (None, None) and "TypeError" in session.errors[0]
    del session.processor.pipeline.prepare
    kwargs = session.step().kwargs
    assert kwargs["n"] == 1 and kwargs["init_cache"] and "lora_scales" not in kwargs


def transitions(session, n) -> list[bool]:
    return ["transition" in session.step().kwargs for _ in range(n)]


def test_a_transition_is_sent_while_it_lasts(session):
    state = session.processor.pipeline.state
    session.send({"transition": {"target_prompts": PROMPTS, "num_steps": 3}})
    state["_transition_active"] = True
    assert transitions(session, 2) == [True, True]
    state["_transition_active"] = False
    assert transitions(session, 2) == [True, False]
    del session.processor.pipeline.state
    session.send({"transition": {"target_prompts": PROMPTS}})
    assert transitions(session, 2) == [True, False]


def test_new_prompts_cancel_a_transition_and_null_clears_it(session):
    session.processor.pipeline.state["_transition_active"] = True
    session.send({"transition": {"target_prompts": PROMPTS}})
    assert transitions(session, 1) == [True]
    session.send({"prompts": PROMPTS})
    assert transitions(session, 1) == [False]
    session.send({"transition": None})
    assert transitions(session, 2) == [True, False]


def test_a_transition_outlives_a_failed_and_an_empty_call(session):
    session.processor.pipeline.answers = [ValueError("no"), {}, {"log": 1}]
    session.send({"transition": {"target_prompts": PROMPTS}})
    assert transitions(session, 5) == [True, True, True, True, False]


def test_a_value_on_a_port_becomes_a_parameter_and_the_client_is_told(session):
    session.put_value("prompts", "a boat")
    session.put_value("prompts", "a storm")
    assert session.step().kwargs["prompts"] == "a storm" == session.step().kwargs["prompts"]
    told = {"type": "parameters_updated", "parameters": {"node_id": "fake", "prompts": "a storm"}}
    assert session.notifications == [told]


def test_the_beat_changes_a_call_and_nothing_else(session):
    session.processor.beat = lambda kwargs: kwargs | {"bpm": 120, "init_cache": True}
    session.step()
    assert session.step().kwargs["init_cache"] and session.processor.pipeline.calls[-1]["bpm"] == 120
    session.processor.beat = None
    assert "bpm" not in session.step().kwargs


def coded(i: int, height: int = 5, width: int = 7) -> torch.Tensor:
    return torch.full((height, width, 3), i, dtype=torch.uint8)


def test_video_waits_for_its_frames_and_picks_them_evenly(scope):
    session = open_session(scope, input_mode="video")
    session.send({"lora_scales": []})
    for i in range(11):
        session.put_frame(coded(i, height=5 + i))
    assert session.step() == (None, None)
    for i in range(11, 29):
        session.put_frame(coded(i))
    kwargs = session.step().kwargs
    assert [frame[0, 0, 0, 0].item() for frame in kwargs["video"]] == [0, 2, 5, 7, 10, 12, 14, 17, 19, 22, 24, 27]
    assert kwargs["video"][1].shape == (1, 7, 7, 3) and kwargs["video"][0].dtype == torch.uint8
    assert kwargs["lora_scales"] == [] and kwargs["video_timestamps"] == [Timestamp()] * 12
    assert session.processor.inputs["video"].qsize() == 1  # the last one, for the next chunk


def test_frames_wait_in_text_mode_too_and_thirty_fit(session):
    for i in range(40):
        session.put_frame(coded(i))
    assert "video" not in session.step().kwargs
    session.send({"input_mode": "video"})
    assert session.step().kwargs["video"][-1][0, 0, 0, 0] == 28
    with pytest.raises(ValueError, match="uint8"):
        session.put_frame(FRAME.float())


def test_results_are_converted_clamped_and_queued(session):
    session.processor.pipeline.answers = [
        {"video": torch.tensor([-1.0, 0.5, 2.0]).expand(2, 4, 6, 3)},
        {"video": torch.tensor([-1.0, 0.0, 1.0])[None, :, None, None, None].expand(1, 3, 2, 4, 6)},
        {"video": torch.tensor([0.1, 0.2, 0.3], dtype=torch.bfloat16).expand(1, 4, 6, 3), "frame_rate": 24},
        {"video": FRAME[None, :, :, :1]},
    ]
    for _ in range(3):
        session.step()
    frames = session.frames()
    assert [frame[0, 0].tolist() for frame in frames] == [[0, 127, 255]] * 2 + [[0, 127, 255]] * 2 + [[25, 51, 76]]
    assert session.processor.frame_rate == 24
    session.step()
    with pytest.raises(ValueError, match="H,W,3"):
        session.frames()


def test_uint8_results_are_queued_as_they_lie(session):
    picture = FRAME[None].clone()
    session.processor.pipeline.answers = [{"video": picture}]
    session.step()
    picture.fill_(9)  # a plugin that writes its next result into the same memory
    assert session.frames()[0].max() == 9


def test_the_output_queue_grows_to_two_results_and_drops(session):
    session.processor.pipeline.answers = [{"video": FRAME.expand(20, 4, 6, 3)}] * 3
    for _ in range(3):
        session.step()
    assert len(session.frames()) == 40 and session.processor.dropped_frames == 20


@pytest.mark.parametrize("result", [{"video": "frames"}, ["video"], torch.zeros(2)])
def test_a_wrong_result_is_an_error(session, result):
    session.processor.pipeline.answers = [result]
    assert session.step().result is None and len(session.errors) == 1 and session.step().kwargs["init_cache"] is False


def test_out_of_memory_ends_the_worker(session):
    session.processor.pipeline.answers = [torch.cuda.OutOfMemoryError("no memory")]
    assert session.step().kwargs["init_cache"] and session.processor.ended
    with pytest.raises(RuntimeError, match="ended"):
        session.step()


# Threads.


def test_each_session_calls_in_one_thread_of_its_own(scope):
    first = open_session(scope)
    second, pipeline = scope.manager.open(), scope.manager.pipeline
    pipeline.threads.clear()
    first.step(), first.step()
    assert len(pipeline.threads) == 1
    second.step()
    assert len(pipeline.threads) == 2 and threading.get_ident() not in pipeline.threads


def test_two_sessions_overlap_on_one_instance(scope):
    together = threading.Barrier(2, timeout=30)
    first, second = open_session(scope), scope.manager.open()
    scope.manager.pipeline.answers = [lambda: {"waited": together.wait()}] * 2
    first.start(), second.start()
    while len(scope.manager.pipeline.calls) < 3:
        assert not first.errors + second.errors  # a broken barrier: the calls waited for each other
    assert together.n_waiting == 0
    assert first.stop() and second.stop()


def test_a_failing_call_is_repeated_at_once(session):
    session.processor.pipeline.answers = [ValueError("no")] * 50
    session.start()
    while len(session.processor.pipeline.calls) <= 50:
        pass
    session.stop()
    assert session.errors == ["ValueError: no"] * 50


def test_stop_waits_for_the_call_and_gives_up(session):
    gate = threading.Event()
    session.processor.pipeline.answers = [lambda: gate.wait() and {}]
    session.start()
    while not session.processor.pipeline.calls:
        pass
    with pytest.raises(RuntimeError, match="freely"):
        session.step()
    assert not session.stop(timeout=0.05)
    gate.set()
    session._thread.join(30)
    assert session.stop() and not session.frames()
    with pytest.raises(RuntimeError, match="ended"):
        session.step()
