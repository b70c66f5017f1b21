"""A slider of LoRA scales: ``python tests/measure/lora_slider.py MODEL --json FILE``.

40 values in 4 s for LoRAs of every linear of every layer, rank 32 and 128, while blocks are made; each block takes the
newest value. A row for each rank and size: usual blocks, blocks with another scale, and what set_loras takes of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from longlive_optimized import BlockRequest, LongLiveEngine
from longlive_optimized.config import OptimizationConfig
from longlive_optimized.model.config import ModelConfig
from longlive_optimized.model.transformer import generator_shapes
from longlive_optimized.weights.lora import targets
from longlive_optimized.weights.user_lora import UserLora

VALUES, SECONDS = 40, 4.0
REQUEST = BlockRequest("a lighthouse above a stormy sea")


def write_lora(path: Path, config: ModelConfig, rank: int) -> None:
    shapes, tensors = generator_shapes(config), {}
    for module in targets(shapes):
        rows, columns = shapes[f"{module}.weight"]
        tensors[f"{module}.lora_A.weight"] = torch.randn(rank, columns, dtype=torch.bfloat16) / columns**0.5
        tensors[f"{module}.lora_B.weight"] = torch.randn(rows, rank, dtype=torch.bfloat16) / 100
    save_file(tensors, path)


def seconds(engine: LongLiveEngine, work) -> float:
    engine.synchronize()
    began = time.perf_counter()
    work()
    engine.synchronize()
    return time.perf_counter() - began


def block(engine: LongLiveEngine) -> float:
    return seconds(engine, lambda: engine.generate_block(REQUEST))


def slide(engine: LongLiveEngine, path: Path) -> tuple[list[float], list[float]]:
    """Seconds of each block of the slide, set_loras included, and of set_loras."""
    blocks, changes, last, began = [], [], -1, time.perf_counter()
    while last < VALUES - 1:
        due = min(int((time.perf_counter() - began) / SECONDS * VALUES), VALUES - 1)
        change = 0.0
        if due != last:
            last = due
            change = seconds(engine, lambda scale=due / 20: engine.set_loras([UserLora(path, scale)]))
            changes.append(change)
        blocks.append(change + block(engine))
    return blocks, changes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--sizes", nargs="*", default=["480x832", "320x576"])
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for rank in (32, 128):
            path = Path(folder) / f"rank{rank}.safetensors"
            engine = LongLiveEngine(args.model, OptimizationConfig.preset(args.preset))
            write_lora(path, engine.model.config, rank)
            began = time.perf_counter()
            kept = engine.keep_loras([UserLora(path)])
            keeping = time.perf_counter() - began
            for size in args.sizes:
                height, width = map(int, size.split("x"))
                engine._stream = engine.open_stream(height, width)
                engine.warmup()
                usual = [block(engine) for _ in range(8)][3:]
                blocks, changes = slide(engine, path)
                row = {"table": "lora_slider", "preset": args.preset, "size": size, "rank": rank}
                row |= {"kept_gib": round(kept / 2**30, 2), "keep_s": round(keeping, 2)}
                row |= {"kept_on": engine._unmerged.device.type if engine._unmerged else "nothing"}
                for name, times in (("usual_ms", usual), ("slide_ms", blocks), ("set_loras_ms", changes)):
                    row[name] = {"median": round(1e3 * statistics.median(times), 1), "max": round(1e3 * max(times), 1)}
                row["longest_by_usual"] = round(max(blocks) / statistics.median(usual), 2)
                rows.append(row)
                print(json.dumps(row), flush=True)
            del engine
    if args.json:
        args.json.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
