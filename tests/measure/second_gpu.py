"""What a GPU of its own for the VAE gains: ``python tests/measure/second_gpu.py MODEL --json FILE``.

For each preset one engine on one GPU and one whose VAE is on another, in turn, so that the cards' clocks are the same
for both. Frames are fetched to the host one block late, as the server does: milliseconds a block are the wall time of
all blocks of a round, from the first call to the last frame on the host, and the time from block to block as they
arrive there. Then the blocks' stages, a prompt switch to its first frame, and memory of each GPU. Both engines must
make the same frames. Writes rows as those of docs/measurements.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.engine.host_copy import HostCopy
from longlive_optimized.engine.timing import BlockTimes, percentile
from longlive_optimized.kernels.bench.runner import clocks_and_power
from longlive_optimized.video_time import BLOCK_PIXEL_FRAMES

GIB = 2**30
PROMPT = "a lighthouse above a stormy sea"
FILL = 5  # blocks until the window is full


@dataclass
class Ran:
    """An engine, and what was measured of it."""

    engine: LongLiveEngine
    warmup_s: float
    held: list[int]  # bytes, by GPU
    walls: list[float] = field(default_factory=list)  # milliseconds a block, by round
    gaps: list[float] = field(default_factory=list)  # milliseconds from block to block
    times: list[BlockTimes] = field(default_factory=list)
    switches: list[float] = field(default_factory=list)  # milliseconds
    most: list[int] = field(default_factory=list)  # bytes, by GPU


def load(model: str, config: OptimizationConfig, gpus: Sequence[str], **others: str | None) -> Ran:
    """An engine that is warm, with a full window."""
    before = [torch.cuda.memory_allocated(gpu) for gpu in gpus]
    engine = LongLiveEngine(model, config, gpus[0], **others)
    warmup = engine.warmup()
    fetch(engine, FILL)
    return Ran(engine, warmup, [torch.cuda.memory_allocated(gpu) - n for gpu, n in zip(gpus, before, strict=True)])


def fetch(engine: LongLiveEngine, blocks: int) -> tuple[list[np.ndarray], list[float]]:
    """Blocks on the host, each fetched once the next one is asked for; when each was there, in seconds."""
    copies, frames, there = deque(), [], []

    def take() -> None:
        frames.append(copies.popleft().frames())
        there.append(time.perf_counter())

    for _ in range(blocks):
        copies.append(HostCopy(engine.generate_block(BlockRequest(PROMPT))))
        if len(copies) > 1:
            take()
    take()
    return frames, there


def go_round(ran: Ran, number: int, blocks: int, gpus: Sequence[str]) -> list[np.ndarray]:
    """So many blocks, then a prompt switch and back; all their frames."""
    engine = ran.engine
    engine.synchronize()
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    others = [torch.cuda.memory_allocated(gpu) - mine for gpu, mine in zip(gpus, ran.held, strict=True)]
    started = time.perf_counter()
    frames, there = fetch(engine, blocks)
    ran.walls.append((there[-1] - started) / blocks * 1e3)
    ran.gaps += [1e3 * (b - a) for a, b in itertools.pairwise(there)]
    ran.times += engine.block_times()[-blocks:]
    most = [torch.cuda.max_memory_allocated(gpu) - n for gpu, n in zip(gpus, others, strict=True)]
    ran.most = [*map(max, ran.most or most, most)]
    started = time.perf_counter()
    first = engine.generate_block(BlockRequest(f"{PROMPT}, picture {number}"), first_latent_only=True)
    frames.append(HostCopy(first).frames())
    ran.switches.append((time.perf_counter() - started) * 1e3)
    frames.append(HostCopy(engine.rest_of_block()).frames())
    return frames + fetch(engine, 2)[0]


def row(ran: Ran, preset: str, same: bool, one: Ran, gpus: Sequence[str], more: dict) -> dict:
    """What is written of one engine; ratios are by that on one GPU."""
    engine, plan = ran.engine, ran.engine.memory_plan
    planned = {each.device: each for each in plan.devices}
    stages = sorted({name for block in ran.times for name in block.stages})
    every, switch = statistics.median(ran.gaps), statistics.median(ran.switches)
    result = {"table": "second gpu", "preset": preset, "size": "×".join(map(str, engine.config.size))}
    result |= {"gpus": len(engine.devices.all), "async_vae": engine.devices.async_vae, **more}
    result |= {"precision": engine.stream.precision, "vae_precision": engine.codec.precision}
    result |= {"load_s": round(engine.load_seconds, 1), "warmup_s": round(ran.warmup_s, 1), "rounds": len(ran.walls)}
    result["wall_ms"] = [round(wall, 1) for wall in ran.walls]
    result["every_ms"] = {"median": round(every, 1), "p99": round(percentile(ran.gaps, 0.99), 1)}
    result["fps"] = round(BLOCK_PIXEL_FRAMES * 1e3 / every, 1)
    result["every_by_one"] = round(every / statistics.median(one.gaps), 3)
    result["interval_ms"] = round(statistics.median(block.interval for block in ran.times), 1)
    result["total_ms"] = round(statistics.median(block.total for block in ran.times), 1)
    result["stages_ms"] = {
        name: round(statistics.median(block.stages.get(name, 0.0) for block in ran.times), 1) for name in stages
    }
    result["switch_to_first_frame_ms"] = {"median": round(switch, 1), "most": round(max(ran.switches), 1)}
    result["memory_gib"] = {
        gpu: {
            "held": round(ran.held[i] / GIB, 2),
            "most": round(ran.most[i] / GIB, 2),
            "plan": round(planned[torch.device(gpu)].allocated / GIB, 2) if torch.device(gpu) in planned else 0.0,
        }
        for i, gpu in enumerate(gpus)
    }
    return result | {"same_frames": same}


def measure(model: str, preset: str, size: tuple[int, int], options: argparse.Namespace, until: float) -> list[dict]:
    """A row for each of the two engines; no round begins after ``until``, but the first."""
    gpus = (options.device, options.vae_device)
    config = OptimizationConfig.preset(preset, height=size[0], width=size[1])
    one = load(model, config, gpus)
    two = load(model, config, gpus, vae_device=options.vae_device, text_device=options.text_device)
    same = True
    for number in range(options.rounds):
        if number and time.perf_counter() > until:
            break
        made = [go_round(ran, number, options.blocks, gpus) for ran in (one, two)]
        same &= all(map(np.array_equal, *made))
    clocks = []
    for gpu in gpus:
        with torch.cuda.device(gpu):
            clocks.append(clocks_and_power())
    more = {"blocks": options.blocks, "clocks_and_power": clocks}
    return [row(ran, preset, same, one, gpus, more) for ran in (one, two)]


def main() -> None:
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--presets", nargs="+", default=["balanced", "speed"])
    parser.add_argument("--size", default="480x832")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--vae-device", default="cuda:1")
    parser.add_argument("--text-device", help="the text encoder's too; by default with the transformer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=50, help="no round begins later, but a preset's first")
    parser.add_argument("--json", required=True)
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    rows = []
    for i, preset in enumerate(options.presets):
        until = started + options.seconds * (i + 1) / len(options.presets)
        for made in measure(options.model, preset, (height, width), options, until):
            rows.append(made)
            print(json.dumps(made, ensure_ascii=False), flush=True)
        Path(options.json).write_text(json.dumps(rows, indent=1, ensure_ascii=False))
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
