"""``bench``: measure the operators, a block, the error; one JSON object for machines, a table for people."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from ..config import PRESETS, OptimizationConfig, preset_name
from .files import Force, check_file, say_written, write_json
from .loading import Height, LowMemory, MemoryLimit, TextPrecision, TextResidence, Width, console, load_engine, results

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure operators, blocks and errors.")
Json = Annotated[Path | None, typer.Option("--json", help="Write the results here.")]
Model = Annotated[str, typer.Option(help="Model folder, ORG/NAME of the hub, or 'tiny'.")]
Device = Annotated[str | None, typer.Option(help="cuda or cpu.")]
Pixels = Annotated[int, typer.Option(help="A multiple of 16.")]
Preset = Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")]


@app.command()
def kernels(
    names: Annotated[list[str] | None, typer.Argument(metavar="[OP]...", help="Operators; none means all.")] = None,
    json_path: Json = None,
    force: Force = False,
) -> None:
    """Microseconds of each operator and backend, and its share of the ceilings measured in the same run."""
    check_file("--json", json_path, force)
    from ..engine.devices import Devices
    from ..kernels.bench.runner import run

    Devices()  # raises for a GPU that is not supported
    run(names, str(json_path) if json_path else None)
    if json_path:
        say_written(json_path)


@app.command()
def block(
    model: Model = "tiny",
    preset: Preset = "balanced",
    height: Pixels = 480,
    width: Pixels = 832,
    low_memory: LowMemory = None,
    memory_limit: MemoryLimit = None,
    text_precision: TextPrecision = "auto",
    text_residence: TextResidence = "auto",
    blocks: Annotated[int, typer.Option(min=1, help="Steady blocks to measure.")] = 50,
    baseline_blocks: Annotated[int, typer.Option(min=0, help="Blocks of the baseline; 0 leaves it out.")] = 5,
    device: Device = None,
    json_path: Json = None,
    force: Force = False,
) -> None:
    """Milliseconds of a steady block by stage, of a prompt switch, and of the baseline in the same run."""
    check_file("--json", json_path, force)
    from ..bench.block import run

    config = OptimizationConfig.preset(
        preset_name(preset),
        height=height,
        width=width,
        low_memory=low_memory,
        memory_limit_gib=memory_limit,
        text_precision=text_precision,
        text_residence=text_residence,
    )
    engine = load_engine(model, config, device)
    with _measuring() as tell:
        row = run(engine, blocks, baseline_blocks, tell)
    _show(f"{height}x{width}, {preset}", row, json_path)


@app.command()
def vae(
    model: Model = "tiny",
    height: Pixels = 480,
    width: Pixels = 832,
    blocks: Annotated[int, typer.Option(min=1, help="Calls to measure.")] = 20,
    device: Device = None,
    json_path: Json = None,
    force: Force = False,
) -> None:
    """Milliseconds to decode a block, one latent, and to encode a block's frames."""
    check_file("--json", json_path, force)
    from ..bench.vae import run

    engine = load_engine(model, OptimizationConfig(height=height, width=width), device)
    with _measuring() as tell:
        tell(f"{blocks} calls of each kind")
        row = run(engine, blocks)
    _show(f"{height}x{width}, VAE", row, json_path)


@app.command()
def switch(
    model: Model = "tiny",
    preset: Preset = "balanced",
    height: Pixels = 480,
    width: Pixels = 832,
    switches: Annotated[int, typer.Option(min=1, help="Prompt switches to measure.")] = 20,
    device: Device = None,
    json_path: Json = None,
    force: Force = False,
) -> None:
    """Milliseconds from a call with a new prompt to its pixels, from a block boundary and from a random moment."""
    check_file("--json", json_path, force)
    from ..bench.block import measure_switches

    engine = load_engine(model, OptimizationConfig.preset(preset_name(preset), height=height, width=width), device)
    with _measuring() as tell:
        tell(f"{switches} prompt switches from a block's boundary, and {switches} from anywhere")
        engine.warmup()
        row = measure_switches(engine, switches, switches)
    _show(f"{height}x{width}, {preset}", row, json_path)


@app.command()
def quality(
    model: Model = "tiny",
    preset: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(PRESETS)}; without it all that run in 8 bits.", show_default=False),
    ] = None,
    height: Height = None,
    width: Width = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of latents.")] = 5,
    blocks: Annotated[
        int, typer.Option(min=1, help="Steady blocks of each of two prompts, in 8 bits and without.")
    ] = 8,
    by_part: Annotated[bool, typer.Option("--by-part", help="What 8 bits change by part and by layer.")] = False,
    prompts: Annotated[int, typer.Option(min=0, help="Of the built-in model, to be scored; 0 leaves that out.")] = 10,
    seconds: Annotated[float, typer.Option(min=2.0, help="Of video for each prompt.")] = 5.0,
    device: Device = None,
    json_path: Json = None,
    picture_path: Annotated[
        Path | None,
        typer.Option("--picture", help="Write a PNG here: frames without 8 bits, with, the difference times 8."),
    ] = None,
    force: Force = False,
) -> None:
    """Error of each forward, and of decoding, against float32: ours, ours in 8 bits and the baseline's; and PSNR of
    blocks in 8 bits, each made from the same past as one without. Of the built-in model also what its pictures show,
    for every preset, dtype and precision. Ends with status 1 where a bound is missed, which is then named."""
    check_file("--json", json_path, force)
    check_file("--picture", picture_path, force, ".png")
    names = [preset_name(preset)] if preset else [name for name in PRESETS if PRESETS[name]["precision"] != "bf16"]
    from ..bench import gate
    from ..tinyworld.pictures import write_png

    engine = load_engine(model, OptimizationConfig(height=height, width=width, positions="base"), device)
    height, width = engine.config.size
    with _measuring() as tell:
        report, picture = gate.run(engine, model, names, seeds, blocks, tell, by_part)
        tell("what pictures show")
        if scores := gate.scores(model, device, names, prompts, seconds):
            report["scores"] = scores
    report["failures"] = gate.failures(report)
    if picture_path and picture is not None:
        write_png(picture_path, picture)
        say_written(picture_path)
    _show_columns(f"{height}x{width}", report["presets"])
    _show("", {name: rows for name, rows in report.items() if name not in ("presets", "failures")}, None)
    write_json(json_path, report)
    for failure in report["failures"]:
        console.print(failure, style="red", soft_wrap=True)
    if report["failures"]:
        raise typer.Exit(1)


@contextlib.contextmanager
def _measuring() -> Iterator[Callable[[str], None]]:
    """Shows what is measured, and for how long by now."""
    columns = SpinnerColumn(), TextColumn("measuring {task.description}", markup=False), TimeElapsedColumn()
    # Rarely, as what draws it takes the time of what is measured.
    with Progress(*columns, console=console, transient=True, refresh_per_second=1) as bar:
        task = bar.add_task("", total=None)
        yield lambda what: bar.update(task, description=what)


def _show(title: str, row: dict, json_path: Path | None) -> None:
    table = Table(title=title or None, title_justify="left", show_header=False)
    for name, value in row.items():
        for part, number in value.items() if isinstance(value, dict) else ((None, value),):
            shown = ", ".join(f"{k} {_short(v)}" for k, v in number.items()) if isinstance(number, dict) else number
            table.add_row(name if part is None else f"{name}, {part}", _short(shown))
    results.print(table)
    write_json(json_path, row)


def _show_columns(title: str, rows: dict[str, dict]) -> None:
    """A column for each of ``rows``; figures that lie in a dictionary, below its name."""
    flat = {name: {} for name in rows}
    for name, row in rows.items():
        for figure, value in row.items():
            parts = value.items() if isinstance(value, dict) else ((None, value),)
            flat[name] |= {figure if part is None else f"{figure}, {part}": number for part, number in parts}
    table = Table(Column("", no_wrap=True), *rows, title=title, title_justify="left")
    for figure in dict.fromkeys(figure for row in flat.values() for figure in row):
        table.add_row(figure, *(_short(row.get(figure, "")) for row in flat.values()))
    results.print(table)


def _short(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
