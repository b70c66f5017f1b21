"""What a video of the tiny world shows of its prompts.

``python -m longlive_optimized.tinyworld.watch VIDEO PROMPT [SECONDS:PROMPT ...]`` with what ``generate`` was given.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from ..video_time import BLOCK_PIXEL_FRAMES, FIRST_PIXEL_FRAMES, TRAINED_FPS
from .render import NATIVE
from .score import score
from .world import read_caption


def read_video(path: Path) -> Tensor:
    """Frames uint8 [T, H, W, 3] at the size that the model makes them."""
    import av

    size = dict(zip(("height", "width"), NATIVE, strict=True))
    with av.open(str(path)) as file:
        return torch.stack(
            [torch.from_numpy(frame.to_ndarray(format="rgb24", **size)) for frame in file.decode(video=0)]
        )


def first_block(second: float) -> int:
    """The frame at which the first block begins that a prompt given at ``second`` is for."""
    late = second * TRAINED_FPS - FIRST_PIXEL_FRAMES
    return FIRST_PIXEL_FRAMES + BLOCK_PIXEL_FRAMES * max(0, math.ceil(late / BLOCK_PIXEL_FRAMES))


def part(text: str) -> tuple[float, str]:
    """``SECONDS:PROMPT``, or a prompt from the beginning on."""
    second, colon, prompt = text.partition(":")
    return (float(second), prompt) if colon else (0.0, text)


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each prompt, and the share of all attributes met. A new prompt has one block to take effect."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("prompts", nargs="+", type=part, metavar="[SECONDS:]PROMPT")
    options = parser.parse_args(arguments)
    frames, held = read_video(options.video), []
    changes = [first_block(second) for second, _ in options.prompts[1:]]
    begins, ends = [0, *(frame + BLOCK_PIXEL_FRAMES for frame in changes)], [*changes, len(frames)]
    for begin, end, (_, text) in zip(begins, ends, options.prompts, strict=True):
        attributes = score(frames[begin:end], read_caption(text)).attributes
        held += attributes.values()
        missed = [name for name, met in attributes.items() if not met]
        shown = f"lacks {', '.join(missed)}" if missed else "all there"
        print(f"{begin / TRAINED_FPS:.1f} to {end / TRAINED_FPS:.1f} s, {shown}: {text}")
    print(f"score: {sum(held)} of {len(held)} attributes")


if __name__ == "__main__":
    main()
