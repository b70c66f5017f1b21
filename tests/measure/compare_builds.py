"""Two builds, turn by turn, on one GPU: is the new one slower or larger?

``python tests/measure/compare_builds.py OLD NEW --model DIR --out FILE.json``. OLD and NEW are folders that hold an
installed package (``pip install --no-deps --target FOLDER .``). Each run is a process of its own and uses the public
interface alone, so that old builds can be measured too: OLD, NEW, NEW, OLD and so on. Prints medians over the runs, the
ratio new / old, and the spread of the runs of one build.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SIZES = ((480, 832), (320, 576))
PROMPT = "a lighthouse above a stormy sea"


def measure(model: str, blocks: int) -> dict[str, float]:
    """Milliseconds and GiB of the build that is imported, at every size."""
    import torch

    from longlive_optimized import BlockRequest, LongLiveEngine

    started = time.perf_counter()
    engine, figures = LongLiveEngine(model), {}
    figures["load_s"] = time.perf_counter() - started
    for height, width in SIZES:
        torch.cuda.reset_peak_memory_stats()
        stream = engine.open_stream(height, width)
        row = {"warmup_s": engine.warmup(stream=stream)}
        for _ in range(6 + blocks):
            engine.generate_block(BlockRequest(PROMPT), stream)
        engine.synchronize()
        steady = engine.block_times(stream)[6:]
        row["block_ms"] = statistics.median(b.total for b in steady)
        row["block_p99_ms"] = sorted(b.total for b in steady)[int(0.99 * len(steady))]
        row["dit_ms"] = statistics.median(b.stages["denoise"] + b.stages["context"] for b in steady)
        row["vae_ms"] = statistics.median(b.stages["decode"] for b in steady)
        switches = []
        for i in range(7):
            started = time.perf_counter()
            engine.generate_block(BlockRequest(f"{PROMPT}, take {i}"), stream, first_latent_only=True)
            engine.synchronize()
            switches.append((time.perf_counter() - started) * 1e3)
            engine.rest_of_block(stream)
            engine.synchronize()
        row["switch_first_pixel_ms"] = statistics.median(switches)
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        figures |= {f"{height}x{width} {name}": value for name, value in row.items()}
        del stream
    return figures


def run(build: Path, model: str, blocks: int) -> dict[str, float]:
    """``measure`` in a process that imports from ``build``."""
    command = [sys.executable, "-P", __file__, "--measure", "--model", model, "--blocks", str(blocks)]
    path = os.pathsep.join([str(build), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{build}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("builds", nargs="*", type=Path, help="OLD NEW")
    parser.add_argument("--model", required=True)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", action="store_true", help="measure the build that can be imported, print JSON")
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.model, given.blocks)))
        return
    old, new = given.builds
    runs: dict[str, list[dict]] = {"old": [], "new": []}
    for i in range(given.rounds):
        for name, build in (("old", old), ("new", new))[:: -1 if i % 2 else 1]:
            runs[name].append(run(build, given.model, given.blocks))
    print(f"{'':34}{'old':>10}{'new':>10}{'new/old':>9}  spread of old, new")
    for figure in runs["old"][0]:
        values = {name: [row[figure] for row in rows] for name, rows in runs.items()}
        old_ms, new_ms = (statistics.median(values[name]) for name in ("old", "new"))
        spread = ", ".join(f"{(max(v) - min(v)) / statistics.median(v):.1%}" for v in values.values())
        print(f"{figure:34}{old_ms:10.2f}{new_ms:10.2f}{new_ms / old_ms:9.3f}  {spread}")
    if given.out:
        given.out.write_text(json.dumps(runs, indent=2) + "\n")


if __name__ == "__main__":
    main()
