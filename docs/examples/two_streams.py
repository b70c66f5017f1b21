"""Two videos on one engine, side by side: ``python docs/examples/two_streams.py --blocks 6``

Weights are loaded once; each stream has its own prompt, settings, ring and VAE state.
"""

from pathlib import Path

import torch
import typer

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.cli.video import Mp4Writer

HEIGHT, WIDTH = 64, 96


def main(model: str = "tiny", blocks: int = 6, out: Path = Path("out/two_streams.mp4")) -> None:
    engine = LongLiveEngine(model, OptimizationConfig.preset("balanced", height=HEIGHT, width=WIDTH))
    prompts = "a red circle moves left over a green field", "a yellow triangle drifts up over a black night"
    streams = engine.open_stream(seed=1), engine.open_stream(seed=2, **OptimizationConfig.preset_fields("ultra"))
    out.parent.mkdir(parents=True, exist_ok=True)
    with Mp4Writer(out, HEIGHT, 2 * WIDTH, enlarge=6) as video:
        for i in range(blocks):
            if i == blocks // 2:
                streams[0].configure(denoising_steps=(1000, 500, 250))  # of this stream, with its next block
            requests = zip(prompts, streams, strict=True)
            pictures = [engine.generate_block(BlockRequest(prompt), stream) for prompt, stream in requests]
            video.write(torch.cat(pictures, dim=2).cpu().numpy())  # [T, H, 2 W, 3]
    print(f"{out}: {video.frames} frames of {len(streams)} streams")


if __name__ == "__main__":
    typer.run(main)
