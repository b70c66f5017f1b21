"""``generate``: a prompt, and prompts to switch to, become an mp4."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..config import PRESETS, OptimizationConfig
from ..demo.scope_integration.overlay import LatencyOverlay, create_latency_overlay
from ..engine.engine import LongLiveEngine
from ..engine.latency import LatencyMeter
from ..engine.request import BlockRequest
from ..engine.timing import BlockTimes
from ..video_time import TRAINED_FPS
from .loading import Height, Width, console, load_engine, picture_size, results
from .video import Mp4Writer, check_mp4


class Switch(NamedTuple):
    """From the first block that begins at or after ``second`` of the video, the prompt is ``text``."""

    second: float
    text: str


def parse_switch(text: str) -> Switch:
    """Read ``SECONDS:TEXT``. Raises ValueError."""
    second, colon, prompt = text.partition(":")
    try:
        at = float(second)
    except ValueError:
        at = -1.0
    if not colon or not 0 <= at < float("inf") or not prompt.strip():
        raise ValueError(f"--switch must be SECONDS:TEXT, such as 2.5:'a red fox', got {text!r}")
    return Switch(at, prompt)


def generate(
    prompt: Annotated[str, typer.Option(help="What to show.")],
    out: Annotated[Path, typer.Option(help="The mp4 to write.")],
    model: Annotated[str, typer.Option(help="Model folder, or 'tiny' for the built-in model.")] = "tiny",
    switch: Annotated[list[str] | None, typer.Option(help="SECONDS:TEXT, may be given several times.")] = None,
    seconds: Annotated[float, typer.Option(help=f"Length of the video at {TRAINED_FPS} frames a second.")] = 5.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same video on one device.")] = 42,
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "balanced",
    height: Height = None,
    width: Width = None,
    enlarge: Annotated[int, typer.Option(help="Write pictures so many times as large.", min=1)] = 1,
    overlay: Annotated[bool, typer.Option("--overlay", help="Draw the latency panel into the video.")] = False,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; the default is CUDA where there is one.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write statistics here.")] = None,
) -> None:
    """Make a video."""
    switches = sorted(map(parse_switch, switch or ()))
    if not 0 < seconds < float("inf"):
        raise ValueError(f"--seconds must be positive, got {seconds}")
    BlockRequest(prompt)  # an empty prompt is refused before anything is loaded
    height, width = picture_size(model, height, width)
    check_mp4(out)
    config = OptimizationConfig.preset(preset, height=height, width=width, seed=seed)
    engine = load_engine(model, config, device)
    warmup = None
    if engine.device.type == "cuda":
        warmup = engine.warmup()
        torch.cuda.reset_peak_memory_stats(engine.device)
        console.print(f"warmed up in {warmup:.1f} s", highlight=False)
    started = time.perf_counter()
    panel = create_latency_overlay() if overlay else None
    with Mp4Writer(out, height, width, enlarge) as video:
        _write(engine, prompt, switches, round(seconds * TRAINED_FPS) or 1, video, panel)
    report = _report(engine, preset, warmup, time.perf_counter() - started)
    _print(report, out)
    if json_path:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(report, indent=2) + "\n")


def _write(
    engine: LongLiveEngine,
    prompt: str,
    switches: list[Switch],
    frames: int,
    video: Mp4Writer,
    panel: LatencyOverlay | None,
) -> None:
    meter = LatencyMeter(engine)
    count, speed = TextColumn("{task.completed}/{task.total} frames"), TextColumn("{task.fields[speed]}")
    columns = TextColumn("generating"), BarColumn(), count, TimeRemainingColumn(), speed
    pending = list(switches)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=frames, speed="")
        while video.frames < frames:
            while pending and pending[0].second * TRAINED_FPS <= video.frames:
                prompt = pending.pop(0).text
            block = engine.generate_block(BlockRequest(prompt))
            if panel:
                panel.apply(block, meter.stats(frame_count=video.frames))
            video.write(block[: frames - video.frames].cpu().numpy())
            last = engine.block_times()[-1]
            fps = 1e3 * last.frames / last.total
            bar.update(task, completed=video.frames, speed=f"{last.total:.0f} ms/block, {fps:.1f} fps")
    for late in pending:
        console.print(f"the video ended before the switch at {late.second:g} s to {late.text!r}", style="yellow")


def _report(engine: LongLiveEngine, preset: str, warmup: float | None, wall: float) -> dict:
    blocks = engine.block_times()
    cuda = engine.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(engine.device) if cuda else "cpu",
        "torch": torch.__version__,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "preset": preset,
        "config": dataclasses.asdict(engine.config),
        "load_seconds": engine.load_seconds,
        "warmup_seconds": warmup,
        "wall_seconds": wall,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated(engine.device) if cuda else None,
        "prompt_cache": {"hits": engine.prompts.hits, "misses": engine.prompts.misses},
        "summary": summarise(blocks),
        "blocks": [dataclasses.asdict(block) for block in blocks],
    }


def summarise(blocks: list[BlockTimes]) -> dict:
    """Medians in milliseconds of blocks without a prompt switch; the first block, which is shorter, is left out."""
    steady = [b for b in blocks[1:] if "text" not in b.stages] or blocks
    block_ms = statistics.median(b.total for b in steady)
    frames = statistics.median(b.frames for b in steady)
    stages = sorted({name for b in steady for name in b.stages})
    return {
        "blocks": len(steady),
        "block_ms": block_ms,
        "frame_ms": block_ms / frames,
        "fps": 1e3 * frames / block_ms,
        "stages_ms": {name: statistics.median(b.stages.get(name, 0.0) for b in steady) for name in stages},
    }


def _print(report: dict, out: Path) -> None:
    summary = report["summary"]
    table = Table(title=f"{out}: {report['device']}, {report['dtype']}, {report['preset']}", title_justify="left")
    table.add_column("median of steady blocks")
    table.add_column("ms", justify="right")
    for name, ms in summary["stages_ms"].items():
        table.add_row(name, f"{ms:.1f}")
    table.add_row("block", f"{summary['block_ms']:.1f}")
    table.add_row("pixel frame", f"{summary['frame_ms']:.1f}  ({summary['fps']:.1f} fps)")
    for block in report["blocks"]:
        if block["index"] and "recache" in block["stages"]:
            table.add_row(f"block {block['index']}, prompt switch", f"{block['total']:.1f}")
    results.print(table)
