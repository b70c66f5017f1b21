"""What a video took, in numbers: for ``generate --json``, and as a table."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from .loading import results

if TYPE_CHECKING:
    from ..engine.engine import LongLiveEngine
    from ..engine.timing import BlockTimes


def report_of(engine: LongLiveEngine, preset: str, warmup: float | None, wall: float) -> dict:
    """What JSON can say of the engine's stream. warmup: seconds, None where there was none; wall: seconds that all
    blocks took and the file's writing."""
    import torch

    blocks = engine.block_times()
    cuda = engine.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(engine.device) if cuda else "cpu",
        "torch": torch.__version__,
        "ranks": engine.devices.ranks.count,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "precision": engine.stream.precision,
        "fallback_blocks": engine.stream.fallback_blocks,
        "vae_precision": engine.codec.precision,
        "vae_saturated": engine.codec.saturated,
        "text_precision": engine.text.precision,
        "text_residence": engine.text.residence,
        "preset": preset,
        "config": dataclasses.asdict(engine.config),
        "load_seconds": engine.load_seconds,
        "warmup_seconds": warmup,
        "wall_seconds": wall,
        "peak_gpu_bytes": sum(map(torch.cuda.max_memory_allocated, engine.devices.gpus)) if cuda else None,
        "async_vae_active": engine.devices.async_vae,
        "prompt_cache": {"hits": engine.prompts.hits, "misses": engine.prompts.misses},
        "summary": summarise(blocks),
        "blocks": [dataclasses.asdict(block) for block in blocks],
    }


def summarise(blocks: list[BlockTimes]) -> dict:
    """Medians in milliseconds of blocks without a prompt switch; the first block, which is shorter, is left out."""
    steady = [b for b in blocks[1:] if "text" not in b.stages] or blocks
    block_ms = statistics.median(b.interval for b in steady)
    frames = statistics.median(b.frames for b in steady)
    stages = sorted({name for b in steady for name in b.stages})
    return {
        "blocks": len(steady),
        "block_ms": block_ms,
        "frame_ms": block_ms / frames,
        "fps": 1e3 * frames / block_ms,
        "stages_ms": {name: statistics.median(b.stages.get(name, 0.0) for b in steady) for name in stages},
    }


def print_report(report: dict, out: Path, switched: Set[int]) -> None:
    """The table of a report. switched: the blocks that begin a prompt; others compute the window anew for LoRAs, or as
    a transition ends."""
    summary = report["summary"]
    table = Table(title=f"{out}: {report['device']}, {report['precision']}, {report['preset']}", title_justify="left")
    table.add_column("median of steady blocks")
    table.add_column("ms", justify="right")
    for name, ms in summary["stages_ms"].items():
        table.add_row(name, f"{ms:.1f}")
    table.add_row("block", f"{summary['block_ms']:.1f}")
    table.add_row("pixel frame", f"{summary['frame_ms']:.1f}  ({summary['fps']:.1f} fps)")
    for block in report["blocks"]:
        if block["index"] and "recache" in block["stages"]:
            why = "prompt switch" if block["index"] in switched else "recache"
            table.add_row(f"block {block['index']}, {why}", f"{block['total']:.1f}")
    results.print(table)
