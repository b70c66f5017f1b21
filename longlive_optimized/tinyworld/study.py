"""How far the score can be trusted, on clips whose truth is known: ``python -m longlive_optimized.tinyworld.study``."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..video_time import TRAINED_FPS
from .render import SIZES, layouts, render
from .score import score
from .world import WHOLE, Known, Scene, one_wrong, sample_scene


def blurred(frames: Tensor, sigma: float = 1.0) -> Tensor:
    """Frames uint8 [T, H, W, 3] out of focus, by a Gaussian."""
    line = torch.arange(-4.0, 5.0)
    kernel = torch.exp(-line.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    x = F.pad(frames.movedim(-1, 1).float(), (4, 4, 4, 4), mode="replicate")
    x = F.conv2d(F.conv2d(x, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    return x.movedim(1, -1).round().to(torch.uint8)


def noisy(frames: Tensor, sigma: float = 8.0) -> Tensor:
    """Frames with noise on every value."""
    return (frames + sigma * torch.randn(frames.shape)).round().clamp(0, 255).to(torch.uint8)


def compressed(frames: Tensor, crf: int = 28) -> Tensor:
    """Frames after H.264 at a low rate."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=TRAINED_FPS, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for picture in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file, "r") as container:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)])


DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "as rendered": lambda frames: frames,
    "blurred": blurred,
    "noisy": noisy,
    "compressed": compressed,
    "all three": lambda frames: compressed(noisy(blurred(frames))),
}


class Reliability(NamedTuple):
    """Of ``clips`` clips: how many true attributes there were and were accepted; how many clips with one attribute
    changed, and how many of noise, were rejected."""

    clips: int
    true: int
    accepted: int
    wrong_rejected: int
    noise_rejected: int

    def __str__(self) -> str:
        return (
            f"true attributes accepted {self.accepted}/{self.true} = {self.accepted / self.true:.2%}, clips with one "
            f"wrong rejected {self.wrong_rejected}/{self.clips}, noise rejected {self.noise_rejected}/{self.clips}"
        )


def examples(
    count: int, seed: int, frames: int, size: tuple[int, int], known: Known = WHOLE
) -> Iterator[tuple[Scene, Tensor]]:
    """Scenes of a part of the world, half of them held out, with a clip of each."""
    random = Random(seed)
    scenes = [sample_scene(random, held_out=i % 2 == 0, known=known) for i in range(count)]
    places = layouts(count, *size, torch.Generator().manual_seed(seed))
    for i, scene in enumerate(scenes):
        yield scene, render([(scene,)], places[i : i + 1], frames, *size)[0]


def study(
    damage: str,
    count: int,
    seed: int = 0,
    frames: int = 33,
    size: tuple[int, int] = SIZES[0],
    known: Known = WHOLE,
) -> Reliability:
    """Score ``count`` clips after a damage of DAMAGES, each also against a scene with one attribute changed."""
    torch.manual_seed(seed)
    random, true, accepted, wrong, noise = Random(seed + 1), 0, 0, 0, 0
    for scene, clip in examples(count, seed, frames, size, known):
        clip = DAMAGES[damage](clip)
        held = score(clip, scene).attributes.values()
        true, accepted = true + len(held), accepted + sum(held)
        wrong += not score(clip, one_wrong(scene, random)).met
        noise += not score(torch.randint(0, 256, clip.shape, dtype=torch.uint8), scene).met
    return Reliability(count, true, accepted, wrong, noise)


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each damage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--height", type=int, default=SIZES[0][0])
    parser.add_argument("--width", type=int, default=SIZES[0][1])
    options = parser.parse_args(arguments)
    for damage in DAMAGES:
        print(
            f"{damage}: {study(damage, options.clips, options.seed, size=(options.height, options.width))}", flush=True
        )


if __name__ == "__main__":
    main()
