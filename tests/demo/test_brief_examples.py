"""The promised examples, as they are written, on the built-in model."""

import asyncio
import itertools
import time

import pytest
import torch

from longlive_optimized.demo.scope_integration import (
    LatencyOverlay,
    LatencyStats,
    OptimizedScopePipeline,
    OverlayConfig,
    ScopeOptimizationConfig,
    create_latency_overlay,
)

SMALL = {"height": 64, "width": 96}


def test_basic_integration():
    config = ScopeOptimizationConfig.preset_realtime(**SMALL)
    pipeline = OptimizedScopePipeline(model_path="tiny", config=config, device="cpu")
    pipeline.warmup(num_frames=50)
    overlay = create_latency_overlay(position="top-right")
    sent = []
    while len(sent) < 22:
        frame = pipeline.generate_frame(prompt="a fox")
        clean = frame.clone()
        stats = pipeline.get_latency_stats()
        frame_with_overlay = overlay.apply(frame, stats)
        sent.append(frame_with_overlay)
        assert frame_with_overlay.shape == (3, 64, 96) and not torch.equal(frame_with_overlay, clean)
    assert LatencyStats(**stats).frame_count == 22


def test_pipeline_manager():
    class PipelineManager:
        def load_longlive_pipeline(self, model_path: str, preset: str = "balanced"):
            config = getattr(ScopeOptimizationConfig, f"preset_{preset}")()
            return OptimizedScopePipeline(model_path, config)

    pipeline = PipelineManager().load_longlive_pipeline("tiny", "quality")
    assert pipeline.config.target_fps == 20


def test_the_promised_fields_and_defaults():
    config = ScopeOptimizationConfig(
        enable_latency_overlay=True,
        overlay_position="top-right",
        overlay_opacity=0.8,
        target_fps=25,
        max_queue_depth=3,
        drop_frames_on_lag=True,
        prompt_debounce_ms=100,
        smooth_prompt_transition=False,
        transition_frames=5,
    )
    assert config == ScopeOptimizationConfig()


def test_customising_the_overlay():
    config = OverlayConfig(
        position="bottom-left",
        opacity=0.7,
        show_latency_graph=True,
        graph_history=120,
        latency_warning_ms=35.0,
        latency_error_ms=40.0,
    )
    frame = torch.zeros(3, 480, 832)
    LatencyOverlay(config).apply(frame, LatencyStats(current_ms=32.5, fps=31.2))
    assert frame[:, 240:, :416].sum() > 0 == frame[:, :240].sum() == frame[:, :, 416:].sum()


def test_the_track_never_blocks_the_event_loop():
    pytest.importorskip("aiortc")
    from longlive_optimized.demo.video_track import PipelineVideoTrack

    config = ScopeOptimizationConfig.preset_realtime(**SMALL)
    pipeline = OptimizedScopePipeline("tiny", config, device="cpu")

    async def watch() -> tuple[list, float]:
        track, frames, gap = PipelineVideoTrack(pipeline, "a fox"), [], 0.0
        done = asyncio.Event()

        async def heartbeat() -> None:
            nonlocal gap
            while not done.is_set():
                before = time.monotonic()
                await asyncio.sleep(0.005)
                gap = max(gap, time.monotonic() - before)

        beat = asyncio.create_task(heartbeat())
        for i in range(24):
            frames.append(await track.recv())
            if i == 10:
                track.set_prompt("a boat")
        done.set()
        await beat
        track.stop()
        return frames, gap

    frames, gap = asyncio.run(watch())
    gaps = [after.pts - before.pts for before, after in itertools.pairwise(frames)]
    # 16 a second, whatever the preset, but where a block came late
    assert frames[0].pts == 0 and min(gaps) >= 5624 and gaps.count(5625) >= 18
    assert frames[0].width == 96 and frames[0].to_ndarray(format="rgb24").std() > 1
    slowest = max(block.total for block in pipeline.engine.block_times()) / 1e3
    assert gap < max(0.25, 0.8 * slowest)
    assert torch.equal(pipeline.engine.stream.prompt.embedding, pipeline.engine.prompts.get("a boat"))


def test_the_track_streams_to_a_peer():
    """Two aiortc peers on this machine: pictures arrive, in order."""
    aiortc = pytest.importorskip("aiortc")
    import aioice.ice

    from longlive_optimized.demo.video_track import PipelineVideoTrack

    pipeline = OptimizedScopePipeline("tiny", ScopeOptimizationConfig.preset_realtime(**SMALL), device="cpu")

    async def stream() -> list:
        nothing = aiortc.RTCConfiguration(iceServers=[])
        sender, receiver = aiortc.RTCPeerConnection(nothing), aiortc.RTCPeerConnection(nothing)
        arrived: asyncio.Queue = asyncio.Queue()
        receiver.on("track", arrived.put_nowait)
        sender.addTrack(PipelineVideoTrack(pipeline, "a fox"))
        await sender.setLocalDescription(await sender.createOffer())
        await receiver.setRemoteDescription(sender.localDescription)
        await receiver.setLocalDescription(await receiver.createAnswer())
        await sender.setRemoteDescription(receiver.localDescription)
        track = await asyncio.wait_for(arrived.get(), 10)
        try:
            return [await asyncio.wait_for(track.recv(), 30) for _ in range(5)]
        finally:
            await asyncio.gather(sender.close(), receiver.close())

    addresses = aioice.ice.get_host_addresses
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    try:
        frames = asyncio.run(stream())
    finally:
        aioice.ice.get_host_addresses = addresses
    assert [f.width for f in frames] == [96] * 5 and frames[0].pts < frames[-1].pts
