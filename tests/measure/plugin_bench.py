"""The plugin as scope drives it, timed: ``python tests/measure/plugin_bench.py MODEL --height H --width W``.

scope itself is replaced by its double: the calls, their order, threads and parameters are scope's, its queues and its
encoder are not in the numbers.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.scope_double import scope_installed

FILL = 6  # blocks until the window is full and everything captured


def measure(model: str, height: int, width: int, blocks: int, switches: int) -> dict:
    """Seconds to load and to the first frames; frames a second; milliseconds from a new prompt to its first frames."""
    with scope_installed() as scope:
        pipeline_class = scope.discover("longlive-optimized")["longlive-optimized"]
        load, ok = _timed(
            lambda: scope.manager.load(pipeline_class, {"model_path": model, "height": height, "width": width})
        )
        if not ok:
            raise SystemExit(scope.manager.error)
        session = scope.manager.open({"prompts": "a lighthouse above a stormy sea"})
        first, _ = _timed(session.step)
        for _ in range(FILL):
            session.step()
        steady = [_timed(lambda: _frames(session)) for _ in range(blocks)]
        waits = []
        for i in range(switches):
            session.send({"prompts": f"a calm harbour, take {i}"})
            waits.append(_timed(lambda: _frames(session))[0])
            session.step()
        return {
            "load_s": load,
            "first_frames_s": first,
            "fps": sum(frames for _, frames in steady) / sum(seconds for seconds, _ in steady),
            "call_ms": 1e3 * statistics.median(seconds for seconds, _ in steady),
            "switch_ms": 1e3 * statistics.median(waits),
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
            "stats": scope.manager.pipeline._sessions._busy[session._thread].stats(),
        }


def _frames(session) -> int:
    """One call and, as scope does it before its tracks show them, the copy of its frames to the host."""
    session.step()
    return len(session.frames())


def _timed(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("model", help="a folder of weights, or tiny")
    arguments.add_argument("--height", type=int, default=320)
    arguments.add_argument("--width", type=int, default=576)
    arguments.add_argument("--blocks", type=int, default=50)
    arguments.add_argument("--switches", type=int, default=5)
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    result = measure(given.model, given.height, given.width, given.blocks, given.switches)
    print(json.dumps(result, indent=2))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2))
