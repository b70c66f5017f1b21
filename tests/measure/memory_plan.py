"""What the plan says and what a GPU takes: ``python tests/measure/memory_plan.py MODEL [MODEL ...] --json FILE``.

MODEL: a folder of full-size weights, random ones too (``make-checkpoint DIR --config 1.3b --text full``). A row for
each model, preset, size and way: as the plan chooses with all the memory there is, in 23, 15.5 and 11.5 GiB (a limit of
torch's, and a tensor as ballast beside it, leave no more), and with each residence of the text encoder. GiB of the plan
beside those that were allocated and reserved, at most over blocks and prompt switches, first
without a warm-up, then with one; the plan without the prompts that are not in the cache yet:
``allocated_by_plan`` and ``nvidia_smi_by_plan`` are to be at most 1 and, but for what is seldom needed, at least 0.95.
Beside it the blocks' times, those of prompts that are not cached, and the most of the device's used memory by
nvidia-smi, less what it was before this process came and the ballast. What a row loads of kernels stays for those after
it: for figures of one engine alone, name one row. Writes the rows of a file of docs/measurements.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from longlive_optimized import BlockRequest, LongLiveEngine
from longlive_optimized.config import OptimizationConfig
from longlive_optimized.engine.memory_plan import MemoryShort
from longlive_optimized.engine.memory_shares import GIB, MemoryPlan
from longlive_optimized.engine.timing import percentile

PRESETS, SIZES = ("balanced", "speed"), ((480, 832), (320, 576))
CARDS = (23.0, 15.5, 11.5)
PROMPTS = ("a lighthouse above a stormy sea", "a lighthouse above a stormy sea at night")
BLOCKS = 6
NEW_PROMPT_EVERY = 20  # of the steady blocks


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


def measure(
    model: str, preset: str, size: tuple[int, int], way: tuple[str, float | None, dict], blocks: int, before_us: int
) -> dict:
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
    before = torch.cuda.memory_allocated()
    started, most_used = time.perf_counter(), MostUsed()
    try:
        config = OptimizationConfig.preset(preset, height=size[0], width=size[1], **fixed)  # pyright: ignore[reportArgumentType]
        engine = LongLiveEngine(model, config, "cuda")
    except MemoryShort as error:
        return row | {"refused": str(error)}
    try:
        engine.generate_block(BlockRequest(PROMPTS[0]))
        engine.synchronize()
        first_frame_s = round(time.perf_counter() - started, 2)
        used(engine)
        times = steady(engine, blocks)
    except torch.OutOfMemoryError as error:
        return row | told(engine.memory_plan) | {"out_of_memory": str(error).split(".")[0]}
    plan = engine.memory_plan
    to_come = plan.parts["prompts"] * (1 - len(engine.prompts) / engine.prompts.size)  # prompts not yet said
    beside = ballast.nbytes if ballast is not None else 0
    taken = {
        "allocated": torch.cuda.max_memory_allocated() - before,
        "reserved": torch.cuda.max_memory_reserved() - beside,
        "nvidia_smi": most_used.by_smi() - before_us - beside,
    }
    return (
        row
        | told(plan)
        | {"start_to_first_block_s": first_frame_s}
        | times
        | {f"{kind}_gib": round(nbytes / GIB, 3) for kind, nbytes in taken.items()}
        | {
            "allocated_by_plan": round(taken["allocated"] / (plan.allocated - to_come), 3),
            "nvidia_smi_by_plan": round(taken["nvidia_smi"] / (plan.peak - to_come), 3),
            "in_the_end_gib": {
                "allocated": round(torch.cuda.memory_allocated() / GIB, 3),
                "reserved": round(torch.cuda.memory_reserved() / GIB, 3),
            },
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


def steady(engine: LongLiveEngine, blocks: int) -> dict:
    """Milliseconds of so many blocks, some of them with a prompt that was never said; of those the text encoder's."""
    made = len(engine.block_times())
    for i in range(blocks):
        engine.generate_block(BlockRequest(f"{PROMPTS[0]}, take {i // NEW_PROMPT_EVERY}"))
    engine.synchronize()
    of = engine.block_times()[made:]
    usual, text = [b.total for b in of if "text" not in b.stages], [b.stages["text"] for b in of if "text" in b.stages]
    return {
        "blocks": len(of),
        "block_ms": {"median": round(statistics.median(usual), 1), "p99": round(percentile(usual, 0.99), 1)},
        "new_prompt_ms": {"median": round(statistics.median(text), 1), "most": round(max(text), 1)},
    }


class MostUsed:
    """The most of the device's memory that is taken, by all processes, looked at all the time."""

    def __init__(self) -> None:
        self._most, self._go_on = self._now(), True
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _now(self) -> int:
        free, total = torch.cuda.mem_get_info()
        return total - free

    def _look(self) -> None:
        while self._go_on:
            self._most = max(self._most, self._now())
            time.sleep(0.01)

    def by_smi(self) -> int:
        """In bytes as nvidia-smi counts them; CUDA's own count leaves some out."""
        self._go_on = False
        self._thread.join()
        return self._most + used_by_smi() - self._now()


def used_by_smi() -> int:
    """Bytes of the first visible device, by all processes."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    asked = ["nvidia-smi", f"--id={device}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout) << 20


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
    parser.add_argument("--size", action="append", choices=["×".join(map(str, size)) for size in SIZES])
    parser.add_argument("--way", action="append", choices=[name for name, *_ in ways()])
    parser.add_argument("--blocks", type=int, default=40, help="steady ones that are timed (%(default)s)")
    parser.add_argument("--json")
    options = parser.parse_args()
    before_us = used_by_smi()
    torch.zeros(1, device="cuda")
    rows = []
    for model in options.models:
        for preset in options.preset or PRESETS:
            for size in (s for s in SIZES if not options.size or "×".join(map(str, s)) in options.size):
                for way in (way for way in ways() if not options.way or way[0] in options.way):
                    rows.append(measure(model, preset, size, way, options.blocks, before_us))
                    print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
                    if options.json:
                        Path(options.json).write_text(json.dumps(rows, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
