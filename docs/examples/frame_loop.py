"""Frame by frame, with presets, statistics and a latency panel: ``python docs/examples/frame_loop.py --frames 90``"""

from pathlib import Path

import typer

from longlive_optimized.cli.video import Mp4Writer
from longlive_optimized.demo.scope_integration import (
    OptimizedScopePipeline,
    ScopeOptimizationConfig,
    create_latency_overlay,
)

HEIGHT, WIDTH = 64, 96


def main(model: str = "tiny", frames: int = 90, out: Path = Path("out/frame_loop.mp4")) -> None:
    pipeline = OptimizedScopePipeline(model, ScopeOptimizationConfig.preset_realtime(height=HEIGHT, width=WIDTH))
    overlay = create_latency_overlay(position="top-right")  # needs some 200 pixels of height to be legible
    out.parent.mkdir(parents=True, exist_ok=True)
    with Mp4Writer(out, HEIGHT, WIDTH, enlarge=6) as video:
        for i in range(frames):
            if i == frames // 3:
                pipeline.switch_prompt("a white cross rests on a black night")  # any thread, any time
            if i == 2 * frames // 3:
                pipeline.set_optimization_preset("ultra")  # with the next block: no reload, no cut
            # An argument counts when it changes: repeating the first prompt does not undo switch_prompt.
            frame = pipeline.generate_frame("a red circle moves left over a green field")  # float [3, H, W] in 0..1
            frame = overlay.apply(frame, pipeline.get_latency_stats())  # drawn in place
            video.write((frame * 255).round().byte().permute(1, 2, 0)[None].cpu().numpy())
    stats = pipeline.get_latency_stats()
    print(f"{out}: {video.frames} frames, {stats['mean_ms']:.1f} ms a frame, preset {stats['preset']}")


if __name__ == "__main__":
    typer.run(main)
