"""``generate``: a prompt, and prompts to switch to, become an mp4."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..config import PRESETS, OptimizationConfig, preset_name
from ..text.clean import clean
from ..video_time import BLOCK_PIXEL_FRAMES, TRAINED_FPS
from ..weights.locate import native_size
from .files import Force, check_file, same_file, say_written, write_json
from .inputs import (
    ControlScale,
    ControlVideo,
    FirstFrame,
    InputOptions,
    Inputs,
    LastFrame,
    Mask,
    NoiseScale,
    Reference,
    Video,
    open_inputs,
)
from .loading import (
    Device,
    Height,
    KeepTextInt8,
    LowMemory,
    MemoryLimit,
    TextDevice,
    TextPrecision,
    TextResidence,
    VaeDevice,
    Width,
    console,
    load_engine,
    results,
)
from .ranks import Gpus, join_ranks, read_gpus
from .video import Mp4Writer, Unwritten

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..engine.engine import LongLiveEngine
    from ..engine.timing import BlockTimes

LENGTH = 5.0  # seconds, where nothing says another
LONGEST_SIDE = 16128  # pixels, of square H.264 pictures by x264 and FFmpeg
_MINUTES, _SECONDS = r"(?:(?:(\d+):)?(\d+):(?=[0-5]\d[.:]))?", r"(\d+(?:\.\d*)?|\.\d+)"
_SWITCH = re.compile(rf"\A{_MINUTES}{_SECONDS}:(?!\d+(?:\.\d*)?:)(.*)\Z", re.DOTALL)


class Switch(NamedTuple):
    """From the first block that begins at or after ``second`` of the video, the prompt is ``text``."""

    second: float
    text: str


def parse_switch(text: str) -> Switch:
    """Read ``TIME:TEXT``, where the time is seconds, ``M:SS`` or ``H:MM:SS``. Raises ValueError."""
    try:
        hours, minutes, seconds, prompt = _SWITCH.findall(text)[0]
        clean(prompt)  # raises where there is nothing to show
    except (IndexError, ValueError):
        wanted = "--switch must be SECONDS:TEXT or M:SS:TEXT, such as 2.5:'a red fox' or 0:02:'a red fox'"
        raise ValueError(f"{wanted}, got {text!r}") from None
    return Switch(3600 * int(hours or 0) + 60 * int(minutes or 0) + float(seconds), prompt)


def generate(
    prompt: Annotated[str, typer.Option(help="What to show.")],
    out: Annotated[Path, typer.Option(help="The mp4 to write.")],
    model: Annotated[str, typer.Option(help="Model folder, or 'tiny' for the built-in model.")] = "tiny",
    switch: Annotated[
        list[str] | None, typer.Option(metavar="SECONDS:TEXT", help="Also M:SS:TEXT; as often as wanted.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help=f"Length of the video at {TRAINED_FPS} frames a second; that of --video, --control, or {LENGTH:g}.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same video on one device.")] = 42,
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "balanced",
    height: Height = None,
    width: Width = None,
    video: Video = None,
    noise_scale: NoiseScale = None,
    control: ControlVideo = None,
    mask: Mask = None,
    reference: Reference = None,
    first_frame: FirstFrame = None,
    last_frame: LastFrame = None,
    control_scale: ControlScale = None,
    low_memory: LowMemory = None,
    memory_limit: MemoryLimit = None,
    text_precision: TextPrecision = "auto",
    text_residence: TextResidence = "auto",
    keep_text_int8: KeepTextInt8 = False,
    enlarge: Annotated[int, typer.Option(help="Write pictures so many times as large.", min=1)] = 1,
    overlay: Annotated[bool, typer.Option("--overlay", help="Draw the latency panel into the video.")] = False,
    device: Device = None,
    vae_device: VaeDevice = None,
    text_device: TextDevice = None,
    gpus: Gpus = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write statistics here.")] = None,
    force: Force = False,
) -> None:
    """Make a video."""
    numbers = read_gpus(gpus, device)
    switches = sorted(map(parse_switch, switch or ()))
    if seconds is not None and not 0 < seconds < float("inf"):
        raise ValueError(f"--seconds must be positive, got {seconds}")
    clean(prompt)  # raises where there is nothing to show
    options = InputOptions(
        video=video,
        noise_scale=noise_scale,
        control=control,
        mask=mask,
        reference=tuple(reference or ()),
        first_frame=first_frame,
        last_frame=last_frame,
        control_scale=control_scale,
    )
    config = OptimizationConfig.preset(
        preset_name(preset),
        height=height,
        width=width,
        seed=seed,
        low_memory=low_memory,
        memory_limit_gib=memory_limit,
        text_precision=text_precision,
        text_residence=text_residence,
        keep_text_int8=keep_text_int8,
        control=options.steers,
    )
    height, width = config.sized(native_size(model)).size
    if enlarge * max(height, width) > LONGEST_SIDE:
        if enlarge == 1:
            raise ValueError(f"--height, --width: at most {LONGEST_SIDE} pixels fit into a video, got {height}x{width}")
        raise ValueError(f"--enlarge must leave pictures of at most {LONGEST_SIDE} pixels a side, got {enlarge}")
    for option, path in options.files:
        for name, target in (("--out", out), ("--json", json_path)):
            if target and same_file(path, target):
                raise ValueError(f"{name} must be another file than {option}, got {str(target)!r} for both")
    given = open_inputs(options, (height, width))
    check_file("--out", out, force, ".mp4")
    if json_path and same_file(json_path, out):
        raise ValueError(f"--json must be another file than --out, got {str(json_path)!r} for both")
    check_file("--json", json_path, force)
    ranks = join_ranks(numbers, device)
    engine = load_engine(model, config, device, vae_device, text_device, ranks)
    warmup = _warm_up(engine)
    started = time.perf_counter()
    frames, stopped = _frames(seconds or given.length or LENGTH, given), False
    first = ranks.rank == 0
    written = Mp4Writer(out, height, width, enlarge) if first else Unwritten()
    try:
        with written, ranks:
            try:
                _write(engine, prompt, switches, frames, written, overlay, given)
            except KeyboardInterrupt:
                stopped = True
    except ConnectionError:  # of ranks
        raise
    except OSError as error:  # a file that was not finished cannot be played
        written.frames = 0
        raise OSError(f"--out: {out} cannot be written: {error.strerror or error}") from error
    finally:
        if first and not written.frames:
            Path(os.path.realpath(out)).unlink(missing_ok=True)
    wall = time.perf_counter() - started
    if first and written.frames:
        report = _report(engine, preset, warmup, wall) | {"inputs": options.as_json()}
        _print(report, out)
        shown = f"{written.frames / TRAINED_FPS:.3g} s of {enlarge * width}x{enlarge * height}"
        say_written(out, f", {shown}, {'stopped' if stopped else 'made'} after {wall:.1f} s")
        write_json(json_path, report)
    if stopped:
        raise typer.Exit(130)


def _frames(seconds: float, given: Inputs) -> int:
    """How many to make; whole blocks where the last one ends with a picture."""
    frames = round(seconds * TRAINED_FPS) or 1
    if given.last is None:
        return frames
    return (
        given.first_frames + max(0, math.ceil((frames - given.first_frames) / BLOCK_PIXEL_FRAMES)) * BLOCK_PIXEL_FRAMES
    )


def _warm_up(engine: LongLiveEngine) -> float | None:
    """Seconds that it took, on a GPU."""
    import torch

    if engine.device.type != "cuda":
        return None
    warmup = engine.warmup()
    for device in _gpus(engine):
        torch.cuda.reset_peak_memory_stats(device)
    console.print(f"warmed up in {warmup:.1f} s")
    return warmup


def _gpus(engine: LongLiveEngine) -> list[torch.device]:
    return [device for device in engine.devices.all if device.type == "cuda"]


def _write(
    engine: LongLiveEngine,
    prompt: str,
    switches: Sequence[Switch],
    frames: int,
    video: Mp4Writer | Unwritten,
    overlay: bool,
    given: Inputs,
) -> None:
    from ..engine.host_copy import HostCopy

    count, speed = TextColumn("{task.completed}/{task.total} frames"), TextColumn("{task.fields[speed]}")
    columns = TextColumn("generating"), BarColumn(), count, TimeRemainingColumn(), speed
    pending, copies = list(switches), deque()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=frames, speed="")

        def write() -> None:
            video.write(copies.popleft().frames())
            last = engine.block_times()[-1]
            fps = 1e3 * last.frames / last.interval
            bar.update(task, completed=video.frames, speed=f"{last.interval:.0f} ms/block, {fps:.1f} fps")

        try:
            for block in _blocks(engine, prompt, pending, frames, overlay, given):
                copies.append(HostCopy(block))
                if len(copies) > 1:  # one block late: this one is made, and decoded, while that one is written
                    write()
        except KeyboardInterrupt:
            while copies:
                write()
            raise
        write()
    for late in pending:
        console.print(
            f"the video ended before the switch at {late.second:g} s to {late.text!r}", style="yellow", soft_wrap=True
        )


def _blocks(
    engine: LongLiveEngine, prompt: str, switches: list[Switch], frames: int, overlay: bool, given: Inputs
) -> Iterator[Tensor]:
    """Blocks of so many frames in all, none of which is waited for; takes the switches that it comes to."""
    from ..demo.scope_integration.overlay import create_latency_overlay
    from ..engine.latency import LatencyMeter
    from ..engine.request import BlockRequest

    meter, panel, made = LatencyMeter(engine), create_latency_overlay() if overlay else None, 0
    while made < frames:
        while switches and switches[0].second * TRAINED_FPS <= made:
            prompt = switches.pop(0).text
        coming = BLOCK_PIXEL_FRAMES if made else given.first_frames
        fields = given.fields(made, is_last=made + coming >= frames)
        block = engine.generate_block(BlockRequest(prompt, **fields))
        if panel:
            panel.apply(block, meter.stats(frame_count=made))
        block = block[: frames - made]
        made += len(block)
        yield block


def _report(engine: LongLiveEngine, preset: str, warmup: float | None, wall: float) -> dict:
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
        "peak_gpu_bytes": sum(map(torch.cuda.max_memory_allocated, _gpus(engine))) if cuda else None,
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


def _print(report: dict, out: Path) -> None:
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
            table.add_row(f"block {block['index']}, prompt switch", f"{block['total']:.1f}")
    results.print(table)
