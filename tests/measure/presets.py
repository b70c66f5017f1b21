"""Presets turn by turn: ``python tests/measure/presets.py MODEL --json FILE``.

Those in 8 bits are streams of an engine that was made with such a preset, whose VAE is in int8 where it is fast; the
others of a second one. First each preset alone, for its warm-up and peak memory; then all of them, a few blocks each in
turn, so that the card's clocks are the same for all. Writes the rows of a file of docs/measurements.
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

from longlive_optimized import BlockRequest, LongLiveEngine
from longlive_optimized.config import PRESETS as FIELDS
from longlive_optimized.config import OptimizationConfig
from longlive_optimized.engine.stream import Stream
from longlive_optimized.engine.timing import percentile
from longlive_optimized.kernels.bench.runner import clocks_and_power
from longlive_optimized.keywords import PresetName
from longlive_optimized.video_time import BLOCK_PIXEL_FRAMES

SIZES = ((480, 832), (320, 576))
PRESETS = ("balanced", "speed", "realtime", "turbo", "ultra")
OF_PRECISION: tuple[tuple[PresetName, str], ...] = (("balanced", "bf16"), ("speed", "int8"))
PROMPT = "a lighthouse above a stormy sea"


Engines = dict[str, LongLiveEngine]  # by what their streams' precision is
Alone = dict[tuple[str, tuple[int, int]], dict]


def measure(engines: Engines, alone: Alone, size: tuple[int, int], rounds: int, blocks: int) -> list[dict]:
    """A row for each preset."""
    opened_with = {name: engines[FIELDS[name]["precision"]] for name in PRESETS}
    streams = {name: opened(engine, size, name) for name, engine in opened_with.items()}
    times = defaultdict(list)
    for _ in range(rounds):
        for name, stream in streams.items():
            engine = opened_with[name]
            made = make(engine, stream, blocks + 2)[2:]  # the first ones after another preset's run at its clocks
            times[name] += [
                (sum(b.stages[s] for s in ("denoise", "context")), b.stages["decode"], b.total) for b in made
            ]
    clocks = clocks_and_power()
    rows = []
    for name, stream in streams.items():
        settings, engine = stream.settings, opened_with[name]
        switch = switches(engine, stream)
        row = {"table": "presets", "preset": name, "size": f"{size[0]}×{size[1]}", "precision": stream.precision}
        row["vae_precision"] = engine.codec.precision
        row["steps_window"] = [len(settings.denoising_steps), settings.local_attn_size]
        for part, column in zip(("dit_ms", "vae_ms", "block_ms"), zip(*times[name], strict=True), strict=True):
            row[part] = {"median": round(statistics.median(column), 1), "p99": round(percentile(column, 0.99), 1)}
        row["fps"] = round(BLOCK_PIXEL_FRAMES * 1e3 / row["block_ms"]["median"], 1)
        row["block_by_balanced"] = round(
            statistics.median(t[2] for t in times[name]) / statistics.median(t[2] for t in times["balanced"]), 3
        )
        rows.append(row | {"prompt_switch_last_first_ms": switch} | alone[name, size] | {"clocks_and_power": clocks})
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    return rows


def made_with(model: str, name: PresetName) -> LongLiveEngine:
    return LongLiveEngine(model, OptimizationConfig.preset(name))


def opened(engine: LongLiveEngine, size: tuple[int, int], name: str) -> Stream:
    """A stream of that preset with a full window."""
    stream = engine.open_stream(*size, **OptimizationConfig.preset_fields(name))
    engine.warmup(stream=stream)
    make(engine, stream, 6)
    return stream


def of_one(engine: LongLiveEngine, size: tuple[int, int], name: str) -> dict:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    stream = engine.open_stream(*size, **OptimizationConfig.preset_fields(name))
    engine.warmup(stream=stream)
    warm = time.perf_counter() - started
    make(engine, stream, 6)
    return {"warmup_s": round(warm, 1), "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1)}


def make(engine: LongLiveEngine, stream: Stream, count: int) -> list:
    """Their times."""
    for _ in range(count):
        engine.generate_block(BlockRequest(PROMPT), stream)
    engine.synchronize()
    return engine.block_times(stream)[-count:]


def switches(engine: LongLiveEngine, stream: Stream) -> list[float]:
    """Milliseconds from a prompt's switch at a block boundary to the block's last pixel and to the first latent's."""
    times = []
    for i in range(5):
        started = time.perf_counter()
        engine.generate_block(BlockRequest(f"{PROMPT}, take {i}"), stream, first_latent_only=True)
        engine.synchronize()
        first = time.perf_counter() - started
        engine.rest_of_block(stream)
        engine.synchronize()
        times.append((time.perf_counter() - started, first))
    return [round(statistics.median(column) * 1e3, 1) for column in zip(*times, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--json", required=True)
    options = parser.parse_args()
    alone: Alone = {}
    engines: Engines = {}
    for name, precision in OF_PRECISION:
        engines.clear()
        engine = made_with(options.model, name)
        alone |= {
            (of, size): of_one(engine, size, of)
            for size in SIZES
            for of in PRESETS
            if FIELDS[of]["precision"] == precision
        }
        engines[precision] = engine
        del engine
    engines["bf16"] = made_with(options.model, "balanced")
    rows = []
    for size in SIZES:
        rows += measure(engines, alone, size, options.rounds, options.blocks)
        Path(options.json).write_text(json.dumps(rows, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
