"""Video to video: frames in, other frames out. ``python docs/examples/video_input.py --blocks 5``

A first stream makes the input, so that nothing has to be downloaded; any uint8 frames [T, H, W, 3] will do.
"""

from pathlib import Path

import torch
import typer

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.cli.video import Mp4Writer

HEIGHT, WIDTH = 64, 96


def main(model: str = "tiny", blocks: int = 5, noise: float = 0.5, out: Path = Path("out/video_input.mp4")) -> None:
    engine = LongLiveEngine(model, OptimizationConfig.preset("balanced", height=HEIGHT, width=WIDTH))
    source, target = engine.open_stream(seed=1), engine.open_stream(seed=2)
    out.parent.mkdir(parents=True, exist_ok=True)
    with Mp4Writer(out, HEIGHT, 2 * WIDTH, enlarge=6) as video:
        for _ in range(blocks):
            given = engine.generate_block(BlockRequest("a red circle moves left over a green field"), source)
            # A block takes 12 frames (the first one 13); another number is resampled. More noise, less of the input.
            request = BlockRequest("a blue circle moves left over a green field", video=given, noise_scale=noise)
            made = engine.generate_block(request, target)
            pairs = min(len(given), len(made))
            video.write(torch.cat((given[:pairs], made[:pairs]), dim=2).cpu().numpy())  # input left, result right
    print(f"{out}: {video.frames} frames")


if __name__ == "__main__":
    typer.run(main)
