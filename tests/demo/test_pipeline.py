"""OptimizedScopePipeline on the built-in model: the promised API, and what it does where the promise is unclear."""

import dataclasses
import math
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from longlive_optimized.config import PRESETS
from longlive_optimized.demo.scope_integration import (
    LatencyStats,
    OptimizedScopePipeline,
    ScopeOptimizationConfig,
    create_optimized_scope_pipeline,
)
from measure.soak import soak

SMALL = {"height": 32, "width": 48}
FOX, BOAT, STORM = "a fox", "a boat on a lake", "a storm"


@pytest.fixture(scope="module")
def shared() -> OptimizedScopePipeline:
    config = ScopeOptimizationConfig.preset_balanced(**SMALL, prompt_debounce_ms=0)
    return OptimizedScopePipeline("tiny", config, device="cpu")


@pytest.fixture
def pipeline(shared) -> OptimizedScopePipeline:
    shared.set_optimization_preset("balanced")
    shared.generate_frame(FOX)  # a preset acts with the next frame
    shared.config = dataclasses.replace(shared.config, prompt_debounce_ms=0, smooth_prompt_transition=False)
    shared.reset()
    shared.switch_prompt(FOX)  # a reset keeps the last test's prompt
    return shared


def blocks(pipeline, prompt, n, first=False) -> list[torch.Tensor]:
    """Take n blocks' frames."""
    return [pipeline.generate_frame(prompt) for _ in range(12 * n - (3 if first else 0))]


def embedding(pipeline, prompt) -> torch.Tensor:
    return pipeline.engine.prompts.get(prompt)


def test_a_frame_is_float_chw_in_unit_range_and_clean(pipeline):
    frame = pipeline.generate_frame(FOX)
    assert frame.shape == (3, 32, 48) and frame.dtype == torch.float32
    assert 0 <= frame.min() and frame.max() <= 1 and frame.std() > 0.02
    torch.testing.assert_close(frame * 255, (frame * 255).round())  # straight from the decoder's uint8: no overlay


def test_frames_come_from_a_queue_filled_block_by_block(pipeline):
    made = []
    for _ in range(9 + 12 + 1):
        pipeline.generate_frame(FOX)
        made.append(len(pipeline.engine.block_times()))
    assert made == [1] * 9 + [2] * 12 + [3]


def test_frames_are_the_engines_in_order(pipeline):
    frames = torch.stack(blocks(pipeline, FOX, 2, first=True))
    pipeline.reset()
    pipeline.engine.reset()
    from longlive_optimized import BlockRequest

    direct = torch.cat([pipeline.engine.generate_block(BlockRequest(FOX)) for _ in range(2)])
    assert torch.equal((frames * 255).round().byte(), direct.permute(0, 3, 1, 2))


def test_blocks_are_the_same_frames(pipeline):
    frames = torch.stack(blocks(pipeline, FOX, 2, first=True))
    pipeline.reset()
    whole = [pipeline.generate_block(FOX) for _ in range(2)]
    assert [len(block) for block in whole] == [9, 12] and whole[0].dtype == torch.uint8
    assert torch.equal((frames * 255).round().byte(), torch.cat(whole).permute(0, 3, 1, 2))
    assert pipeline.get_latency_stats()["frame_count"] == 21


def test_blocks_follow_prompts_and_presets(pipeline):
    pipeline.generate_block(FOX)
    pipeline.switch_prompt(BOAT)
    pipeline.set_optimization_preset("realtime")
    pipeline.generate_block(FOX)
    assert torch.equal(pipeline.engine.stream.prompt.embedding, embedding(pipeline, BOAT))
    assert pipeline.preset == "realtime" and pipeline.get_latency_stats()["prompt_switch_ms"] > 0


def test_a_block_does_not_overtake_frames_that_wait(pipeline):
    pipeline.generate_frame(FOX)
    with pytest.raises(RuntimeError, match="8 frames wait"):
        pipeline.generate_block(FOX)
    for _ in range(8):
        pipeline.generate_frame(FOX)
    assert len(pipeline.generate_block(FOX)) == 12


def test_loading_reports_its_progress():
    seen = []
    OptimizedScopePipeline(
        "tiny", ScopeOptimizationConfig(**SMALL), device="cpu", progress=lambda *step: seen.append(step)
    )
    assert {what for what, _, _ in seen} == {"generator", "VAE", "text encoder"}
    assert all(0 < done <= total for _, done, total in seen)


def test_latency_is_per_pixel_frame_and_fps_are_pixel_frames(pipeline):
    blocks(pipeline, FOX, 2, first=True)
    stats = LatencyStats(**pipeline.get_latency_stats())
    times = pipeline.engine.block_times()
    assert stats.block_ms == pytest.approx(times[-1].total) and stats.current_ms == pytest.approx(times[-1].total / 12)
    total = sum(b.total for b in times)
    assert stats.mean_ms == pytest.approx(total / 21) and stats.fps == pytest.approx(1e3 * 21 / total)
    assert stats.frame_count == 21 and stats.min_ms <= stats.mean_ms <= stats.p99_ms <= stats.max_ms


def test_stats_fit_the_dataclass_before_the_first_frame(pipeline):
    stats = LatencyStats(**pipeline.get_latency_stats())
    promised = "current_ms mean_ms p99_ms max_ms min_ms fps frame_count cuda_graphs_active static_kv_active "
    promised += "async_vae_active prompt_cache_hits prompt_cache_misses"
    assert [f.name for f in dataclasses.fields(stats)][:12] == promised.split()
    assert (stats.current_ms, stats.mean_ms, stats.p99_ms, stats.fps, stats.frame_count) == (0, 0, 0, 0, 0)
    assert all(math.isfinite(v) for v in dataclasses.asdict(stats).values() if isinstance(v, float))


def test_flags_tell_the_truth(pipeline):
    stats = LatencyStats(**pipeline.get_latency_stats())
    assert stats.static_kv_active and not stats.async_vae_active and not stats.torch_compile_active
    assert not stats.cuda_graphs_active and stats.precision == "float32"


def test_precision_is_reported_as_it_runs():
    config = ScopeOptimizationConfig.preset_realtime(precision="fp8", **SMALL)
    pipeline = OptimizedScopePipeline("tiny", config, device="cpu")
    stats = pipeline.get_latency_stats()
    assert stats["precision"] == "int8 products" and stats["fallback_blocks"] == 0
    pipeline.configure(precision="bf16")
    assert pipeline.get_latency_stats()["precision"] == "int8 products"  # until the next block
    pipeline.generate_frame(FOX)
    assert pipeline.get_latency_stats()["precision"] == "float32"


def test_prompt_cache_counts(pipeline):
    before = pipeline.get_latency_stats()
    for prompt in ("never seen before", FOX, "never seen before"):
        pipeline.switch_prompt(prompt)
        blocks(pipeline, FOX, 1)
        pipeline._queue.clear()
    after = pipeline.get_latency_stats()
    assert after["prompt_cache_misses"] - before["prompt_cache_misses"] in (1, 2)
    assert after["prompt_cache_hits"] > before["prompt_cache_hits"]


def test_a_changed_argument_wins_and_a_repeated_one_does_not_undo_a_switch(pipeline):
    blocks(pipeline, FOX, 1, first=True)
    pipeline.switch_prompt(BOAT)
    blocks(pipeline, FOX, 1)
    assert torch.equal(pipeline.engine.stream.prompt.embedding, embedding(pipeline, BOAT))
    blocks(pipeline, STORM, 1)
    assert torch.equal(pipeline.engine.stream.prompt.embedding, embedding(pipeline, STORM))


def test_waiting_frames_are_kept_over_a_switch(pipeline):
    pipeline.generate_frame(FOX)
    pipeline.switch_prompt(BOAT)
    for _ in range(8):
        pipeline.generate_frame(FOX)
    assert torch.equal(pipeline.engine.stream.prompt.embedding, embedding(pipeline, FOX))
    pipeline.generate_frame(FOX)
    assert torch.equal(pipeline.engine.stream.prompt.embedding, embedding(pipeline, BOAT))


def test_prompt_switch_time_is_reported(pipeline):
    blocks(pipeline, FOX, 1, first=True)
    assert pipeline.get_latency_stats()["prompt_switch_ms"] == 0
    pipeline.switch_prompt(BOAT)
    time.sleep(0.05)
    for _ in range(4):  # of the first latent
        pipeline.generate_frame(FOX)
    assert len(pipeline._queue) == 0 and pipeline.engine.stream.undecoded == 2
    with pytest.raises(RuntimeError, match="8 frames wait"):
        pipeline.generate_block(FOX)
    pipeline.generate_frame(FOX)
    times, stats = pipeline.engine.block_times()[-1], pipeline.get_latency_stats()
    assert stats["block_ms"] == times.total > times.stages["decode_rest"] > 0
    assert stats["prompt_switch_ms"] >= stats["block_ms"] - times.stages["decode_rest"] + 50


def test_a_smooth_transition_takes_whole_blocks(pipeline):
    pipeline.config = dataclasses.replace(pipeline.config, smooth_prompt_transition=True, transition_frames=30)
    blocks(pipeline, FOX, 1, first=True)
    pipeline.switch_prompt(BOAT)
    fox, boat, seen = embedding(pipeline, FOX), embedding(pipeline, BOAT), []
    for _ in range(4):
        blocks(pipeline, FOX, 1)
        seen.append(pipeline.engine.stream.prompt.embedding)
    torch.testing.assert_close(seen[0], torch.lerp(fox, boat, 1 / 3))
    assert torch.equal(seen[2], boat) and seen[3] is seen[2]


def test_reset_starts_the_same_video_and_keeps_preset_and_prompt_cache(pipeline):
    pipeline.set_optimization_preset("realtime")
    first, hits = torch.stack(blocks(pipeline, FOX, 1, first=True)), pipeline.get_latency_stats()["prompt_cache_hits"]
    pipeline.reset()
    stats = pipeline.get_latency_stats()
    assert stats["frame_count"] == 0 and stats["mean_ms"] == 0 and stats["prompt_cache_hits"] >= hits
    assert torch.equal(torch.stack(blocks(pipeline, FOX, 1, first=True)), first)
    assert pipeline.config.local_attn_size == 9


@pytest.mark.parametrize("name", [*PRESETS, "quality"])
def test_presets_by_name_and_by_method(pipeline, name):
    config = getattr(ScopeOptimizationConfig, f"preset_{name}")()
    assert config == ScopeOptimizationConfig.preset(name)
    pipeline.set_optimization_preset(name)
    blocks(pipeline, FOX, 1, first=True)
    for field in ("denoising_steps", "local_attn_size", "precision", "target_fps", "drop_frames_on_lag"):
        assert getattr(pipeline.config, field) == getattr(config, field)
    assert pipeline.stream.settings.denoising_steps == config.denoising_steps
    assert pipeline.engine.stream.ring.window == config.local_attn_size
    assert pipeline.config.height == 32
    assert pipeline.get_latency_stats()["preset"] == {"quality": "quality_stream"}.get(name, name)
    assert pipeline.get_latency_stats()["precision"] == ("int8 products" if config.precision == "int8" else "float32")


def test_an_unknown_preset_changes_nothing(pipeline):
    before = pipeline.config
    with pytest.raises(ValueError, match="quality_stream, balanced, speed, realtime, turbo, ultra, quality"):
        pipeline.set_optimization_preset("warp")
    pipeline.generate_frame(FOX)
    assert pipeline.config == before


def test_a_preset_switch_does_not_cut_or_reload(pipeline):
    model = pipeline.engine.model
    blocks(pipeline, FOX, 6, first=True)
    position = pipeline.engine.stream.position
    pipeline.set_optimization_preset("realtime")
    frames = blocks(pipeline, FOX, 1)
    assert len(frames) == 12 and pipeline.engine.stream.position == position + 3 and pipeline.engine.model is model
    assert "recache" in pipeline.engine.block_times()[-1].stages


def test_a_rebuilt_window_equals_a_recache(pipeline):
    """Going to the same window by way of one for which there is no storage must equal recomputing it in place."""

    def video(disturb):
        pipeline.reset()
        pipeline.set_optimization_preset("balanced")
        blocks(pipeline, FOX, 6, first=True)
        disturb(pipeline.engine.stream)
        return torch.stack(blocks(pipeline, FOX, 2))

    def there_and_back(stream):
        stream.configure(local_attn_size=stream.ring.capacity + 3), stream.configure(local_attn_size=12)

    def recache(stream):
        stream.recache_due = True

    torch.testing.assert_close(video(there_and_back), video(recache), rtol=0, atol=1.01 / 255)


def test_warm_up_is_not_counted():
    pipeline = OptimizedScopePipeline("tiny", ScopeOptimizationConfig.preset_realtime(**SMALL), device="cpu")
    cold = OptimizedScopePipeline("tiny", ScopeOptimizationConfig.preset_realtime(**SMALL), device="cpu")
    pipeline.warmup(num_frames=50)
    assert pipeline.get_latency_stats()["frame_count"] == 0 and pipeline.get_latency_stats()["mean_ms"] == 0
    assert torch.equal(pipeline.generate_frame(FOX), cold.generate_frame(FOX))


@pytest.mark.parametrize("n", [0, -1, 1.5])
def test_bad_warm_up(pipeline, n):
    with pytest.raises(ValueError, match="num_frames"):
        pipeline.warmup(n)


@pytest.mark.parametrize("prompt", ["", "  ", ()])
def test_an_empty_prompt_loses_nothing(pipeline, prompt):
    pipeline.generate_frame(FOX)
    with pytest.raises(ValueError, match="prompt must"):
        pipeline.switch_prompt(prompt)
    with pytest.raises(ValueError, match="prompt must"):
        pipeline.generate_frame(prompt)
    assert pipeline.generate_frame(FOX).shape == (3, 32, 48)


def test_an_unknown_keyword_is_named(pipeline):
    with pytest.raises(TypeError, match="guidance"):
        pipeline.generate_frame(FOX, guidance=3)


def test_weighted_prompts_and_steps_per_call(pipeline):
    frame = pipeline.generate_frame([(FOX, 1.0), (BOAT, 2.0)], denoising_steps=(1000,))
    assert frame.shape == (3, 32, 48)


def test_what_goes_with_a_prompt_is_kept_while_frames_wait(pipeline):
    pipeline.generate_frame(FOX)
    pipeline.generate_frame(BOAT, transition_blocks=3, denoising_steps=(1000, 500))
    for _ in range(7):
        pipeline.generate_frame(BOAT, transition_blocks=3)
    pipeline.generate_frame(BOAT, transition_blocks=3)
    half = torch.lerp(embedding(pipeline, FOX), embedding(pipeline, BOAT), 1 / 3)
    torch.testing.assert_close(pipeline.engine.stream.prompt.embedding, half)
    assert (3, 2) in pipeline.engine.stream.passes._inputs  # three latent frames in two steps


def test_a_short_smooth_transition_takes_two_blocks_and_a_stated_one_wins(pipeline):
    pipeline.config = dataclasses.replace(pipeline.config, smooth_prompt_transition=True, transition_frames=5)
    blocks(pipeline, FOX, 1, first=True)
    pipeline.switch_prompt(BOAT)
    blocks(pipeline, FOX, 1)
    fox, boat = embedding(pipeline, FOX), embedding(pipeline, BOAT)
    torch.testing.assert_close(pipeline.engine.stream.prompt.embedding, torch.lerp(fox, boat, 0.5))
    blocks(pipeline, FOX, 1)
    pipeline.switch_prompt(STORM, transition_blocks=1)
    blocks(pipeline, FOX, 1)
    assert torch.equal(pipeline.engine.stream.prompt.embedding, embedding(pipeline, STORM))


def test_a_config_of_ones_own_is_no_preset(pipeline):
    pipeline.config = dataclasses.replace(pipeline.config, target_fps=11)
    assert pipeline.get_latency_stats()["preset"] == "custom"


def test_a_cold_pipeline_warms_up_by_itself_outside_the_figures(pipeline):
    pipeline._warm = False  # as on CUDA
    pipeline.generate_frame(FOX)
    stats = pipeline.get_latency_stats()
    assert pipeline._warm and stats["frame_count"] == 1 and len(pipeline.engine.block_times()) == 1


def test_a_reset_keeps_the_preset_that_waits(pipeline):
    pipeline.set_optimization_preset("realtime")
    pipeline.reset()
    pipeline.generate_frame(FOX)
    assert pipeline.preset == "realtime"


def test_a_preset_ends_the_steps_of_calls_before_it(pipeline):
    pipeline.generate_frame(FOX, denoising_steps=(1000,))
    assert pipeline.stream.settings.denoising_steps == (1000,)
    pipeline.set_optimization_preset("ultra")
    blocks(pipeline, FOX, 1)
    assert pipeline.stream.settings.denoising_steps == (1000, 250) and (3, 2) in pipeline.engine.stream.passes._inputs


def test_a_burst_of_prompts_costs_one_switch(pipeline):
    pipeline.config = dataclasses.replace(pipeline.config, prompt_debounce_ms=10_000)
    blocks(pipeline, FOX, 1, first=True)
    for prompt in ("a", "a b", "a boat"):
        pipeline.switch_prompt(prompt)
    blocks(pipeline, FOX, 1)
    # The first came more than a debounce after nothing, the others are held: ten seconds have not passed.
    assert torch.equal(pipeline.engine.stream.prompt.embedding, embedding(pipeline, FOX))


def test_a_lagging_caller_drops_frames_or_keeps_them(pipeline):
    for drop in (True, False):
        pipeline.reset()
        pipeline.config = dataclasses.replace(
            pipeline.config, drop_frames_on_lag=drop, target_fps=1000, max_queue_depth=1
        )
        for _ in range(4):
            pipeline.generate_frame(FOX)
            time.sleep(0.02)
        assert (pipeline.get_latency_stats()["dropped_frames"] > 0) == drop


def test_warm_up_takes_the_preset_that_waits(pipeline):
    pipeline.set_optimization_preset("realtime")
    pipeline.warmup(1)
    assert pipeline.engine.stream.ring.window == 9 and pipeline.get_latency_stats()["frame_count"] == 0


def test_a_preset_for_which_memory_is_short_stays_wished_for(pipeline, monkeypatch):
    blocks(pipeline, FOX, 1, first=True)
    before, stream = pipeline.config, pipeline.stream.settings

    def full(ring, window):
        pipeline.configure(target_fps=7)  # from another thread, say
        raise torch.OutOfMemoryError("no memory")

    pipeline.set_optimization_preset("realtime")
    with monkeypatch.context() as short:
        short.setattr(type(pipeline.stream.ring), "resize", full)
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError, match="no memory"):
                pipeline.generate_frame(FOX)
            assert pipeline.config == before and pipeline.stream.settings == stream
    assert len(blocks(pipeline, FOX, 1)) == 12
    assert pipeline.stream.settings.local_attn_size == 9 and pipeline.config.target_fps == 7


def test_a_smaller_wish_replaces_the_one_for_which_memory_is_short(pipeline, monkeypatch):
    blocks(pipeline, FOX, 1, first=True)

    def full(**how):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(pipeline.stream, "_new_ring", full)
    pipeline.configure(local_attn_size=21)
    with pytest.raises(torch.OutOfMemoryError):
        pipeline.generate_frame(FOX)
    pipeline.configure(local_attn_size=12)
    assert len(blocks(pipeline, FOX, 1)) == 12


def test_pipelines_on_an_engine_count_its_prompts_together(pipeline):
    other = OptimizedScopePipeline.on(pipeline.engine, pipeline.config)
    for one in (pipeline, other):
        one.generate_frame("a prompt that nobody else has")
    counts = [
        (p.get_latency_stats()["prompt_cache_hits"], p.get_latency_stats()["prompt_cache_misses"])
        for p in (pipeline, other)
    ]
    assert counts[0] == counts[1] == (pipeline.engine.prompts.hits, pipeline.engine.prompts.misses)


def test_the_overlay_follows_the_config():
    make = ScopeOptimizationConfig.preset_realtime
    corner = make(**SMALL, overlay_position="bottom-left", overlay_opacity=0.5)
    on = OptimizedScopePipeline("tiny", corner, device="cpu")
    off = OptimizedScopePipeline("tiny", make(**SMALL, enable_latency_overlay=False), device="cpu")
    assert off.overlay is None
    assert (on.overlay.config.position, on.overlay.config.opacity) == ("bottom-left", 0.5)


def test_the_factory():
    pipeline = create_optimized_scope_pipeline("tiny", "realtime", "cpu", **SMALL)
    assert pipeline.config == ScopeOptimizationConfig.preset_realtime(**SMALL)
    with pytest.raises(ValueError, match="preset must be one of"):
        create_optimized_scope_pipeline("tiny", "fast", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_device_defaults_to_what_is_there():
    assert create_optimized_scope_pipeline("tiny", **SMALL).engine.device.type == "cpu"
    with pytest.raises(ValueError, match="torch finds no CUDA"):
        create_optimized_scope_pipeline("tiny", device="cuda", **SMALL)


@pytest.mark.parametrize(
    "change",
    [
        {"overlay_position": "middle"},
        {"overlay_opacity": 1.5},
        {"overlay_opacity": math.nan},
        {"target_fps": 0},
        {"playback_speed": 0.24},
        {"playback_speed": 4.01},
        {"playback_speed": math.nan},
        {"playback_speed": True},
        {"playback_speed": "2"},
        {"interpolation": "rife"},
        {"interpolation": None},
        {"shown_fps": 30},  # without interpolation
        {"shown_fps": 23, "interpolation": "blend"},
        {"shown_fps": 61, "interpolation": "blend"},
        {"shown_fps": 29.97, "interpolation": "blend"},
        {"max_queue_depth": 0},
        {"prompt_debounce_ms": -1},
        {"transition_frames": 0},
        {"denoising_steps": (250, 1000)},
    ],
)
def test_bad_fields_are_named(pipeline, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        ScopeOptimizationConfig(**change)
    before = pipeline.config
    with pytest.raises(ValueError, match=next(iter(change))):
        pipeline.configure(**change)
    pipeline.generate_frame(FOX)
    assert pipeline.config == before


def test_how_frames_are_shown_is_no_presets(pipeline):
    pipeline.configure(playback_speed=np.float32(0.5), interpolation="blend", shown_fps=np.int64(48))
    for name in PRESETS:
        pipeline.set_optimization_preset(name)
        blocks(pipeline, FOX, 1)
        config = pipeline.config
        assert (config.playback_speed, config.model_fps, config.picture_fps, pipeline.preset) == (0.5, 8, 48, name)
    pipeline.configure(shown_fps=None)
    blocks(pipeline, FOX, 1)
    assert pipeline.config.picture_fps == 30
    pipeline.configure(shown_fps=60)
    pipeline.configure(interpolation="none")  # takes the rate along
    blocks(pipeline, FOX, 1)
    assert (pipeline.config.shown_fps, pipeline.config.picture_fps) == (None, None)
    pipeline.configure(playback_speed=1.0)


def test_who_is_shown_frames_at_another_rate_lags_by_that(pipeline):
    """At 100 a second a caller who takes 50 ms falls behind, at 16 not."""
    pipeline.configure(target_fps=100, drop_frames_on_lag=True, max_queue_depth=1)
    for fps, lags in ((None, True), (16, False)):
        blocks(pipeline, FOX, 1)
        pipeline.reset()
        for _ in range(9):
            pipeline.next_frame(fps)
            time.sleep(0.05)
        assert (pipeline.get_latency_stats()["dropped_frames"] > 0) == lags


def test_a_scene_ends_where_the_video_begins_anew(pipeline):
    blocks(pipeline, FOX, 1, first=True)
    scene = pipeline.scene
    blocks(pipeline, BOAT, 1)  # its first latent comes first
    pipeline.set_optimization_preset("realtime")
    blocks(pipeline, FOX, 1)
    assert pipeline.scene == scene
    pipeline.generate_frame(FOX)
    pipeline.reset()
    assert pipeline.scene == scene  # of the last frame that was handed out
    pipeline.generate_frame(FOX)
    assert pipeline.scene == scene + 1


def test_fields_change_with_the_next_block(pipeline):
    blocks(pipeline, FOX, 1, first=True)
    pipeline.configure(target_fps=60, denoising_steps=(1000, 500))
    pipeline.configure(overlay_position="bottom-left", use_cuda_graphs=False)
    assert pipeline.config.target_fps == 25
    blocks(pipeline, FOX, 1)
    config = pipeline.config
    assert (config.target_fps, config.overlay_position, config.use_cuda_graphs) == (60, "bottom-left", False)
    settings = pipeline.stream.settings
    assert settings.denoising_steps == (1000, 500) and not settings.use_cuda_graphs
    assert pipeline.overlay.config.position == "bottom-left"
    pipeline.configure(enable_latency_overlay=False)
    blocks(pipeline, FOX, 1)
    assert pipeline.overlay is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 64}, "height cannot change while a stream runs"),
        ({"positions": "base", "target_fps": 60}, "positions cannot change"),
        ({"no_such_field": 1}, "no_such_field"),
    ],
)
def test_what_is_fixed_stays(pipeline, change, message):
    before = pipeline.config
    with pytest.raises(ValueError, match=message):
        pipeline.configure(**change)
    pipeline.generate_frame(FOX)
    assert pipeline.config == before


def test_threads_may_switch_prompts_presets_and_reset(pipeline):
    assert soak(pipeline, seconds=6)["frames"] > 10


def test_statistics_do_not_wait_for_a_block(pipeline, monkeypatch):
    entered, leave = threading.Event(), threading.Event()
    real = pipeline.engine.model.forward

    def slow(*args, **kwargs):
        entered.set()
        leave.wait(20)
        return real(*args, **kwargs)

    monkeypatch.setattr(pipeline.engine.model, "forward", slow)
    maker = threading.Thread(target=pipeline.generate_frame, args=(FOX,))
    maker.start()
    entered.wait(20)
    answered = threading.Thread(target=lambda: (pipeline.get_latency_stats(), pipeline.switch_prompt(BOAT)))
    answered.start()
    answered.join(5)
    waited = answered.is_alive()
    leave.set()
    maker.join(30)
    assert not waited


def test_imports_without_gpu_scope_opencv_or_weights():
    code = """
import sys
for name in ("cv2", "scope", "PIL", "av", "transformers"):
    sys.modules[name] = None
import longlive_optimized.demo.scope_integration as package
assert not package.OptimizedScopePipeline is None and len(package.__all__) == 7
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_pipelines_may_share_an_engine(pipeline):
    """Each has a stream of its own: its frames are those of a pipeline alone, and presets do not meet."""
    engine = pipeline.engine
    config = ScopeOptimizationConfig.preset_ultra(**SMALL, drop_frames_on_lag=False)
    alone = OptimizedScopePipeline("tiny", config, device="cpu")
    one, other = OptimizedScopePipeline.on(engine, config), OptimizedScopePipeline.on(engine)
    frames = []
    for _ in range(12):
        frames.append(one.generate_frame(FOX))
        other.generate_frame(BOAT)
    assert all(torch.equal(frame, alone.generate_frame(FOX)) for frame in frames)
    assert one.stream.settings.local_attn_size == 9 and other.config.height == engine.config.height
    assert one.engine is other.engine and len({id(p.stream) for p in (pipeline, one, other)}) == 3
    assert other.stream.settings.denoising_steps != one.stream.settings.denoising_steps
    with pytest.raises(ValueError, match="config must have the engine's vae_type"):
        OptimizedScopePipeline.on(engine, dataclasses.replace(config, vae_type="tae"))
    with pytest.raises(TypeError, match="warm must be true or false"):
        OptimizedScopePipeline.on(engine, config, warm="yes")
    assert OptimizedScopePipeline.on(engine, config, warm=True).generate_block("a fox").shape[0] == 9


def test_a_block_from_video_is_the_engines(pipeline):
    from longlive_optimized import BlockRequest

    video = torch.randint(0, 256, (12, 32, 48, 3), dtype=torch.uint8)
    direct = [
        pipeline.engine.generate_block(BlockRequest(FOX, video=video, noise_scale=0.3)),
        pipeline.engine.generate_block(BlockRequest(FOX)),
    ]
    pipeline.reset()
    made = [pipeline.next_block(video=video, noise_scale=0.3), pipeline.next_block()]
    assert all(map(torch.equal, made, direct)) and len(made[0]) == 13 and len(made[1]) == 9
    assert pipeline.get_latency_stats()["frame_count"] == 22


def test_what_a_block_cannot_be_made_from_changes_nothing(pipeline):
    pipeline.next_block()
    pipeline.switch_prompt(BOAT)
    for source, error, words in [
        ({"video": [1]}, TypeError, "video must be uint8 frames"),
        ({"noise_scale": 2}, ValueError, "noise_scale must lie in"),
        ({"control": 1}, TypeError, "control must be a Control"),
        ({"seed": 1}, TypeError, "unexpected argument 'seed'"),
    ]:
        with pytest.raises(error, match=words):
            pipeline.next_block(**source)
    pipeline.next_block()
    assert torch.equal(pipeline.stream.prompt.embedding, embedding(pipeline, BOAT))  # the wish was kept
