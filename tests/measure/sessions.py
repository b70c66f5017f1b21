"""How many sessions a device makes at once: ``python tests/measure/sessions.py MODEL --json FILE``.

Sessions are streams of one engine, served by the server's own scheduler at 16 frames a second; whoever watches takes
each frame when it is due and drops it, without WebRTC. For each size and preset: one session alone; as many as
admission would let in by what the one took, and one more; from there on one more as long as all are shown as promised,
or one less until they are, so that the number found does not depend on what admission thinks. A row has the 99th
percentile of the intervals between frames over all sessions and of the worst one, frames a second, whether they are
shown as promised, and how many admission would let in now, ``let_in``. The frames of all that are let in at first are
compared, bit for bit, with those that each gives alone. Exits with 1 where they differ.

What does not fit into ``--budget`` seconds is left out, and named.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from longlive_optimized.config import PRESETS
from longlive_optimized.demo.scope_integration import OptimizedScopePipeline, ScopeOptimizationConfig
from longlive_optimized.demo.scope_integration.prompt_box import Prompt
from longlive_optimized.demo.server.admission import FULL, Admission, Kind, share
from longlive_optimized.demo.server.feed import Feed
from longlive_optimized.demo.server.source import EngineSource
from longlive_optimized.demo.server.worker import Worker
from longlive_optimized.engine.timing import percentile
from longlive_optimized.keywords import PresetName
from longlive_optimized.video_time import BLOCK_PIXEL_FRAMES, FIRST_PIXEL_FRAMES, TRAINED_FPS
from support.sink import Sink, fingerprint

SIZES = {"tiny": ("64x96", "32x48"), "1.3b": ("480x832", "320x576")}
PROMPT = "a lighthouse above a stormy sea, number {}"
LIMIT_MS = 120.0  # the longest 99th percentile of intervals at which a session counts as shown
SETTLE_BLOCKS = 4  # that each session has shown before intervals count; so many are compared
MOST = 64  # sessions that are tried


class Setting(NamedTuple):
    """What all sessions of a row have in common."""

    height: int
    width: int
    preset: str

    def config(self, base: ScopeOptimizationConfig, number: int) -> ScopeOptimizationConfig:
        """A session's config: a seed of its own, in the model's time."""
        fields = {**base.preset_fields(self.preset), "playback_speed": 1.0}
        own = {"height": self.height, "width": self.width, "seed": 1000 * number}
        return ScopeOptimizationConfig(**{**vars(base), **fields, **own})


class Bench:
    """An engine with its worker, and the time that is left."""

    def __init__(
        self, model: str, device: str | None, preset: PresetName, sizes: list[str], budget: float, seconds: float
    ):
        self._ends, self._seconds = time.monotonic() + budget, seconds
        height, width = map(int, max(sizes, key=lambda size: _pixels(size)).split("x"))
        config = ScopeOptimizationConfig.preset(preset, height=height, width=width)
        self.worker = Worker(lambda progress: EngineSource(model, config, device, progress))
        self.worker.start()
        while self.worker.status.phase != "ready":
            if self.worker.error:
                raise self.worker.error
            time.sleep(0.01)

    @property
    def left(self) -> float:
        """Seconds."""
        return self._ends - time.monotonic()

    def rows(self, setting: Setting) -> list[dict]:
        """One session, as many as are let in, one more, and on to the most that are shown as promised."""
        rows = {1: self.run(setting, 1, self._seconds / 2)}
        count = self.let_in(setting)
        wanted = [sessions for sessions in (count, count + 1) if sessions != 1]
        while wanted:
            sessions = wanted.pop(0)
            if self.left < 3 * self._seconds + 3:
                rows[sessions] = self.row(setting, sessions) | {"left_out": True}
                break
            rows[sessions] = self.run(setting, sessions, self._seconds, compare=sessions == count)
            print(json.dumps(rows[sessions]), flush=True)
            wanted = wanted or [one for one in further(rows) if one <= MOST]
        return [rows[sessions] for sessions in sorted(rows)]

    def let_in(self, setting: Setting) -> int:
        """Sessions that admission lets in, by what those of this kind have taken."""
        config = setting.config(self.worker.source.config, 0)
        one, count = share(self.worker.costs.of(Kind.of(config)), config.model_fps), 0
        while count < MOST and Admission("auto").fits([one] * count, one):
            count += 1
        return count

    def run(self, setting: Setting, sessions: int, seconds: float, compare: bool = True) -> dict:
        """A row."""
        base = self.worker.source.config
        configs = [setting.config(base, number) for number in range(sessions)]
        feeds = [_feed(self.worker, config, number) for number, config in enumerate(configs)]
        frames = FIRST_PIXEL_FRAMES + (SETTLE_BLOCKS - 1) * BLOCK_PIXEL_FRAMES
        with contextlib.ExitStack() as stack:
            sinks = [stack.enter_context(Sink(feed)) for feed in feeds]
            for sink in sinks:
                sink.wait(frames, 600)
            while not all(feed.pace.settled for feed in feeds):
                time.sleep(0.01)
            began = time.monotonic()
            time.sleep(seconds)
            intervals = [sink.intervals(began) for sink in sinks]
            blocks = [feed.stats["block_ms"] for feed in feeds]
            precision = feeds[0].stats["precision"]
        for feed in feeds:
            self.worker.remove(feed)
        while any(feed.pipeline for feed in feeds):
            time.sleep(0.01)
        rates = [len(one) / sum(one) if one else 0.0 for one in intervals]
        p99 = [1e3 * percentile(one, 0.99) if one else float("inf") for one in intervals]
        together = [interval for one in intervals for interval in one]
        row = self.row(setting, sessions) | {
            "precision": precision,
            "block_ms": round(statistics.median(blocks), 1),
            "load": round(TRAINED_FPS * sum(blocks) / 1e3 / BLOCK_PIXEL_FRAMES, 3),
            "p99_ms": round(1e3 * percentile(together, 0.99), 1) if together else None,
            "worst_p99_ms": round(max(p99), 1) if all(intervals) else None,
            "fps": [round(min(rates), 2), round(max(rates), 2)],
            "as_promised": max(p99) <= LIMIT_MS and min(rates) > 0.97 * TRAINED_FPS,
            "let_in": self.let_in(setting),
        }
        if compare:
            engine = self.worker.source.engine
            row["as_alone"] = all(
                sink.prints[:frames] == _alone(engine, config, number)
                for number, (sink, config) in enumerate(zip(sinks, configs, strict=True))
            )
        return row

    @staticmethod
    def row(setting: Setting, sessions: int) -> dict:
        """What names a row."""
        return {
            "table": "sessions",
            "size": f"{setting.height}×{setting.width}",
            "preset": setting.preset,
            "sessions": sessions,
        }


def further(rows: dict[int, dict]) -> list[int]:
    """The next number of sessions to try, if the most that are shown as promised is not found yet."""
    good = [sessions for sessions, row in rows.items() if row["as_promised"]]
    bad = [sessions for sessions, row in rows.items() if not row["as_promised"]]
    if not bad:
        return [max(good) + 1]
    return [min(bad) - 1] if min(bad) - 1 > max([0, *(one for one in good if one < min(bad))]) else []


def _feed(worker: Worker, config: ScopeOptimizationConfig, number: int) -> Feed:
    prompt = Prompt(PROMPT.format(number), "linear", 1)
    feed = Feed(worker, config, prompt, lambda status: None, lambda block: None)
    worker.add(feed)
    return feed


def _alone(engine, config: ScopeOptimizationConfig, number: int) -> list[int]:
    """The first frames of a session that nobody shares the device with."""
    pipeline = OptimizedScopePipeline.on(engine, config, warm=True)
    blocks = [pipeline.generate_block(PROMPT.format(number)).cpu().numpy() for _ in range(SETTLE_BLOCKS)]
    return [fingerprint(frame) for block in blocks for frame in block]


def _pixels(size: str) -> int:
    height, width = map(int, size.split("x"))
    return height * width


def measure(
    model: str,
    device: str | None = None,
    sizes: list[str] | None = None,
    presets: list[str] | None = None,
    seconds: float = 3.0,
    budget: float = 100.0,
    engine_preset: PresetName = "balanced",
) -> dict:
    """The report: rows, and the most sessions of each size and preset that were shown as promised."""
    began = time.monotonic()
    sizes = sizes or [*SIZES["tiny" if model == "tiny" else "1.3b"]]
    bench = Bench(model, device, engine_preset, sizes, budget, seconds)
    try:
        rows = []
        for preset in presets or ["balanced", "speed"]:
            for size in sizes:
                setting = Setting(*map(int, size.split("x")), preset)
                if bench.left < 2 * seconds + 3:
                    rows.append(bench.row(setting, 1) | {"left_out": True})
                else:
                    rows += bench.rows(setting)
        worker = bench.worker
        where = {"device": worker.device, "torch": torch.__version__}
    finally:
        bench.worker.stop(30)
    most: dict[str, int] = {}
    for row in rows:
        if row.get("as_promised"):
            name = f"{row['size']} {row['preset']}"
            most[name] = max(most.get(name, 0), row["sessions"])
    limits = {"promised_fps": TRAINED_FPS, "p99_limit_ms": LIMIT_MS, "full": FULL}
    return (
        where
        | limits
        | {
            "model": model,
            "engine_preset": engine_preset,
            "seconds": round(time.monotonic() - began, 1),
            "most": most,
            "rows": rows,
        }
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model's folder, or tiny")
    parser.add_argument("--device", help="cuda or cpu; the default is CUDA where there is one")
    parser.add_argument("--sizes", nargs="+", metavar="HxW")
    parser.add_argument("--presets", nargs="+", choices=[*PRESETS], metavar="PRESET")
    parser.add_argument("--seconds", type=float, default=3.0, help="that intervals are taken over, of each row")
    parser.add_argument("--budget", type=float, default=100.0, help="seconds in all")
    parser.add_argument(
        "--engine-preset", default="balanced", help="speed, turbo and ultra have the VAE in 8 bits, too"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    report = measure(
        given.model, given.device, given.sizes, given.presets, given.seconds, given.budget, given.engine_preset
    )
    print(json.dumps({name: report[name] for name in report if name != "rows"}, indent=2, ensure_ascii=False))
    if given.json:
        given.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    sys.exit(not all(row.get("as_alone", True) for row in report["rows"]))
