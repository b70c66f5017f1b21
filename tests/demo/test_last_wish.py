"""What is on screen is what was last wished for, in any order of calls: pipeline, track and plugin against small models
of that rule. Blocks are made by the engine, but neither denoised nor decoded.
"""

import json
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longlive_optimized.config import PRESETS
from longlive_optimized.demo.scope_integration import OptimizedScopePipeline, ScopeOptimizationConfig
from longlive_optimized.demo.scope_integration.prompt_box import Prompt, PromptBox
from longlive_optimized.demo.video_track import PipelineVideoTrack
from longlive_optimized.engine import block
from longlive_optimized.vae.stream import DecoderStream
from support.scope_double import scope_installed

SIZE = {"height": 32, "width": 48}
TEXTS = ("a fox", "a boat", "a storm")
TEXT, BLOCKS = st.sampled_from(TEXTS), st.sampled_from([None, 1, 3])
STEPS = st.sampled_from([None, (1000,), (1000, 500)])


class Machine:
    """The engine's slow parts, replaced: counts blocks, and fails where it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.blocks, self.failing = 0, None
        patch.setattr(block, "settle", lambda stream: None)
        patch.setattr(block, "denoise", self._denoise)
        patch.setattr(DecoderStream, "decode_uint8", self._decode)

    def _denoise(self, stream, request, policy):
        if self.failing == "denoise":
            raise RuntimeError("no")
        self.blocks += 1
        return stream.history.new_zeros(3, *stream.latent_shape)

    def _decode(self, latents):
        if self.failing == "vae":
            raise RuntimeError("no")
        return torch.zeros(4 * len(latents), 32, 48, 3, dtype=torch.uint8, device=latents.device)


@pytest.fixture(scope="module")
def machine():
    with pytest.MonkeyPatch.context() as patch:
        yield Machine(patch)


@pytest.fixture(scope="module")
def pipeline(machine):
    config = ScopeOptimizationConfig.preset_balanced(**SIZE, prompt_debounce_ms=0, enable_latency_overlay=False)
    return OptimizedScopePipeline("tiny", config, device="cpu")


def arrived(engine, stream, text: str) -> bool:
    return torch.equal(stream.prompt.embedding, engine.prompts.get(text)) and not stream.prompt.in_transition


class Rule:
    """The rule for the pipeline: the last switch, or argument that changed; of steps and presets the last one."""

    def __init__(self):
        self.wish = self.argument = self.steps_argument = None
        self.steps = PRESETS["balanced"]["denoising_steps"]

    def called_with(self, text, steps):
        if text != self.argument:
            self.wish = self.argument = text
        if steps != self.steps_argument:
            self.steps_argument, self.steps = steps, steps or self.steps


CALLS = st.one_of(
    st.tuples(st.just("frame"), TEXT, STEPS),
    st.tuples(st.just("block"), TEXT, STEPS),
    st.tuples(st.just("switch"), TEXT, BLOCKS),
    st.tuples(st.just("track"), TEXT),
    st.tuples(st.just("preset"), st.sampled_from(["balanced", "realtime", "ultra"])),
    st.tuples(st.just("fail"), st.sampled_from([None, "denoise", "vae"])),
    st.tuples(st.sampled_from(["reset", "next", "drain", "warmup"])),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(CALLS, max_size=14))
@example([("frame", TEXTS[0], None), ("switch", TEXTS[1], None), ("drain",), ("reset",), ("frame", TEXTS[0], None)])
@example([("track", TEXTS[0]), ("track", TEXTS[1]), ("switch", TEXTS[2], None), ("next",)])
@example([("frame", TEXTS[0], (1000,)), ("preset", "ultra"), ("frame", TEXTS[0], (1000,)), ("drain",)])
def test_the_pipeline_shows_the_last_wish(machine, pipeline, calls):
    machine.failing = None
    pipeline.reset()
    pipeline._prompts, pipeline._steps, rule = PromptBox(), None, Rule()
    pipeline.set_optimization_preset("balanced")
    engine, stream, track = pipeline.engine, pipeline.stream, None

    def attempt(call, *args, **kwargs):
        before, anew = machine.blocks, stream.position == 0
        try:
            call(*args, **kwargs)
        except RuntimeError as error:
            if "frames wait" not in str(error) and "no prompt yet" not in str(error):
                assert machine.failing and "no" in str(error)
            return str(error)
        if machine.blocks > before:
            assert stream.settings.denoising_steps == rule.steps
            assert stream.prompt.in_transition or arrived(engine, stream, rule.wish)
            assert not (anew and stream.prompt.in_transition)
        return ""

    def drain():
        while pipeline._queue or stream.undecoded:
            if attempt(pipeline.next_frame):
                break

    for name, *args in calls:
        if name == "frame":
            rule.called_with(*args)
            attempt(pipeline.generate_frame, args[0], denoising_steps=args[1])
        elif name == "block":
            if not pipeline._queue and not stream.undecoded:
                rule.called_with(*args)
            attempt(pipeline.generate_block, args[0], denoising_steps=args[1])
        elif name == "switch":
            rule.wish = args[0]
            pipeline.switch_prompt(args[0], transition_blocks=args[1]) if args[1] else pipeline.switch_prompt(args[0])
        elif name == "track":
            rule.wish = args[0]
            track.set_prompt(args[0]) if track else (track := PipelineVideoTrack(pipeline, args[0]))
        elif name == "preset":
            rule.steps = PRESETS[args[0]]["denoising_steps"]
            pipeline.set_optimization_preset(args[0])
        elif name == "fail":
            machine.failing = args[0]
        elif name == "reset":
            pipeline.reset()
        elif name == "warmup":
            machine.failing = None
            pipeline.warmup(1)
        elif name == "next":
            attempt(track._next_picture if track else pipeline.next_frame)
        else:
            drain()
    machine.failing = None
    if rule.wish:
        for _ in range(4):
            drain(), attempt(pipeline.next_frame)
        assert arrived(engine, stream, rule.wish) and stream.settings.denoising_steps == rule.steps
    if track:
        track.stop()


@given(st.lists(st.tuples(st.sampled_from(["switch", "follow", "take", "fail", "anew"]), TEXT, st.integers(0, 200))))
def test_a_prompt_is_in_force_once_it_has_stood_for_the_debounce(calls):
    box, wish, argument, now, since = PromptBox(), None, None, 0.0, 0.0
    for name, words, wait in calls:
        text, now = Prompt(words), now + wait / 1e3
        if name == "switch" or (name == "follow" and text != argument):
            wish, since = text, now if text != wish else since
        if name == "switch":
            box.switch(text, now, 0.1)
        elif name == "follow":
            argument = text
            box.follow(text, now, 0.1)
        elif wish is None:
            with pytest.raises(RuntimeError, match="no prompt yet"):
                box.take(now, 0.1)
        elif name == "anew":
            box.hold_nothing_back()
            assert box.take(now, 0.1)[0] == wish
        else:
            prompt, taken = box.take(now, 0.1)
            assert prompt == wish or now - since < 0.1
            if name == "fail" and taken:
                box.give_back(taken)
    assert wish is None or box.take(now + 1, 0.1)[0] == wish


def test_a_change_made_while_another_takes_hold_is_not_lost(pipeline, monkeypatch):
    pipeline.reset()
    pipeline.switch_prompt(TEXTS[0])
    real = pipeline.stream.configure

    def configure(**changes):
        monkeypatch.undo()
        pipeline.configure(target_fps=7)  # from another thread, say
        real(**changes)

    monkeypatch.setattr(pipeline.stream, "configure", configure)
    pipeline.set_optimization_preset("ultra")
    pipeline.generate_block(TEXTS[0])
    pipeline.generate_block(TEXTS[0])
    assert pipeline.config.target_fps == 7 and pipeline.config.denoising_steps == (1000, 250)
    pipeline.set_optimization_preset("balanced")


def test_a_wish_made_during_the_warm_up_holds(pipeline, monkeypatch):
    pipeline.reset()
    pipeline._warm, real = False, pipeline.engine.warmup  # as on CUDA

    def warmup(*args):
        pipeline.switch_prompt(TEXTS[2])  # from another thread
        return real(*args)

    monkeypatch.setattr(pipeline.engine, "warmup", warmup)
    pipeline.generate_frame(TEXTS[1])
    assert arrived(pipeline.engine, pipeline.stream, TEXTS[2])


# The plugin, under scope's double


@pytest.fixture(scope="module")
def scope(machine):
    with scope_installed() as scope:
        pipeline_class = scope.discover("longlive-optimized")["longlive-optimized"]
        assert scope.manager.load(pipeline_class, {"model_path": "tiny", **SIZE}), scope.manager.error
        yield scope
    for name in [*sys.modules]:  # they hold the double's classes
        if name.startswith("longlive_optimized.demo.scope_plugin"):
            del sys.modules[name]


def pairs(text: str) -> list:
    return [{"text": text, "weight": 1.0}]


TRANSITION = st.tuples(TEXT, st.integers(0, 4)).map(
    lambda way: (way[0], {"transition": {"target_prompts": pairs(way[0]), "num_steps": way[1]}})
)
NO_WISH = [
    {"reset_cache": True},
    {"reset_cache": True, "base_seed": 5},
    {"optimization_preset": "ultra"},
    {"type": "set_optimization_preset", "preset": "realtime", "request_id": 1},
    {"denoising_step_list": [1000, 500]},
    {"manage_cache": False},
    {"prompts": 17},
    {"prompts": " "},
    {"prompts": [{"weight": 1}]},
    {"transition": {"target_prompts": pairs("a whale"), "num_steps": -3}},
    {"transition": {"target_prompts": []}},
    {"transition": None},
]
MESSAGES = st.one_of(
    TEXT.map(lambda text: (text, {"prompts": pairs(text)})),
    TEXT.map(lambda text: (text, {"prompts": text})),
    TEXT.map(lambda text: (text, {"prompts": pairs(text), "reset_cache": True})),
    TRANSITION,
    st.sampled_from(NO_WISH).map(lambda message: (None, message)),
    st.integers(1, 4).map(lambda calls: (None, calls)),
    st.sampled_from(["denoise", "vae"]).map(lambda kind: (None, kind)),
    # What scope merges while it is paused, the plugin sees at once.
    st.lists(TEXT.map(lambda text: (text, {"prompts": pairs(text)})) | TRANSITION, max_size=3).map(lambda m: (None, m)),
)
A, B, C = ((text, {"prompts": pairs(text)}) for text in TEXTS)
TO_B = (TEXTS[1], {"transition": {"target_prompts": pairs(TEXTS[1]), "num_steps": 4}})
TO_C = (TEXTS[2], {"transition": {"target_prompts": pairs(TEXTS[2]), "num_steps": 4}})
RESET = (None, {"reset_cache": True})


@settings(max_examples=150, deadline=None)
@given(st.lists(MESSAGES, max_size=10))
@example([A, TO_B, (None, 4), RESET])
@example([A, TO_B, (None, 4), A])
@example([A, TO_B, (None, 4), TO_C, A])
@example([A, TO_B, (None, {"transition": 3}), (None, 4)])
@example([A, TO_B, (None, {"prompts": 17}), (None, 4)])
@example([A, (None, [TO_B, A])])
@example([A, (None, [TO_B]), (None, 3), (None, [A, TO_B])])
@example([A, (TEXTS[1], {"transition": {"target_prompts": pairs(TEXTS[1]), "num_steps": 0}}), A])
def test_the_plugin_shows_the_last_wish(machine, scope, messages):
    from longlive_optimized.demo.scope_plugin import session as module

    now = [0.0]
    session, wish = scope.manager.open(), None
    machine.failing = None

    def step():
        turn = session.step()
        if turn.kwargs and wish and turn.result:
            stream = scope.manager.pipeline._sessions._busy[session._thread]._stream
            assert stream.prompt.in_transition or arrived(scope.manager.pipeline._engine, stream, wish)
            assert not (turn.kwargs["init_cache"] and stream.prompt.in_transition)
        return turn

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.time, "monotonic", lambda: now[0])
            for text, message in messages:
                wish = text or wish
                if isinstance(message, int):
                    for _ in range(message):
                        step()
                elif isinstance(message, str):
                    machine.failing = message
                    step()
                    machine.failing = None
                    now[0] += 60
                elif isinstance(message, list):
                    session.send({"paused": True})
                    session.step()
                    for text, update in message:
                        wish = text
                        session.send(update)
                        session.step()
                    session.send({"paused": False})
                    step(), step()  # two: the plugin must have seen that scope repeats the same objects
                else:
                    session.send(json.loads(json.dumps(message)))
                    step()
            for _ in range(5):
                last = step()
            if wish:
                stream = scope.manager.pipeline._sessions._busy[session._thread]._stream
                assert arrived(scope.manager.pipeline._engine, stream, wish)
            else:
                assert not last.result
    finally:
        stopped = session.stop()
    assert stopped and not session.errors
