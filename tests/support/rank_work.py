"""What ranks on GPUs do in processes of their own, which cannot import a test's module."""

import contextlib
import time

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.engine.ranks import RankError, Ranks

# At this size, with these prompts, streams of the built-in model stay close to each other.
SIZE = {"height": 32, "width": 64}
FOX, BOAT = "a red square stands still over a green field", "a white cross rests on a black night"


def blocks(ranks=None, device=None, warm=False, **changes):
    """Latents of the first block in the model's dtype; pictures of it and of later ones, of which some are in int8."""
    engine = LongLiveEngine("tiny", OptimizationConfig(**SIZE, **changes), device, ranks=ranks)
    if warm:
        engine.warmup()
    made = [engine.generate_block(BlockRequest(FOX)).cpu()]
    latents = engine.stream.history.cpu()
    made += [engine.generate_block(BlockRequest(prompt)).cpu() for prompt in (FOX, BOAT)]
    engine.configure(precision="int8")
    made += [engine.generate_block(BlockRequest(BOAT)).cpu() for _ in range(2)]
    return latents, made, engine.stream.cuda_graphs_active


def on_one_gpu(changes):
    with Ranks.from_environment("cuda:0", backend="gloo") as ranks:
        return blocks(ranks, **changes)


def on_two_gpus(changes):
    with Ranks.from_environment() as ranks:
        return blocks(ranks, warm=True, **changes)


def forever(folder):
    ranks = Ranks.from_environment()
    engine = LongLiveEngine("tiny", OptimizationConfig(**SIZE), ranks=ranks)
    engine.warmup()
    try:
        for i in range(100_000):
            frames = engine.generate_block(BlockRequest(FOX))
            with contextlib.suppress(RuntimeError):  # CUDA's: what was under way is lost
                frames.cpu()
            (folder / f"{ranks.rank}.block").write_text(str(i))
    except RankError as error:
        return time.time(), str(error)
