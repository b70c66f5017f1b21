"""A stream's memory: ``python tests/measure/memory.py MODEL --json FILE``.

In turn ``balanced``; ``speed``, which has int8 copies beside its weights; ``speed`` with ``low_memory``; each in an
engine of its own. For each, GiB that tensors take (allocated) and that torch has taken from the device for them
(reserved), at most and in the end, of its warm-up, of 5 blocks and of a prompt switch; and what stays, part by part. On
a CPU the parts alone. Writes the rows of a file of docs/measurements.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from longlive_optimized import BlockRequest, LongLiveEngine
from longlive_optimized.config import HEIGHT, WIDTH, OptimizationConfig
from longlive_optimized.engine.stream import Stream
from longlive_optimized.keywords import PresetName

PROMPT = "a lighthouse above a stormy sea"
MODES: dict[str, tuple[PresetName, bool]] = {
    "balanced": ("balanced", False),
    "speed": ("speed", False),
    "speed, low_memory": ("speed", True),
}
GIB = 2**30


def measure(engine: LongLiveEngine, mode: str, size: tuple[int, int]) -> dict:
    """A row: a stream from its warm-up on."""
    preset, _ = MODES[mode]
    cuda = engine.device.type == "cuda"
    stages = {}

    def stage(name: str, work: Callable[[], object]) -> None:
        engine.synchronize()
        if cuda:
            torch.cuda.reset_peak_memory_stats(engine.device)
        started = time.perf_counter()
        work()
        engine.synchronize()
        stages[name] = {"s": round(time.perf_counter() - started, 2)} | (taken(engine.device) if cuda else {})

    stream = engine.open_stream(*size, **OptimizationConfig.preset_fields(preset))
    stage("warm_up", lambda: engine.warmup(stream=stream))
    stage("blocks", lambda: [engine.generate_block(BlockRequest(PROMPT), stream) for _ in range(5)])
    stage("prompt_switch", lambda: engine.generate_block(BlockRequest(f"{PROMPT} at night"), stream))
    row = {"table": "memory", "mode": mode, "size": f"{size[0]}×{size[1]}", "precision": stream.precision}
    if cuda:
        row["peak_gib"] = max(stage["allocated_peak_gib"] for stage in stages.values())
        row["reserved_peak_gib"] = max(stage["reserved_peak_gib"] for stage in stages.values())
        row["graphs_gib"] = round(stream.passes.graphs.capture_bytes / GIB, 3)
    return row | {"stages": stages, "parts_gib": parts(engine, stream)}


def taken(device: torch.device) -> dict[str, float]:
    """At most since the last reset, and now."""
    numbers = {
        "allocated_peak_gib": torch.cuda.max_memory_allocated(device),
        "allocated_gib": torch.cuda.memory_allocated(device),
        "reserved_peak_gib": torch.cuda.max_memory_reserved(device),
        "reserved_gib": torch.cuda.memory_reserved(device),
    }
    return {name: round(nbytes / GIB, 3) for name, nbytes in numbers.items()}


def parts(engine: LongLiveEngine, stream: Stream) -> dict[str, float]:
    """GiB on the device of what stays, each storage counted once, where it is named first."""
    model, seen = engine.model, set()
    owners = {
        "transformer, model's dtype": [*model.parameters()],
        "transformer, int8": [*model.buffers()],
        "ring": stream.ring,
        "passes: prompt's keys, noise, latents": stream.passes,
        "decoder": stream.decoder._side,
        "encoder": stream.encoder._side,
        "VAE": [vars(engine.codec), engine.vae],
        "text encoder": engine.text,
        "prompts": engine.prompts,
        "history": [stream.history, stream.sinks],
    }
    return {name: round(held(owner, engine.device, seen) / GIB, 4) for name, owner in owners.items()}


def held(owner: object, device: torch.device, seen: set) -> int:
    """Bytes on ``device`` of all tensors that can be reached from ``owner`` through objects of ours, and lists."""
    if isinstance(owner, torch.Tensor):
        storage = owner.untyped_storage()
        key = storage._cdata
        if owner.device != device or key in seen:
            return 0
        seen.add(key)
        return storage.nbytes()
    if id(owner) in seen or isinstance(owner, str | type):
        return 0
    seen.add(id(owner))
    if isinstance(owner, torch.nn.Module):
        inside: Iterable = [*owner.parameters(), *owner.buffers()]
    elif isinstance(owner, Mapping):
        inside = owner.values()
    elif isinstance(owner, list | tuple | set):
        inside = owner
    elif type(owner).__module__.startswith("longlive_optimized"):
        inside = vars(owner).values() if hasattr(owner, "__dict__") else ()
    else:
        return 0
    return sum(held(each, device, seen) for each in inside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--height", type=int, default=HEIGHT)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--json")
    options = parser.parse_args()
    rows, engine = [], None
    for mode, (preset, low_memory) in MODES.items():
        engine = None
        clear()
        engine = LongLiveEngine(options.model, OptimizationConfig.preset(preset, low_memory=low_memory))
        clear()
        rows.append(measure(engine, mode, (options.height, options.width)))
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1, ensure_ascii=False))


def clear() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
