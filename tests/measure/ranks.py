"""What several GPUs give: ``torchrun --nproc-per-node R tests/measure/ranks.py MODEL --json FILE``; R = 1 to compare.

At 480x832, with the presets ``balanced`` and ``speed``: milliseconds of a block and of its stages, of a block with a
prompt switch, and of the exchange alone: as many gathers of the same sizes, in a CUDA graph of their own. And memory of
each rank. Writes rows as those of docs/measurements.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.config import PIXELS_PER_TOKEN, StreamSettings
from longlive_optimized.engine.ranks import Ranks
from longlive_optimized.engine.stream import Stream
from longlive_optimized.engine.timing import percentile
from longlive_optimized.kernels.bench.runner import clocks_and_power
from longlive_optimized.model.shard import Shard
from longlive_optimized.video_time import BLOCK_FRAMES, BLOCK_PIXEL_FRAMES

PRESETS = "balanced", "speed"
PROMPTS = "a lighthouse above a stormy sea", "a red fox walks through fresh snow"
SWITCHES = 4


def make(engine: LongLiveEngine, stream: Stream, prompt: str, count: int) -> list:
    """Their times."""
    for _ in range(count):
        engine.generate_block(BlockRequest(prompt), stream)
    engine.synchronize()
    return engine.block_times(stream)[-count:]


def measure(engine: LongLiveEngine, preset: str, size: tuple[int, int], blocks: int) -> dict:
    settings = OptimizationConfig.preset_fields(preset)
    own = {name: settings[name] for name in settings if name in StreamSettings.__dataclass_fields__}
    stream = engine.open_stream(*size, **own)
    started = time.perf_counter()
    engine.warmup(stream=stream)
    warm, shard = time.perf_counter() - started, engine.devices.ranks.shard
    make(engine, stream, PROMPTS[0], 6)  # the window is full
    made = make(engine, stream, PROMPTS[0], blocks)
    switches = [make(engine, stream, PROMPTS[(i + 1) % 2], 1)[0] for i in range(SWITCHES)]
    total = [block.total for block in made]
    stages = {name: round(statistics.median(block.stages[name] for block in made), 2) for name in made[0].stages}
    median = statistics.median(total)
    row = {"table": "ranks", "ranks": shard.count, "preset": preset, "precision": stream.precision}
    row |= {"vae_precision": engine.codec.precision, "size": f"{size[0]}×{size[1]}", "warmup_s": round(warm, 1)}
    row["cuda_graphs"] = stream.cuda_graphs_active
    row["block_ms"] = {"median": round(median, 2), "p99": round(percentile(total, 0.99), 2)}
    row["transformer_ms"] = round(stages["denoise"] + stages["context"], 2)
    row["exchange_ms"] = exchange(engine, size, len(stream.settings.denoising_steps), shard)
    row |= {"stages_ms": stages, "fps": round(BLOCK_PIXEL_FRAMES * 1e3 / median, 1)}
    row["prompt_switch_block_ms"] = round(statistics.median(block.total for block in switches), 1)
    peak = torch.cuda.max_memory_allocated() if engine.device.type == "cuda" else 0
    each = shard.gather(torch.tensor([peak], device=engine.device)).tolist()
    row["peak_gib_of_ranks"] = [round(nbytes / 2**30, 2) for nbytes in each]
    return row | {"clocks_and_power": clocks_and_power() if peak else None}


def exchange(engine: LongLiveEngine, size: tuple[int, int], steps: int, shard: Shard) -> float:
    """Milliseconds of a block's gathers: of queries, keys and values in each layer of each pass, of the flow."""
    if shard.count == 1:
        return 0.0
    config, model = engine.model.config, engine.model
    tokens = BLOCK_FRAMES * (size[0] // PIXELS_PER_TOKEN) * (size[1] // PIXELS_PER_TOKEN) // shard.count
    where = {"dtype": model.compute_dtype, "device": model.device}
    qkv, flow = (torch.zeros(tokens, width, **where) for width in (3 * config.dim, 4 * config.out_dim))

    def gathers() -> None:
        for i in range(steps + 1):
            for _ in range(config.num_layers):
                shard.gather_for_now(qkv, first=config.dim)
            if i < steps:
                shard.gather(flow)

    if engine.device.type != "cuda":
        started = time.perf_counter()
        gathers()
        return round((time.perf_counter() - started) * 1e3, 2)
    gathers()
    graph, times = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        gathers()
    for _ in range(7):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return round(statistics.median(times), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--blocks", type=int, default=25)
    parser.add_argument("--device", help="by default each rank's own GPU")
    parser.add_argument("--size", default="480x832")
    parser.add_argument("--json", required=True)
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    rows = []
    with Ranks.from_environment(options.device) as ranks, torch.no_grad():
        config = OptimizationConfig.preset("balanced", height=height, width=width)
        engine = LongLiveEngine(options.model, config, options.device, ranks=ranks)
        for preset in PRESETS:
            rows.append(measure(engine, preset, (height, width), options.blocks))
            if ranks.rank == 0:
                print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
                Path(options.json).write_text(json.dumps(rows, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
