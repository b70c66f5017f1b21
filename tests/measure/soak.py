"""Frames while other threads switch prompts and presets and reset: ``python tests/measure/soak.py --minutes 10``."""

import argparse
import random
import resource
import threading
import time

import torch

from longlive_optimized.config import PRESETS
from longlive_optimized.demo.scope_integration import LatencyStats, OptimizedScopePipeline, ScopeOptimizationConfig

PROMPTS = ("a fox", "a boat on a lake", "a storm", (("a fox", 1.0), ("a storm", 2.0)))


def soak(pipeline: OptimizedScopePipeline, seconds: float) -> dict:
    """Make frames for so long, with three threads at the pipeline. Raises the first error of any of them."""
    stop, errors = threading.Event(), []
    dice = random.Random(0)

    def keep(action, most: float) -> threading.Thread:
        def work() -> None:
            try:
                while not stop.is_set():
                    action()
                    time.sleep(dice.uniform(0, most))
            except BaseException as error:
                errors.append(error)

        return threading.Thread(target=work)

    def ask() -> None:
        LatencyStats(**pipeline.get_latency_stats())
        if dice.random() < 0.02:
            pipeline.reset()

    threads = [
        keep(lambda: pipeline.switch_prompt(dice.choice(PROMPTS)), 0.5),
        keep(lambda: pipeline.set_optimization_preset(dice.choice([*PRESETS])), 1.0),
        keep(ask, 0.1),
    ]
    for thread in threads:
        thread.start()
    end, frames, sizes = time.monotonic() + seconds, 0, []
    try:
        while time.monotonic() < end and not errors:
            frame = pipeline.generate_frame(dice.choice(PROMPTS))
            assert frame.shape[0] == 3 and 0 <= frame.min() and frame.max() <= 1
            frames += 1
            if frames % 500 == 0:
                sizes.append(resident_mib())
                print(f"{frames} frames, {sizes[-1]:.0f} MiB", flush=True)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return {"frames": frames, "resident_mib": sizes}


def resident_mib() -> float:
    """Resident memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    torch.set_num_threads(1)
    config = ScopeOptimizationConfig.preset_balanced(height=32, width=48)
    print(soak(OptimizedScopePipeline("tiny", config, "cpu"), 60 * parser.parse_args().minutes))
