"""Control in the engine: what it changes, what it leaves alone, and what of it is lost when a block fails."""

import dataclasses
import gc

import pytest
import torch
from engine.test_host_modes import MODES
from safetensors.torch import load_file

from longlive_optimized import BlockRequest, Control, LongLiveEngine, OptimizationConfig
from longlive_optimized.engine.control_input import ControlInput
from longlive_optimized.engine.memory_plan import memory_plan
from longlive_optimized.engine.sampler import make_schedule
from longlive_optimized.vae.stream import EncoderStream
from longlive_optimized.weights.locate import CONTROL_FILE
from longlive_optimized.weights.random_checkpoint import make_checkpoint
from longlive_optimized.weights.user_lora import UserLora
from support.control import Restated
from support.networks import stored

SIZE = {"height": 32, "width": 48}
GENERATOR = torch.Generator().manual_seed(0)


def pictures(count):
    return torch.randint(0, 256, (count, 32, 48, 3), dtype=torch.uint8, generator=GENERATOR)


FRAMES, MASKS = pictures(12), torch.zeros(12, 32, 48, dtype=torch.uint8)
MASKS[:, 8:24, 10:30] = 255
CONTROLS = {
    "frames": Control(FRAMES),
    "masks": Control(FRAMES, MASKS),
    "reference": Control(references=FRAMES[:1]),
    "ends": Control(first_frame=FRAMES[0], last_frame=FRAMES[1]),
    "all": Control(FRAMES, MASKS, FRAMES[:1], FRAMES[2], FRAMES[3]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("control") / "model", "tiny", control=True)


@pytest.fixture(scope="module")
def engine(folder):
    return LongLiveEngine(folder, OptimizationConfig(control=True, **SIZE), device="cpu")


def made(engine, stream, controls, prompt="a fox", **wishes):
    """Each block's pictures."""
    requests = [BlockRequest(prompt, control=control, **wishes) for control in controls]
    return [engine.generate_block(request, stream) for request in requests]


def same(a, b):
    return [torch.equal(*each) for each in zip(a, b, strict=True)]


def test_a_first_block_is_the_restatements(folder):
    """The whole of it, in float64: context, hints, steps."""
    engine = LongLiveEngine(folder, OptimizationConfig(control=True, **SIZE), device="cpu")
    network = Restated(stored(engine.model), stored(engine.control), 2, 2)
    for control in CONTROLS.values():
        stream = engine.open_stream(seed=3)
        control = dataclasses.replace(control, scale=0.7)
        context = ControlInput(engine.codec, None, engine._grey, stream.history.new_zeros(stream.latent_shape))
        context = context.context(control, 0, 3)
        embedding, generator = engine.text.encode(["a fox"])[0], torch.Generator().manual_seed(3)
        x = torch.randn(3, 16, 4, 6, generator=generator).double()
        for i, (t, sigma) in enumerate(make_schedule((1000, 750, 500, 250), "longlive")):
            if i:
                x = (1 - sigma) * x + sigma * torch.randn(3, 16, 4, 6, generator=generator).double()
            x = x - sigma * network.forward(x, t, embedding, 512, context, 0.7)[0]
        engine.generate_block(BlockRequest("a fox", control=control), stream)
        assert (stream.history - x).abs().max() <= 2e-4 * x.abs().max()


@pytest.mark.parametrize("kind", CONTROLS)
def test_control_matters_and_is_seen_in_no_other_block(engine, kind):
    """A block's context pass runs without it: only the block itself and what follows from its latents is another."""
    plain = made(engine, engine.open_stream(seed=1), [None] * 3)
    stream = engine.open_stream(seed=1)
    steered = made(engine, stream, [None, CONTROLS[kind], None])
    assert same(plain, steered) == [True, False, False]
    assert "control" in engine.block_times(stream)[1].stages and "control" not in engine.block_times(stream)[2].stages


def test_the_context_pass_has_no_hints(engine, monkeypatch):
    calls, real = [], engine.model.forward

    def forward(*args, hints=None, store_only=False):
        calls.append((store_only, hints is not None))
        return real(*args, hints=hints, store_only=store_only)

    monkeypatch.setattr(engine.model, "forward", forward)
    stream = engine.open_stream()
    made(engine, stream, [CONTROLS["frames"]] * 2)
    made(engine, stream, [CONTROLS["frames"]], "a boat")
    assert calls == [(False, True)] * 4 + ([(True, False)] + [(False, True)] * 4) * 2


def test_without_control_or_at_scale_0_all_is_as_without_the_module(engine, folder):
    """Bit for bit, and nothing is computed."""
    bare = LongLiveEngine(folder, OptimizationConfig(**SIZE), device="cpu")
    assert bare.control is None and bare.stream.control_input is None
    plain = made(bare, bare.open_stream(seed=2), [None] * 3)
    zero = dataclasses.replace(CONTROLS["all"], scale=0)
    streams = [engine.open_stream(seed=2) for _ in range(2)]
    for stream, controls in zip(streams, ([None] * 3, [None, zero, zero]), strict=True):
        assert all(same(plain, made(engine, stream, controls)))
        assert stream.control_input._reactive is None
        assert all("control" not in times.stages for times in engine.block_times(stream))


def test_control_without_its_module_is_refused_by_name(folder):
    bare = LongLiveEngine(folder, OptimizationConfig(**SIZE), device="cpu")
    stream = bare.open_stream(seed=2)
    for scale in (0, 1):
        with pytest.raises(ValueError, match=r"control wants VACE's module: .*OptimizationConfig\(control=True\)"):
            made(bare, stream, [Control(FRAMES, scale=scale)], reset=True)
    assert all(same(made(bare, stream, [None]), made(bare, bare.open_stream(seed=2), [None])))


def test_a_missing_module_is_an_error_where_it_is_wanted(tmp_path, folder):
    bare = make_checkpoint(tmp_path / "bare", "tiny")
    LongLiveEngine(bare, OptimizationConfig(**SIZE), device="cpu")
    with pytest.raises(FileNotFoundError, match=f"{CONTROL_FILE.name}(.|\n)*longlive-optimized download"):
        LongLiveEngine(bare, OptimizationConfig(control=True, **SIZE), device="cpu")
    engine = LongLiveEngine(folder, OptimizationConfig(**SIZE), device="cpu")
    with pytest.raises(ValueError, match="control cannot change while a stream runs"):
        engine.configure(control=True)


def test_loading_says_how_far_it_is(folder):
    steps = []
    LongLiveEngine(folder, OptimizationConfig(control=True, **SIZE), "cpu", lambda *step: steps.append(step))
    last = {what: (done, total) for what, done, total in steps}
    tensors = load_file(folder / CONTROL_FILE).values()
    assert last["control"] == (2 * sum(t.nbytes for t in tensors),) * 2  # float32 here


def test_the_scale_changes_with_the_block(engine):
    def with_scales(*scales):
        controls = [dataclasses.replace(CONTROLS["masks"], scale=scale) for scale in scales]
        return made(engine, engine.open_stream(seed=1), controls)

    blocks = with_scales(1, 1, 1), with_scales(1, 0.5, 1), with_scales(1, 2, 1)
    assert same(*blocks[:2]) == same(*blocks[::2]) == same(*blocks[1:]) == [True, False, False]


def test_control_with_video(engine):
    """The first block has four latents and thirteen frames, all of which the control has, too."""
    for kind in CONTROLS:
        stream, plain = engine.open_stream(seed=1), engine.open_stream(seed=1)
        blocks = made(engine, stream, [CONTROLS[kind]] * 2, video=FRAMES)
        assert [len(block) for block in blocks] == [13, 12]
        assert same(blocks, made(engine, plain, [None] * 2, video=FRAMES)) == [False, False]
    blocks = made(engine, engine.open_stream(seed=1), [CONTROLS["frames"]] * 2)
    assert [len(block) for block in blocks] == [9, 12]  # control alone is text mode


def test_streams_do_not_mix(engine):
    alone = made(engine, engine.open_stream(seed=1), [CONTROLS["masks"]] * 3)
    a, b, mixed = engine.open_stream(seed=1), engine.open_stream(48, 32, seed=2), []
    for _ in range(3):
        mixed += made(engine, a, [CONTROLS["masks"]])
        made(engine, b, [CONTROLS["all"]])
    assert all(same(alone, mixed))


def test_a_reset_starts_the_same_video_again(engine):
    stream = engine.open_stream(seed=1)
    first = made(engine, stream, [CONTROLS["masks"]] * 3)
    engine.reset(stream)
    again = made(engine, stream, [CONTROLS["masks"]] * 3)
    restarted = made(engine, stream, [CONTROLS["masks"]], restart=True)
    assert all(same(first, again)) and all(same(first[:1], restarted))


def test_a_failed_block_may_be_asked_for_again(engine, monkeypatch):
    """Whatever failed: the encoders move on once."""
    controls = [CONTROLS["masks"]] * 3
    wanted = made(engine, engine.open_stream(seed=1), controls)
    stream = engine.open_stream(seed=1)
    got = made(engine, stream, controls[:1])
    for owner, name in ((engine.model, "forward"), (stream.passes.control, "set_context")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *args, **kwargs: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                made(engine, stream, controls[:1])
    got += made(engine, stream, controls[:1])
    with monkeypatch.context() as patch:
        patch.setattr(stream.decoder, "decode_uint8", lambda latents: stream.decoder.reset() or _out_of_memory())
        patch.setattr(engine, "_take_leaner", lambda short: False)
        with pytest.raises(torch.OutOfMemoryError):
            made(engine, stream, controls[:1])
    got += made(engine, stream, controls[:1])
    assert all(same(wanted, got))


def _out_of_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("out of memory")


def test_where_its_encoder_finds_no_memory_the_video_goes_on(engine, monkeypatch):
    stream = engine.open_stream(seed=1)
    got = made(engine, stream, [CONTROLS["masks"]] * 2)
    with monkeypatch.context() as patch:
        patch.setattr(EncoderStream, "encode", _out_of_memory)
        patch.setattr(engine, "_take_leaner", lambda short: False)
        with pytest.raises(torch.OutOfMemoryError):
            made(engine, stream, [CONTROLS["masks"]])
    assert stream.position == 6
    got += made(engine, stream, [CONTROLS["masks"]])
    assert got[-1].shape == (12, 32, 48, 3) and stream.position == 9


@pytest.mark.parametrize("low_memory", [False, True])
def test_it_runs_in_8_bits_where_the_stream_does(folder, low_memory):
    engine = LongLiveEngine(folder, OptimizationConfig(control=True, low_memory=low_memory, **SIZE), device="cpu")
    assert engine.control.holds_int8 == low_memory
    plain, narrow = engine.open_stream(seed=1), engine.open_stream(seed=1, precision="int8")
    assert engine.control.holds_int8
    blocks = [made(engine, stream, [CONTROLS["masks"]] * 3) for stream in (plain, narrow)]
    assert same(*blocks) == [True, False, False]  # the first block writes the sinks
    assert (plain.history[3:6] - narrow.history[3:6]).norm() < 0.2 * plain.history[3:6].norm()
    assert not narrow.fallback_blocks


def test_a_block_that_is_not_finite_in_8_bits_is_made_again_with_its_control(folder):
    engine = LongLiveEngine(folder, OptimizationConfig(control=True, precision="int8", **SIZE), device="cpu")
    stream, plain = engine.open_stream(seed=1), engine.open_stream(seed=1, precision="bf16")
    made(engine, stream, [CONTROLS["masks"]]), made(engine, plain, [CONTROLS["masks"]])
    engine.control.blocks[0].ffn_in.int8_scale.fill_(torch.nan)
    block = made(engine, stream, [CONTROLS["masks"]])
    assert stream.fallback_blocks == 1 and stream.history.isfinite().all()
    assert (block[0].float() - made(engine, plain, [CONTROLS["masks"]])[0].float()).abs().mean() < 8


def test_a_prompt_switch_reaches_the_hints(engine):
    a, b = engine.open_stream(seed=1), engine.open_stream(seed=1)
    made(engine, a, [CONTROLS["frames"]], "a fox")
    switched = engine.open_stream(seed=1)
    made(engine, b, [CONTROLS["frames"]], "a boat")
    made(engine, switched, [CONTROLS["frames"]], "a fox")
    engine.reset(switched, seed=1)
    made(engine, switched, [CONTROLS["frames"]], "a boat")
    assert torch.equal(switched.history, b.history) and not torch.equal(a.history, b.history)


def test_a_window_that_grows_keeps_the_control(engine):
    stream = engine.open_stream(seed=1, local_attn_size=9)
    made(engine, stream, [CONTROLS["frames"]])
    stream.configure(local_attn_size=15)
    wide = engine.open_stream(seed=1, local_attn_size=15)
    made(engine, wide, [CONTROLS["frames"]])
    assert all(same(made(engine, stream, [CONTROLS["frames"]]), made(engine, wide, [CONTROLS["frames"]])))


def test_loras_reach_the_branch_while_a_stream_runs(folder, tmp_path):
    from safetensors.torch import save_file

    path, name = tmp_path / "style.safetensors", "vace_blocks.0.self_attn.q"
    save_file({f"{name}.lora_A.weight": torch.randn(2, 256), f"{name}.lora_B.weight": torch.randn(256, 2)}, path)
    config = OptimizationConfig(control=True, **SIZE)
    loaded = LongLiveEngine(folder, config, "cpu", loras=[UserLora(path)])
    later = LongLiveEngine(folder, config, "cpu", loras=[UserLora(path, 0.0)])
    later.set_loras([UserLora(path)])
    wanted, got = (stored(each.control) for each in (loaded, later))
    assert all(torch.equal(tensor, got[key]) for key, tensor in wanted.items())
    blocks = [made(each, each.open_stream(seed=1), [CONTROLS["frames"]]) for each in (loaded, later)]
    assert all(same(*blocks))


def test_a_warm_up_leaves_no_trace(folder):
    engine = LongLiveEngine(folder, OptimizationConfig(control=True, **SIZE), device="cpu")
    wanted = made(engine, engine.open_stream(seed=1), [CONTROLS["masks"]] * 2)
    stream = engine.open_stream(seed=1)
    engine.warmup(stream=stream)
    assert stream.position == 0 and stream.context is None
    assert all(same(wanted, made(engine, stream, [CONTROLS["masks"]] * 2)))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_memory_plan_counts_it(folder, precision):
    config = OptimizationConfig(precision=precision, **SIZE)
    without, plan = (memory_plan(folder, dataclasses.replace(config, control=on), "cpu") for on in (False, True))
    engine = LongLiveEngine(folder, dataclasses.replace(config, control=True), device="cpu")
    held = sum(p.nbytes for p in engine.control.parameters())
    assert plan.parts["control"] == held and "control" not in without.parts
    stream = engine.open_stream()
    in_int8 = sum(b.nbytes for b in engine.control.buffers())
    assert plan.parts.get("control in int8", 0) == in_int8
    assert plan.parts["passes"] > without.parts["passes"] and plan.parts["control's encoder"] > 0
    assert plan.allocated > without.allocated + held
    gc.collect()
    del stream


def test_torch_compile_takes_hints(folder):
    plain = LongLiveEngine(folder, OptimizationConfig(control=True, **SIZE), device="cpu")
    wanted = made(plain, plain.open_stream(seed=1), [CONTROLS["frames"], None])
    engine = LongLiveEngine(folder, OptimizationConfig(control=True, use_torch_compile=True, **SIZE), device="cpu")
    got = made(engine, engine.open_stream(seed=1), [CONTROLS["frames"], None])
    assert all((a.float() - b.float()).abs().mean() < 1 for a, b in zip(wanted, got, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_the_modes_of_a_host_change_nothing(folder, mode):
    engine = LongLiveEngine(folder, OptimizationConfig(control=True, **SIZE), device="cpu")
    controls = [CONTROLS["masks"], CONTROLS["ends"], CONTROLS["all"]]
    wanted = made(engine, engine.open_stream(seed=1), controls)
    with MODES[mode]():
        other = LongLiveEngine(folder, OptimizationConfig(control=True, **SIZE), device="cpu")
        got = made(other, other.open_stream(seed=1), controls)
    assert all(same(wanted, got))
