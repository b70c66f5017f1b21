"""Does decoding gain from running beside the next block's denoising? ``python tests/measure/overlap.py MODEL``.

Milliseconds per block of the transformer alone, the decoder alone, one after the other on a stream, and both at once on
two streams: without any of the dependencies that a video has between them, so an upper bound.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig

BLOCKS, FILL = 12, 8


@torch.no_grad()
def measure(model: str, height: int, width: int) -> dict[str, float]:
    engine = LongLiveEngine(model, OptimizationConfig(height=height, width=width), "cuda")
    engine.warmup()
    for _ in range(FILL):
        engine.generate_block(BlockRequest("a lighthouse above a stormy sea"))
    stream = engine.stream
    latents = stream.history[-3:].clone()
    inputs = stream.passes.inputs(len(latents), len(engine.config.denoising_steps))
    one, other = torch.cuda.Stream(), torch.cuda.Stream()

    def denoise() -> None:
        with torch.cuda.stream(one):
            stream.passes.context(latents)
            stream.passes.denoise(stream.position, inputs)

    def decode(where: torch.cuda.Stream) -> None:
        with torch.cuda.stream(where):
            stream.decoder.decode_uint8(latents)

    ways = {
        "transformer": lambda: denoise(),
        "decoder": lambda: decode(other),
        "one after the other": lambda: (denoise(), decode(one)),
        "at once": lambda: (denoise(), decode(other)),
    }
    return {name: _milliseconds(work) for name, work in ways.items()}


def _milliseconds(work) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(BLOCKS):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / BLOCKS * 1e3


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("model", help="a folder of weights, or tiny")
    arguments.add_argument("--height", type=int, default=480)
    arguments.add_argument("--width", type=int, default=832)
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    result = measure(given.model, given.height, given.width)
    print(json.dumps(result, indent=2))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2))
