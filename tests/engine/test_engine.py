"""The engine on the built-in model: against the baseline driven by hand, and against itself."""

import gc
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.bench.baseline import baseline_network, predict_x0, renoise
from longlive_optimized.engine.passes import BlockInputs
from longlive_optimized.engine.sampler import make_schedule
from longlive_optimized.model.ring_cache import RingCache
from longlive_optimized.vae.stream import DecoderStream, EncoderStream
from longlive_optimized.weights import load
from longlive_optimized.weights.user_lora import UserLora

SHAPE = (3, 16, 4, 6)


def latents_of(engine, stream, prompts, **wishes) -> torch.Tensor:
    """Generate a block for each prompt; all clean latents."""
    out = []
    for prompt in prompts:
        engine.generate_block(BlockRequest(prompt, **wishes), stream)
        out.append(stream.history[-3:])
    return torch.cat(out)


@torch.no_grad()
def baseline_latents(engine, prompts, seed) -> torch.Tensor:
    """The published loop (docs/model.md 0, 4.5, 5): every context pass is run, twelve frames are recached."""
    config = engine.config
    net = baseline_network(engine)
    steps = make_schedule(config.denoising_steps, config.step_schedule)
    history, before = torch.empty(0, *SHAPE[1:]), prompts[0]
    for block, prompt in enumerate(prompts):
        p, embedding = 3 * block, engine.text.encode([prompt])[0]
        if prompt != before:
            net.new_prompt()
            n = min(12, p)
            net.forward(history[p - n :], torch.zeros(n), embedding, p - n)
            net.new_prompt()
        generator = torch.Generator().manual_seed(seed + p)
        x = torch.randn(SHAPE, generator=generator)
        for i, (t, sigma) in enumerate(steps):
            if i:
                x = renoise(x, torch.randn(SHAPE, generator=generator), sigma)
            x = predict_x0(x, net.forward(x, torch.full((3,), t), embedding, p), sigma)
        net.forward(x, torch.zeros(3), embedding, p)
        history, before = torch.cat((history, x)), prompt
    return history


@pytest.mark.parametrize("positions", ["relative", "base"])
@pytest.mark.parametrize("step_schedule", ["longlive", "scope"])
def test_equals_the_published_loop(positions, step_schedule):
    config = OptimizationConfig(height=32, width=48, positions=positions, step_schedule=step_schedule)
    engine = LongLiveEngine("tiny", config, device="cpu")
    prompts = ["a fox"] * 2 + ["a boat on a lake"] * 5 + ["a storm"] * 2
    got = latents_of(engine, engine.open_stream(seed=3), prompts)
    torch.testing.assert_close(got, baseline_latents(engine, prompts, seed=3), rtol=1e-3, atol=1e-3)


def test_blocks_are_nine_then_twelve_frames(engine):
    stream = engine.open_stream()
    blocks = [engine.generate_block(BlockRequest("a fox"), stream) for _ in range(3)]
    assert [tuple(b.shape) for b in blocks] == [(9, 32, 48, 3), (12, 32, 48, 3), (12, 32, 48, 3)]
    assert all(b.dtype == torch.uint8 and b.float().std() > 5 for b in blocks)


def test_the_first_latents_frames_may_come_first(engine):
    """1 + 8 and 4 + 8 frames are the 9 and 12 of a block; each block is counted once, with all of its time."""
    whole, parts = engine.open_stream(), engine.open_stream()
    for prompt in ("a fox", "a fox", "a boat"):
        block = engine.generate_block(BlockRequest(prompt), whole)
        first = engine.generate_block(BlockRequest(prompt), parts, first_latent_only=True)
        assert len(first) == len(block) - 8 and len(engine.block_times(parts)) == len(engine.block_times(whole)) - 1
        torch.testing.assert_close(torch.cat((first, engine.rest_of_block(parts))), block, rtol=0, atol=1)
        with pytest.raises(RuntimeError, match="no frames of the last block"):
            engine.rest_of_block(parts)
    assert [t.frames for t in engine.block_times(parts)] == [9, 12, 12]
    assert all(t.stages["decode_rest"] > 0 for t in engine.block_times(parts))


def test_frames_not_asked_for_are_skipped(engine):
    whole, parts = engine.open_stream(), engine.open_stream()
    for _ in range(2):
        block = engine.generate_block(BlockRequest("a fox"), whole)
        first = engine.generate_block(BlockRequest("a fox"), parts, first_latent_only=True)
    torch.testing.assert_close(first, block[:4], rtol=0, atol=1)
    engine.reset(parts)
    assert parts.undecoded == 0
    assert len(engine.generate_block(BlockRequest("a fox"), parts)) == 9
    assert [t.frames for t in engine.block_times(parts)] == [9, 4, 9]  # what was given of the second one counts


def test_the_first_latents_frames_of_a_video(engine):
    """13 frames are 1 + 12, and a change of mode gives up what was not asked for."""
    video, stream = torch.randint(0, 256, (13, 32, 48, 3), dtype=torch.uint8), engine.open_stream()
    assert len(engine.generate_block(BlockRequest("a fox", video=video), stream, first_latent_only=True)) == 1
    assert len(engine.rest_of_block(stream)) == 12
    assert len(engine.generate_block(BlockRequest("a fox", video=video), stream, first_latent_only=True)) == 4
    assert len(engine.generate_block(BlockRequest("a fox"), stream, first_latent_only=True)) == 1
    assert len(engine.rest_of_block(stream)) == 8
    assert [t.frames for t in engine.block_times(stream)] == [13, 4, 9]


def test_a_rest_that_fails_begins_the_stream_anew(engine, monkeypatch):
    stream = engine.open_stream(seed=4)
    first = engine.generate_block(BlockRequest("a fox"), stream, first_latent_only=True)

    def fail(latents):
        monkeypatch.undo()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(stream.decoder, "decode_uint8", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.rest_of_block(stream)
    with pytest.raises(RuntimeError, match="no frames of the last block"):
        engine.rest_of_block(stream)
    assert torch.equal(engine.generate_block(BlockRequest("a fox"), stream, first_latent_only=True), first)


def test_a_window_of_a_stream_outlives_other_changes(engine):
    stream = engine.open_stream(local_attn_size=9)
    stream.configure(denoising_steps=(1000, 500))
    assert stream.ring.window == 9 and engine.stream.ring.window == 12


def test_a_stream_that_is_dropped_is_freed_at_once(engine, monkeypatch):
    monkeypatch.setattr("torch.cuda.Stream", lambda device: 1 / 0)  # a CPU has none
    stream = engine.open_stream()
    for graphs in (False, True):
        stream.configure(use_cuda_graphs=graphs)
        engine.generate_block(BlockRequest("a fox"), stream)
    parts = [weakref.ref(part) for part in (stream, stream.passes, stream.decoder)]
    gc.collect()
    gc.disable()
    try:
        del stream
        assert [part() for part in parts] == [None] * 3
    finally:
        gc.enable()


def test_neighbours_have_presets_of_their_own(engine):
    """Frames of a stream depend on its settings alone, whatever the others' are and whenever they change."""
    wish = {"denoising_steps": (1000, 250), "local_attn_size": 6}
    mine, theirs = engine.open_stream(seed=1, **wish), engine.open_stream(seed=1)
    got = [latents_of(engine, stream, ["a fox"] * 3) for stream in (mine, theirs, mine)]
    alone = LongLiveEngine("tiny", replace(engine.config, **wish), device="cpu")
    assert torch.equal(torch.cat((got[0], got[2])), latents_of(alone, alone.open_stream(seed=1), ["a fox"] * 6))
    assert not torch.equal(got[0], got[1]) and theirs.settings.denoising_steps == (1000, 750, 500, 250)


def test_the_engines_own_configure_is_the_default_streams():
    engine = LongLiveEngine("tiny", OptimizationConfig(height=32, width=32), device="cpu")
    other = engine.open_stream()
    engine.configure(denoising_steps=(1000, 500), local_attn_size=9, vae_type="wan")
    assert engine.stream.settings.denoising_steps == engine.open_stream().settings.denoising_steps == (1000, 500)
    assert (engine.stream.ring.window, engine.config.local_attn_size, other.ring.window) == (9, 9, 12)
    with pytest.raises(ValueError, match="vae_type, seed cannot change while a stream runs"):
        engine.configure(vae_type="tae", seed=1, local_attn_size=12)
    assert engine.stream.ring.window == engine.config.local_attn_size == 9


def test_changes_from_two_threads_are_both_kept():
    engine = LongLiveEngine("tiny", OptimizationConfig(height=32, width=32), device="cpu")
    other = threading.Thread(target=engine.configure, kwargs={"local_attn_size": 9})
    with engine.devices.turn():
        other.start()
        other.join(0.3)  # it waits for its turn
        engine.configure(denoising_steps=(1000,))
    other.join()
    assert (engine.config.local_attn_size, engine.config.denoising_steps) == (9, (1000,))


def test_a_warm_up_that_fails_leaves_no_trace(engine, monkeypatch):
    stream = engine.open_stream()
    monkeypatch.setattr("longlive_optimized.engine.block.rest_of_block", lambda stream: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.warmup(stream=stream)
    assert stream.position == 0 and not engine.block_times(stream)
    with pytest.raises(ValueError, match="total_frames"):
        engine.warmup(stream=engine.open_stream(total_frames=6))


def test_the_seed_decides_the_video(engine):
    def video(seed):
        stream = engine.open_stream(seed=seed)
        return torch.cat([engine.generate_block(BlockRequest("a fox"), stream) for _ in range(3)])

    assert torch.equal(video(1), video(1))
    assert not torch.equal(video(1), video(2))


def test_reset_starts_the_same_video_again(engine):
    stream = engine.open_stream(seed=5)
    first = latents_of(engine, stream, ["a fox"] * 6)
    engine.reset(stream)
    assert torch.equal(latents_of(engine, stream, ["a fox"] * 6), first)
    other = engine.generate_block(BlockRequest("a fox", reset=True, seed=6), stream)
    assert torch.equal(other, engine.generate_block(BlockRequest("a fox"), engine.open_stream(seed=6)))


def test_streams_do_not_mix(engine):
    alone = latents_of(engine, engine.open_stream(seed=1), ["a fox"] * 3)
    a, b, mixed = engine.open_stream(seed=1), engine.open_stream(48, 32, seed=2), []
    for _ in range(3):
        mixed.append(latents_of(engine, a, ["a fox"]))
        engine.generate_block(BlockRequest("a boat"), b)
    assert torch.equal(torch.cat(mixed), alone)


def test_threads_take_turns(engine):
    expected = {seed: latents_of(engine, engine.open_stream(seed=seed), ["a fox"] * 4) for seed in (1, 2)}
    got = {}

    def work(seed):
        got[seed] = latents_of(engine, engine.open_stream(seed=seed), ["a fox"] * 4)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    [t.start() for t in threads], [t.join() for t in threads]
    assert all(torch.equal(got[seed], expected[seed]) for seed in expected)


def test_a_prompt_switch_replaces_the_context_pass(engine):
    stream = engine.open_stream()
    stages = []
    for prompt in ["a fox", "a fox", "a boat", "a boat"]:
        engine.generate_block(BlockRequest(prompt), stream)
        stages.append(set(engine.block_times(stream)[-1].stages))
    assert stages[1] == stages[3] == {"context", "denoise", "decode"}
    assert stages[2] == {"text", "recache", "denoise", "decode"}


def test_an_error_loses_nothing(engine, monkeypatch):
    expected = latents_of(engine, engine.open_stream(seed=9), ["a fox", "a fox", "a boat", "a boat"])
    stream = engine.open_stream(seed=9)
    got = [latents_of(engine, stream, ["a fox", "a fox"])]
    real, calls = engine.model.forward, []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) in (1, 4):  # in the recache, then in the middle of the steps
            raise RuntimeError("out of memory")
        return real(*args, **kwargs)

    def fail_once(*args):
        monkeypatch.undo()
        monkeypatch.setattr(engine.model, "forward", fail)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.model, "cross_cache", fail_once)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.generate_block(BlockRequest("a boat"), stream)
    got.append(latents_of(engine, stream, ["a boat", "a boat"]))
    assert torch.equal(torch.cat(got), expected)


def test_a_transition_ends_on_the_target(engine):
    stream = engine.open_stream()
    engine.generate_block(BlockRequest("a fox"), stream)
    seen = []
    for _ in range(5):
        engine.generate_block(BlockRequest("a boat", transition_blocks=3), stream)
        seen.append(stream.prompt.embedding)
    fox, boat = engine.prompts.get("a fox"), engine.prompts.get("a boat")
    torch.testing.assert_close(seen[0], torch.lerp(fox, boat, 1 / 3))
    assert torch.equal(seen[2], boat) and seen[4] is seen[2]


def test_a_new_prompt_amid_a_transition_starts_from_there(engine):
    stream = engine.open_stream()
    engine.generate_block(BlockRequest("a fox"), stream)
    engine.generate_block(BlockRequest("a boat", transition_blocks=4), stream)
    half = stream.prompt.embedding
    engine.generate_block(BlockRequest("a storm", transition_blocks=2), stream)
    torch.testing.assert_close(stream.prompt.embedding, torch.lerp(half, engine.prompts.get("a storm"), 0.5))


def test_weighted_prompts_are_blended(engine):
    stream = engine.open_stream()
    engine.generate_block(BlockRequest((("a fox", 1.0), ("a boat", 0.0))), stream)
    assert torch.equal(stream.prompt.embedding, engine.prompts.get("a fox"))
    engine.generate_block(BlockRequest((("a fox", 1.0), ("a boat", 1.0)), blend="slerp"), stream)
    assert not torch.equal(stream.prompt.embedding, engine.prompts.get("a fox"))


def test_prompts_are_encoded_once(engine):
    stream, misses = engine.open_stream(), engine.prompts.misses
    for prompt in ["once upon a time", "a fox", "once upon a time"]:
        engine.generate_block(BlockRequest(prompt), stream)
    assert engine.prompts.misses <= misses + 2


def test_video_mode_starts_with_thirteen_frames(engine):
    stream = engine.open_stream()
    video = torch.randint(0, 256, (10, 20, 30, 3), dtype=torch.uint8)
    shapes = [len(engine.generate_block(BlockRequest("a fox", video=video), stream)) for _ in range(3)]
    assert shapes == [13, 12, 12] and stream.position == 10


def test_video_input_matters_and_full_noise_hides_it(engine):
    def run(video, scale):
        request = BlockRequest("a fox", video=video, noise_scale=scale, denoising_steps=(1000,))
        return engine.generate_block(request, engine.open_stream(seed=1))

    torch.manual_seed(0)
    one, other = torch.randint(0, 256, (2, 13, 32, 48, 3), dtype=torch.uint8)
    assert not torch.equal(run(one, 0.4), run(other, 0.4))
    assert torch.equal(run(one, 1.0), run(other, 1.0))


def test_streams_share_one_codec(engine):
    """Packed weights are made once, whatever the number of streams."""
    streams = [engine.open_stream() for _ in range(2)]
    assert {side.codec for stream in streams for side in (stream.decoder, stream.encoder)} == {engine.codec}


def test_a_change_of_mode_starts_the_vae_anew_and_nothing_else(engine):
    stream, video = engine.open_stream(), torch.randint(0, 256, (12, 32, 48, 3), dtype=torch.uint8)
    modes = [None, None, video, video, None, None]
    frames = [engine.generate_block(BlockRequest("a fox", video=mode), stream) for mode in modes]
    assert [len(block) for block in frames] == [9, 12, 9, 12, 9, 12] and stream.position == 18
    decoder = DecoderStream(engine.codec)
    assert torch.equal(frames[4], decoder.decode_uint8(stream.history[-6:-3]))
    assert len(engine.generate_block(BlockRequest("a fox", video=video, reset=True), stream)) == 13


def test_video_after_text_is_encoded_as_a_new_one(engine):
    video = torch.randint(0, 256, (12, 32, 48, 3), dtype=torch.uint8)
    stream = engine.open_stream()
    engine.generate_block(BlockRequest("a fox"), stream)
    seen = []
    stream.encoder.encode = lambda frames: seen.append(frames) or EncoderStream(engine.codec).encode(frames)
    engine.generate_block(BlockRequest("a fox", video=video), stream)
    assert torch.equal(seen[0], video.permute(0, 3, 1, 2).float() / 255 * 2 - 1)


def test_frames_of_any_sizes_are_one_video(engine):
    small, large = (torch.full((*size, 3), 200, dtype=torch.uint8) for size in ((20, 30), (64, 80)))
    mixed, even = engine.open_stream(seed=2), engine.open_stream(seed=2)
    flat = torch.full((12, 32, 48, 3), 200, dtype=torch.uint8)
    one = engine.generate_block(BlockRequest("a fox", video=[small, large] * 6), mixed)
    assert torch.equal(one, engine.generate_block(BlockRequest("a fox", video=flat), even))


@pytest.mark.parametrize("noise_steps, offset", [("cut", 0), ("scope", 100)])
def test_noise_follows_motion(engine, monkeypatch, noise_steps, offset):
    still = torch.full((12, 32, 48, 3), 90, dtype=torch.uint8)
    jump = still.clone()
    jump[-1] = 255
    starts, real = [], BlockInputs.set_schedule

    def spy(inputs, schedule):
        starts.append(round(schedule[0].timestep) + offset)
        real(inputs, schedule)

    def first_step(stream, video):
        how = {"noise_scale": 0.7, "noise_from_motion": True, "noise_steps": noise_steps}
        engine.generate_block(BlockRequest("a fox", video=video, **how), stream)

    monkeypatch.setattr(BlockInputs, "set_schedule", spy)

    stream = engine.open_stream()
    first_step(stream, still)
    first_step(stream, jump)
    first_step(stream, still)  # against the last frame before, it moves
    first_step(stream, still)
    assert starts == [790, 610, 610, 790]  # 0.9 (0.8 - 0.2 m) + 0.1 s with m = 0 or 1, times 1000


def test_a_restart_keeps_the_prompt_and_its_transition(engine):
    def run(**kind):
        stream = engine.open_stream(seed=5)
        engine.generate_block(BlockRequest("a fox"), stream)
        for i in range(3):
            last = engine.generate_block(
                BlockRequest("a boat", transition_blocks=3, **(kind if i == 1 else {})), stream
            )
        return stream, last

    stream, _ = run(restart=True)
    assert stream.position == 6 and torch.equal(stream.prompt.embedding, engine.prompts.get("a boat"))
    _, shown = run(reset=True)
    assert not torch.equal(shown, run(restart=True)[1])  # a reset jumps to the prompt at once


def test_a_transition_may_start_from_its_source(engine):
    fox, boat = (engine.prompts.get(text) for text in ("a fox", "a boat"))
    stream = engine.open_stream()
    engine.generate_block(BlockRequest("a fox"), stream)
    request, seen = BlockRequest("a boat", transition_blocks=3, transition_from_source=True), []
    for _ in range(3):
        engine.generate_block(request, stream)
        seen.append(stream.prompt.embedding)
    for embedding, expected in zip(seen, (fox, (fox + boat) / 2, boat), strict=True):
        torch.testing.assert_close(embedding, expected)
    assert not stream.prompt.in_transition


def test_a_seed_takes_effect_with_its_block(engine):
    stream = engine.open_stream(seed=1)
    first = latents_of(engine, stream, ["a fox"])
    engine.generate_block(BlockRequest("a fox", seed=2), stream)
    assert stream.settings.seed == 2 and torch.equal(first, latents_of(engine, engine.open_stream(seed=1), ["a fox"]))
    fixed = engine.open_stream(seed=1, total_frames=9)
    latents_of(engine, fixed, ["a fox"])
    with pytest.raises(ValueError, match="seed of a stream with total_frames"):
        engine.generate_block(BlockRequest("a fox", seed=2), fixed)
    assert len(engine.generate_block(BlockRequest("a fox", seed=2, reset=True), fixed)) == 9


def test_each_stream_has_a_window_and_times_of_its_own(engine):
    one, other = engine.open_stream(), engine.open_stream()
    engine.generate_block(BlockRequest("a fox"), one)
    one.configure(local_attn_size=9)
    assert (one.ring.window, other.ring.window) == (9, 12)
    assert len(engine.block_times(one)) == 1 and not engine.block_times(other)
    with pytest.raises(ValueError, match="local_attn_size must be at least"):
        one.configure(local_attn_size=3)
    assert one.ring.window == 9


def test_steps_of_one_request(engine):
    stream = engine.open_stream(seed=1)
    two = latents_of(engine, stream, ["a fox"], denoising_steps=(1000, 500))
    fast = LongLiveEngine("tiny", replace(engine.config, denoising_steps=(1000, 500)), device="cpu")
    assert torch.equal(two, latents_of(fast, fast.open_stream(seed=1), ["a fox"]))


def test_a_stream_of_known_length_ends(engine):
    stream = engine.open_stream(total_frames=6)
    latents_of(engine, stream, ["a fox"] * 2)
    with pytest.raises(ValueError, match="opened for 6 latent frames"):
        engine.generate_block(BlockRequest("a fox"), stream)


@pytest.mark.parametrize("size", [{"height": 40}, {"width": 8}, {"width": 32.5}])
def test_sizes_are_multiples_of_sixteen(engine, size):
    with pytest.raises(ValueError, match=rf"{next(iter(size))}\n.*(multiple of|greater than or equal to) 16|integer"):
        engine.open_stream(**size)


def test_missing_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        LongLiveEngine(tmp_path / "nowhere", device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_is_named():
    with pytest.raises(ValueError, match="device must be one that is here, got 'cuda'"):
        LongLiveEngine("tiny", device="cuda")


def test_a_gpu_that_is_not_here_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="device must be one of the 2 that are here, got 'cuda:2'"):
        LongLiveEngine("tiny", device="cuda:2")


def test_warm_up_leaves_no_trace():
    config = OptimizationConfig(height=32, width=48, local_attn_size=6)
    warm, cold = (LongLiveEngine("tiny", config, device="cpu") for _ in range(2))
    warm.warmup()
    assert warm.block_times() == [] and warm.stream.position == 0
    assert (len(warm.prompts), warm.prompts.hits, warm.prompts.misses) == (0, 0, 0)
    request = BlockRequest("a fox")
    assert torch.equal(warm.generate_block(request), cold.generate_block(request))


def test_warm_up_takes_a_restart_within_the_window():
    config = OptimizationConfig(height=32, width=32, restart_at=6)
    engine = LongLiveEngine("tiny", config, device="cpu")
    engine.warmup()
    assert len(engine.generate_block(BlockRequest("a fox"))) == 9


def test_a_schedule_that_fails_half_way_is_not_there(engine, monkeypatch):
    steps, others = make_schedule((1000, 500), "longlive"), make_schedule((1000, 250), "longlive")
    inputs = engine.open_stream().passes.inputs(3, 2)
    inputs.set_schedule(tuple(steps))
    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "modulation", lambda timesteps: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            inputs.set_schedule(tuple(others))
    inputs.set_schedule(tuple(steps))
    assert inputs.sigmas.tolist() == [step.sigma for step in steps]


def test_a_window_that_fails_leaves_the_stream_as_it_was(monkeypatch):
    engine = LongLiveEngine("tiny", OptimizationConfig(height=32, width=32), device="cpu")
    stream = engine.stream
    engine.generate_block(BlockRequest("a fox"))
    before, passes = stream.settings, stream.passes

    def fail(ring, other):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(RingCache, "take_sinks", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.configure(local_attn_size=15, denoising_steps=(1000,))
    assert engine.config.local_attn_size == stream.ring.window == 12 and not stream.recache_due
    assert stream.settings == before and stream.passes is passes


def test_restart_at_begins_again():
    config = OptimizationConfig(height=32, width=48, positions="base", restart_at=7)
    engine = LongLiveEngine("tiny", config, device="cpu")
    blocks = [engine.generate_block(BlockRequest("a fox")) for _ in range(6)]
    assert [len(block) for block in blocks] == [9, 12, 12, 9, 12, 12]
    assert torch.equal(blocks[3], blocks[0])


def test_base_positions_go_past_the_published_table():
    engine = LongLiveEngine("tiny", OptimizationConfig(height=32, width=32, positions="base"), device="cpu")
    stream = engine.open_stream()
    engine.generate_block(BlockRequest("a fox"), stream)
    stream.position = 1020
    blocks = [engine.generate_block(BlockRequest("a fox"), stream) for _ in range(3)]
    assert stream.position == 1029 and all(block.float().std() > 5 for block in blocks)


def test_memory_does_not_grow_with_the_stream(engine):
    stream = engine.open_stream(32, 32)
    for _ in range(25):
        engine.generate_block(BlockRequest("a fox"), stream)
    assert len(stream.history) == 64 and stream.position == 75
    assert len(stream.passes._inputs) == 1 and len(engine.block_times(stream)) <= 1000


def test_a_failed_video_block_may_be_asked_for_again(engine, monkeypatch):
    video = torch.randint(0, 256, (13, 32, 48, 3), dtype=torch.uint8)
    request, good = BlockRequest("a fox", video=video), engine.open_stream(seed=4)
    expected = [engine.generate_block(request, good) for _ in range(3)]
    stream, got, real = engine.open_stream(seed=4), [], engine.model.forward

    def fail(*args, **kwargs):
        monkeypatch.undo()
        raise RuntimeError("out of memory")

    for _ in range(3):
        monkeypatch.setattr(engine.model, "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.generate_block(request, stream)
        assert engine.model.forward == real
        got.append(engine.generate_block(request, stream))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_failed_block_of_a_known_video_draws_the_same_noise(engine, monkeypatch):
    expected = latents_of(engine, engine.open_stream(seed=4, total_frames=6), ["a fox"] * 2)
    stream = engine.open_stream(seed=4, total_frames=6)

    def fail(*args, **kwargs):
        monkeypatch.undo()
        raise RuntimeError("out of memory")

    got = []
    for _ in range(2):
        monkeypatch.setattr(engine.model, "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.generate_block(BlockRequest("a fox"), stream)
        got.append(latents_of(engine, stream, ["a fox"]))
    assert torch.equal(torch.cat(got), expected)


def test_a_vae_that_fails_begins_the_stream_anew(engine, monkeypatch):
    stream = engine.open_stream(seed=4)
    first = engine.generate_block(BlockRequest("a fox"), stream)

    def fail(latents):
        monkeypatch.undo()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(stream.decoder, "decode_uint8", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.generate_block(BlockRequest("a fox"), stream)
    assert torch.equal(engine.generate_block(BlockRequest("a fox"), stream), first)


@pytest.mark.parametrize("wish", [{"seed": -1}, {"seed": 1.5}, {"total_frames": 0}, {"height": 0}, {"no_such": 1}])
def test_bad_streams_are_named(engine, wish):
    with pytest.raises(ValueError, match=next(iter(wish))):
        engine.open_stream(**wish)


def test_other_lora_scales_hold_from_the_next_block_on(engine, tmp_path):
    a, b = torch.randn(2, 256), torch.randn(256, 2)
    path = tmp_path / "style.safetensors"
    save_file({"blocks.0.cross_attn.k.lora_A.weight": a, "blocks.0.cross_attn.k.lora_B.weight": b}, path)

    def latents(first, second):
        engine = LongLiveEngine("tiny", OptimizationConfig(height=32, width=48), "cpu", loras=[UserLora(path, first)])
        engine.generate_block(BlockRequest("a fox"))
        engine.set_loras([UserLora(path, second)])
        stages = []
        for _ in range(2):
            engine.generate_block(BlockRequest("a fox"))
            stages.append({*engine.block_times()[-1].stages})
        assert "recache" in stages[0] and "recache" not in stages[1]  # old keys and values are made up for, once
        return engine.stream.history

    assert torch.equal(latents(0.5, 1.0), latents(0.5, 1.0))
    assert not torch.equal(latents(0.5, 1.0)[3:], latents(0.5, 0.5)[3:])


@pytest.mark.parametrize("positions", ["relative", "base"])
@pytest.mark.parametrize("global_sink", [True, False])
def test_a_lora_that_goes_leaves_the_sinks_too(tmp_path, positions, global_sink):
    """They become what the network without it makes of their latents, wherever the stream is."""
    names = ("self_attn.k", "self_attn.v", "ffn.0")
    path, pair = tmp_path / "style.safetensors", {"A": (2, 256), "B": (256, 2)}
    shapes = {f"blocks.0.{name}.lora_{half}.weight": pair[half] for name in names[:2] for half in pair}
    save_file({key: torch.randn(shape) for key, shape in shapes.items()}, path)
    config = OptimizationConfig(height=32, width=48, positions=positions, global_sink=global_sink)
    engine, plain = (LongLiveEngine("tiny", config, "cpu", loras=loras) for loras in ([UserLora(path)], []))
    stream, other = engine.stream, plain.stream
    latents_of(engine, stream, ["a boat"] * 5 + ["a fox"] * 2)
    engine.configure(global_sink=True)
    engine.set_loras([UserLora(path, 0.0)])
    latents_of(engine, stream, ["a fox"])

    first = 0 if global_sink else 3  # the switch at frame 15 has made others the sinks
    with torch.no_grad():
        other.passes.set_prompt(plain.prompts.get("a fox"))
        other.ring.seek(first, 3, first)
        other.passes.context(stream.history[first : first + 3])
    assert all(torch.equal(stream.ring.v[layer][:3], v[:3]) for layer, v in other.ring.v.items())
    assert torch.equal(stream.ring.k_sink, other.ring.k_sink)
    if positions == "base":
        assert torch.equal(stream.ring.k[:, :3], other.ring.k[:, :3])


def test_kept_loras_take_other_scales_without_a_file(tmp_path, monkeypatch):
    a, b = torch.randn(2, 256), torch.randn(256, 2)
    path, other = tmp_path / "style.safetensors", tmp_path / "other.safetensors"
    for file in (path, other):
        save_file({"blocks.0.cross_attn.k.lora_A.weight": a, "blocks.0.cross_attn.k.lora_B.weight": b}, file)
    config = OptimizationConfig(height=32, width=48)
    kept, read = (LongLiveEngine("tiny", config, "cpu", loras=[UserLora(path)]) for _ in range(2))
    assert kept.keep_loras([UserLora(path)]) > 256 * 256 * 2
    opened = []
    tensors_in = load.tensors_in
    monkeypatch.setattr(load, "tensors_in", lambda *args: opened.append(args[0]) or tensors_in(*args))

    def weights(engine):
        return [t.clone() for t in engine.model.state_dict().values()]

    for scale in (0.3, 0.0, -2.0):
        kept.set_loras([UserLora(path, scale)])
        assert not opened
        read.set_loras([UserLora(path, scale)])
        assert opened and all(map(torch.equal, weights(kept), weights(read)))
        opened.clear()
    for engine in (kept, read):  # a LoRA that was not kept is read, and kept from then on
        engine.set_loras([UserLora(path, 0.0), UserLora(other, 0.5)])
    opened.clear()
    kept.set_loras([UserLora(path, 0.0), UserLora(other, 0.7)])
    assert not opened
    assert kept.keep_loras([]) == 0
    kept.set_loras([UserLora(path, 0.0), UserLora(other, 0.5)])
    assert opened and all(map(torch.equal, weights(kept), weights(read)))


def test_kept_loras_go_where_a_gpu_runs_out_of_memory(tmp_path):
    path = tmp_path / "style.safetensors"
    save_file(
        {
            "blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 256),
            "blocks.0.self_attn.q.lora_B.weight": torch.zeros(256, 2),
        },
        path,
    )
    engine, calls = LongLiveEngine("tiny", OptimizationConfig(height=32, width=48), "cpu", loras=[UserLora(path)]), []

    def work():
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return "made"

    engine.keep_loras([UserLora(path)])
    engine._unmerged.device = torch.device("cuda")
    assert engine._or_leaner(work) == "made" and engine._unmerged is None and not engine.memory_fallback


def test_no_block_is_made_of_mixed_weights(monkeypatch):
    engine = LongLiveEngine("tiny", OptimizationConfig(height=32, width=48), device="cpu")
    engine.generate_block(BlockRequest("a fox"))

    def set_loras(error):
        def refill(*args, **kwargs):
            if error:
                raise error

        monkeypatch.setattr("longlive_optimized.engine.engine.refill_generator", refill)
        engine.set_loras([])

    for error, mixed in ((ValueError("not written"), False), (RuntimeError("partly"), True), (OSError("gone"), True)):
        with pytest.raises(type(error)):
            set_loras(error)
        if mixed:
            with pytest.raises(RuntimeError, match="the weights are mixed"):
                engine.generate_block(BlockRequest("a fox"))
        else:
            engine.generate_block(BlockRequest("a fox"))
    set_loras(None)
    engine.generate_block(BlockRequest("a fox"))
    assert "recache" in engine.block_times()[-1].stages


def test_after_a_reset_other_lora_scales_are_as_if_loaded_with(tmp_path):
    a, b = torch.randn(2, 256), torch.randn(256, 2)
    names = ("time_embedding.2", "text_embedding.2", "blocks.1.self_attn.v")
    path = tmp_path / "style.safetensors"
    tensors = {f"{name}.lora_{half}.weight": t.clone() for name in names for half, t in (("A", a), ("B", b))}
    tensors |= {"blocks.1.self_attn.v.dora_scale": torch.rand(256, 1), "time_projection.1.diff_b": torch.rand(6 * 256)}
    tensors |= {"blocks.0.norm3.diff": torch.rand(256), "head.diff_m": torch.rand(1, 2, 256)}
    tensors |= {"blocks.0.diff_m": torch.rand(1, 6, 256), "text_embedding.0.diff_b": torch.rand(256)}
    save_file(tensors, path)
    config = OptimizationConfig(height=32, width=48)
    changed, loaded = (LongLiveEngine("tiny", config, "cpu", loras=[UserLora(path, s)]) for s in (0.2, 0.8))
    latents_of(changed, changed.stream, ["a fox"] * 2)
    changed.set_loras([UserLora(path, 0.8)])
    changed.reset()
    prompts = ["a fox"] * 3
    assert torch.equal(latents_of(changed, changed.stream, prompts), latents_of(loaded, loaded.stream, prompts))


def test_a_stream_takes_another_vae_and_only_it(engine):
    one, other = engine.open_stream(), engine.open_stream()
    for stream in (one, other):
        engine.generate_block(BlockRequest("a fox"), stream)
    engine.use_vae("wan", one)  # its own: nothing happens
    assert len(engine.generate_block(BlockRequest("a fox"), one)) == 12
    engine.use_vae("tae", one)
    kept = one.networks.codec
    assert [len(engine.generate_block(BlockRequest("a fox"), one)) for _ in range(2)] == [9, 12]
    plain = [engine.generate_block(BlockRequest("a fox"), other) for _ in range(3)]
    assert [len(block) for block in plain] == [12, 12, 12] and torch.equal(one.history, other.history)
    engine.use_vae("wan", one), engine.use_vae("tae", one)
    assert one.networks.codec is kept and other.networks.codec is engine.codec
    with pytest.raises(ValueError, match="vae_type must be one of"):
        engine.use_vae("vae9", one)
    video = torch.zeros(12, 32, 48, 3, dtype=torch.uint8)
    assert len(engine.generate_block(BlockRequest("a fox", video=video), one)) == 9  # it encodes, too


@pytest.mark.parametrize("vae_type", ["lightvae", "tae", "lighttae"])
def test_small_vaes_change_the_picture_and_nothing_else(engine, vae_type):
    small = LongLiveEngine("tiny", replace(engine.config, vae_type=vae_type), device="cpu")
    stream = engine.open_stream()
    for frames in (9, 12):
        one, other = small.generate_block(BlockRequest("a fox")), engine.generate_block(BlockRequest("a fox"), stream)
        assert one.shape == other.shape == (frames, 32, 48, 3) and not torch.equal(one, other)
    assert torch.equal(small.stream.history, stream.history)
    video = torch.randint(0, 256, (12, 32, 48, 3), dtype=torch.uint8)
    requests = [BlockRequest("a fox", video=video, reset=True), *[BlockRequest("a fox", video=video)] * 2]
    assert [len(small.generate_block(request)) for request in requests] == [13, 12, 12]
