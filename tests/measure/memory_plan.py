"""What the plan says and what a GPU takes: ``python tests/measure/memory_plan.py MODEL [MODEL ...] --json FILE``.

MODEL: a folder of full-size weights, random ones too (``make-checkpoint DIR --config 1.3b --text full``). A row for
each model, preset, size and way: as the plan chooses with all the memory there is, in 23, 15.5 and 11.5 GiB (a limit of
torch's, and a tensor as ballast beside it, leave no more), and with each residence of the text encoder. GiB of the plan
beside those that were allocated, reserved, and taken of the device, at most over blocks and prompt switches, first
without a warm-up, then with one; the plan without the prompts that are not in the cache yet:
``allocated_by_plan`` and ``device_by_plan`` are to be at most 1 and, but for what is seldom needed, at least 0.95.
Writes the rows of a file of docs/measurements.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from longlive_optimized import BlockRequest, LongLiveEngine
from longlive_optimized.config import OptimizationConfig
from longlive_optimized.engine.memory_plan import GIB, MemoryPlan, MemoryShort

PRESETS, SIZES = ("balanced", "speed"), ((480, 832), (320, 576))
CARDS = (23.0, 15.5, 11.5)
PROMPTS = ("a lighthouse above a stormy sea", "a lighthouse above a stormy sea at night")
BLOCKS = 6


def ways() -> Iterator[tuple[str, float | None, dict]]:
    """Names, GiB of the card that is played, and what the config fixes."""
    yield "all there is", None, {}
    for gib in CARDS:
        yield f"{gib:g} GiB", gib, {}
    for residence in ("gpu", "parked", "cpu"):
        yield f"text on {residence}", None, {"text_residence": residence}
    yield "low_memory", None, {"low_memory": True}


def play(gib: float | None) -> torch.Tensor | None:
    """Leave only so much of the GPU: what CUDA has taken already counts."""
    torch.cuda.set_per_process_memory_fraction(1.0)
    if gib is None:
        return None
    free, total = torch.cuda.mem_get_info()
    ballast = torch.empty(max(0, free - int(gib * GIB)), dtype=torch.uint8, device="cuda")
    torch.cuda.set_per_process_memory_fraction(min(1.0, (ballast.nbytes + gib * GIB) / total))
    return ballast


def measure(model: str, preset: str, size: tuple[int, int], way: tuple[str, float | None, dict]) -> dict:
    """A row: an engine from its first byte on."""
    name, card, fixed = way
    clear()
    ballast = play(card)
    row = {
        "table": "memory plan",
        "model": Path(model).name,
        "preset": preset,
        "size": "×".join(map(str, size)),
        "way": name,
    }
    torch.cuda.reset_peak_memory_stats()
    before, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    try:
        config = OptimizationConfig.preset(preset, height=size[0], width=size[1], **fixed)  # pyright: ignore[reportArgumentType]
        engine = LongLiveEngine(model, config, "cuda")
    except MemoryShort as error:
        return row | {"refused": str(error)}
    try:
        used(engine)
    except torch.OutOfMemoryError as error:
        return row | told(engine.memory_plan) | {"out_of_memory": str(error).split(".")[0]}
    plan = engine.memory_plan
    to_come = plan.parts["prompts"] * (1 - len(engine.prompts) / engine.prompts.size)  # prompts not yet said
    taken = {
        "allocated": torch.cuda.max_memory_allocated() - before,
        "reserved": torch.cuda.max_memory_reserved() - (ballast.nbytes if ballast is not None else 0),
        "device": free - torch.cuda.mem_get_info()[0] + plan.context,
    }
    return (
        row
        | told(plan)
        | {f"{kind}_gib": round(nbytes / GIB, 3) for kind, nbytes in taken.items()}
        | {
            "allocated_by_plan": round(taken["allocated"] / (plan.allocated - to_come), 3),
            "device_by_plan": round(taken["device"] / (plan.peak - to_come), 3),
            "memory_fallback": engine.memory_fallback,
            "made_gib": {
                "graphs_pool": round(engine.stream.passes.graphs.capture_bytes / GIB, 3),
                "longest_pass": round(plan.working / GIB, 3),
            },
        }
    )


def used(engine: LongLiveEngine) -> None:
    """Without a warm-up, so that each pass runs as it is once beside all else: a full window, a prompt switch that
    computes all of it anew, and one beyond. Then with one, as it is meant."""
    for i in range(BLOCKS + 1):
        engine.generate_block(BlockRequest(PROMPTS[i in (4, BLOCKS)]))
    engine.warmup()
    for i in range(BLOCKS + 1):
        engine.generate_block(BlockRequest(PROMPTS[i in (4, BLOCKS)]))
    engine.synchronize()


def told(plan: MemoryPlan) -> dict:
    return {"plan_allocated_gib": round(plan.allocated / GIB, 3), "plan": plan.as_json()}


def clear() -> None:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--preset", action="append", choices=PRESETS)
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.zeros(1, device="cuda")
    rows = []
    for model in options.models:
        for preset in options.preset or PRESETS:
            for size in SIZES:
                for way in ways():
                    rows.append(measure(model, preset, size, way))
                    print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
