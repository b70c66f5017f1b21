"""A story by hand, made twice to the same video: ``python docs/examples/story.py --seconds 4 --out out/story.mp4``"""

from pathlib import Path

import numpy as np
import typer

import longlive_optimized
from longlive_optimized import LongLiveEngine, OptimizationConfig, Story

FIELD, NIGHT = "a red circle moves left over a green field", "a white cross rests on a black night"


def main(model: str = "tiny", seconds: float = 4, out: Path = Path("out/story.mp4")) -> None:
    story = Story.read(
        {
            "version": 1,
            "seed": 7,
            "seconds": seconds,
            "prompts": [
                {"seconds": 0, "prompt": FIELD},
                {"seconds": seconds / 4, "prompts": [[FIELD, 1], [NIGHT, 1]]},
                {"seconds": seconds / 2, "prompt": NIGHT, "transition_blocks": 2},
            ],
        }
    )
    with LongLiveEngine(model, OptimizationConfig()) as engine:  # one for both, which is loaded once
        video = longlive_optimized.generate(story, model=engine)
        again = longlive_optimized.generate(story, model=engine)
    out.parent.mkdir(parents=True, exist_ok=True)
    story.save(out.with_suffix(".json"))
    video.save(out, scale=6)
    print(f"{out}: {len(video)} frames, the same twice: {np.array_equal(video.frames, again.frames)}")


if __name__ == "__main__":
    typer.run(main)
