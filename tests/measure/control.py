"""What control costs: ``python tests/measure/control.py MODEL --json FILE``, with a model made with ``--control``.

Milliseconds of a block without control, with a control video, with one of whose frames masks keep a part, and with a
reference alone; for each size, with four steps and with two. A few blocks of each in turn, so that the card's clocks
are the same for all. Then peak memory of each kind alone, and the longest block while control comes and goes. Writes
rows as those of docs/measurements.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch

from longlive_optimized import BlockRequest, Control, LongLiveEngine, OptimizationConfig
from longlive_optimized.engine.stream import Stream
from longlive_optimized.engine.timing import percentile
from longlive_optimized.kernels.bench.runner import clocks_and_power
from longlive_optimized.video_time import BLOCK_PIXEL_FRAMES

SIZES = ((480, 832), (512, 512))
STEPS = ((1000, 750, 500, 250), (1000, 750))
PROMPT = "a lighthouse above a stormy sea"
KINDS = "none", "frames", "masks", "reference"


def control_of(kind: str, size: tuple[int, int]) -> Control | None:
    """Frames as a camera's: in host memory, of the stream's size."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (BLOCK_PIXEL_FRAMES, *size, 3), dtype=torch.uint8, generator=generator)
    masks = torch.zeros(BLOCK_PIXEL_FRAMES, *size, dtype=torch.uint8)
    masks[:, size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = 255
    controls = {"frames": Control(frames), "masks": Control(frames, masks), "reference": Control(references=frames[:1])}
    return controls.get(kind)


def make(engine: LongLiveEngine, stream: Stream, control: Control | None, count: int) -> list:
    """Their times."""
    for _ in range(count):
        engine.generate_block(BlockRequest(PROMPT, control=control), stream)
    engine.synchronize()
    return engine.block_times(stream)[-count:]


def measure(
    engine: LongLiveEngine, size: tuple[int, int], steps: tuple[int, ...], rounds: int, blocks: int
) -> list[dict]:
    """A row for each kind of control."""
    stream = engine.open_stream(*size, denoising_steps=steps)
    started = time.perf_counter()
    engine.warmup(stream=stream)
    warm = time.perf_counter() - started
    controls = {kind: control_of(kind, size) for kind in KINDS}
    times, stages = defaultdict(list), defaultdict(list)
    for _ in range(rounds):
        for kind, control in controls.items():
            made = make(engine, stream, control, blocks + 2)[2:]  # the first ones begin it
            times[kind] += [block.total for block in made]
            stages[kind] += [block.stages.get("control", 0.0) for block in made]
    changes = [make(engine, stream, controls["frames" if i % 2 else "none"], 1)[0].total for i in range(20)]
    clocks, precision, rows = clocks_and_power(), stream.precision, []
    del stream  # whose memory is not to be in the others' peaks
    for kind in KINDS:
        median = statistics.median(times[kind])
        row = {"table": "control", "control": kind, "size": f"{size[0]}×{size[1]}", "steps": list(steps)}
        row |= {"precision": precision, "vae_precision": engine.codec.precision, "warmup_s": round(warm, 1)}
        row["block_ms"] = {"median": round(median, 1), "p99": round(percentile(times[kind], 0.99), 1)}
        row["encode_ms"] = round(statistics.median(stages[kind]), 1)
        row["fps"] = round(BLOCK_PIXEL_FRAMES * 1e3 / median, 1)
        row["by_none"] = round(median / statistics.median(times["none"]), 3)
        row["longest_while_it_comes_and_goes_ms"] = round(max(changes), 1)
        rows.append(row | {"peak_gib": peak(engine, size, steps, controls[kind])} | {"clocks_and_power": clocks})
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    return rows


def peak(engine: LongLiveEngine, size: tuple[int, int], steps: tuple[int, ...], control: Control | None) -> float:
    """GiB allocated at most, the engine's included, by a stream that has never had another control."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    stream = engine.open_stream(*size, denoising_steps=steps)
    make(engine, stream, control, 6)
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--preset", default="balanced", help="whose precision and window; the steps are ours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", default=[f"{h}x{w}" for h, w in SIZES])
    parser.add_argument("--json", required=True)
    options = parser.parse_args()
    config = OptimizationConfig.preset(options.preset, control=True)
    bare = LongLiveEngine(options.model, OptimizationConfig.preset(options.preset), options.device)
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes]
    without = {(size, steps): peak(bare, size, steps, None) for size in sizes for steps in STEPS}
    del bare
    engine, rows = LongLiveEngine(options.model, config, options.device), []
    for size in sizes:
        for steps in STEPS:
            made = measure(engine, size, steps, options.rounds, options.blocks)
            rows += [row | {"peak_gib_without_the_module": without[size, steps]} for row in made]
            Path(options.json).write_text(json.dumps(rows, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
