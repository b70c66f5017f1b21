"""One video: prompts in, an mp4 out. ``python docs/examples/one_video.py --blocks 8 --out out/one_video.mp4``"""

from pathlib import Path

import typer

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.cli.video import Mp4Writer

HEIGHT, WIDTH = 64, 96  # what the built-in model was trained at; 480 and 832 for the real one


def main(model: str = "tiny", blocks: int = 8, out: Path = Path("out/one_video.mp4")) -> None:
    engine = LongLiveEngine(model, OptimizationConfig.preset("balanced", height=HEIGHT, width=WIDTH))
    out.parent.mkdir(parents=True, exist_ok=True)
    with Mp4Writer(out, HEIGHT, WIDTH, enlarge=6) as video:
        for i in range(blocks):
            first = i < blocks / 2
            prompt = "a red circle moves left over a green field" if first else "a white cross rests on a black night"
            frames = engine.generate_block(BlockRequest(prompt))  # uint8 [9, then 12, H, W, 3] on the device
            video.write(frames.cpu().numpy())
    print(f"{out}: {video.frames} frames")


if __name__ == "__main__":
    typer.run(main)
