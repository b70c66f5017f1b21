"""The plugin's sessions under a double of scope: several at once, what becomes of failures, and where they are told."""

import sys
import threading
import weakref

import pytest
import torch
from safetensors.torch import save_file

from longlive_optimized.engine import block
from longlive_optimized.engine.request import BlockRequest
from longlive_optimized.model.ring_cache import RingCache
from longlive_optimized.weights.random_checkpoint import TINY
from support.results import same
from support.scope_double.streams import BOAT, FOX, LOAD, covered, engine_of, expected, run, session_of, told


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
