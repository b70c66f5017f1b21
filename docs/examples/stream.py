"""Frames in a loop, under prompts that change: ``python docs/examples/stream.py --frames 60 --out out/stream.gif``"""

from pathlib import Path

import numpy as np
import typer

import longlive_optimized
from longlive_optimized import Video


def main(model: str = "tiny", frames: int = 60, out: Path = Path("out/stream.gif")) -> None:
    shown = []
    with longlive_optimized.stream("a red circle moves left over a green field", model=model) as stream:
        for frame in stream:  # uint8 [H, W, 3], as soon as it is made, without end
            shown.append(frame)
            if len(shown) == frames // 2:
                stream.prompt = "a white cross rests on a black night"  # seen from the next block on
            if len(shown) == frames:
                break
        story = stream.story
    out.parent.mkdir(parents=True, exist_ok=True)
    Video(np.stack(shown), story).save(out, scale=3)
    story.save(out.with_suffix(".json"))  # longlive-optimized generate --story plays it again
    print(f"{out}: {frames} frames, {story.blocks} blocks")


if __name__ == "__main__":
    typer.run(main)
