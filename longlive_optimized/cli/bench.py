"""``bench``: measure the operators, a block, the error; one JSON object for machines, a table for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..config import PRESETS, OptimizationConfig, preset_name
from ..weights.locate import TINY
from .files import Force, check_file, say_written, write_json
from .loading import Height, Width, console, load_engine, results

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure operators, blocks and errors.")
Json = Annotated[Path | None, typer.Option("--json", help="Write the results here.")]
Model = Annotated[str, typer.Option(help="Model folder, or 'tiny'.")]
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
    from ..kernels.bench.runner import run

    run(names, str(json_path) if json_path else None)
    if json_path:
        say_written(json_path)


@app.command()
def block(
    model: Model = "tiny",
    preset: Preset = "balanced",
    height: Pixels = 480,
    width: Pixels = 832,
    blocks: Annotated[int, typer.Option(min=1, help="Steady blocks to measure.")] = 50,
    baseline_blocks: Annotated[int, typer.Option(min=0, help="Blocks of the baseline; 0 leaves it out.")] = 5,
    device: Device = None,
    json_path: Json = None,
    force: Force = False,
) -> None:
    """Milliseconds of a steady block by stage, of a prompt switch, and of the baseline in the same run."""
    check_file("--json", json_path, force)
    from ..bench.block import run

    engine = load_engine(model, OptimizationConfig.preset(preset_name(preset), height=height, width=width), device)
    _show(f"{height}x{width}, {preset}", run(engine, blocks, baseline_blocks), json_path)


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
    _show(f"{height}x{width}, VAE", run(engine, blocks), json_path)


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
    engine.warmup()
    _show(f"{height}x{width}, {preset}", measure_switches(engine, switches, switches), json_path)


@app.command()
def quality(
    model: Model = "tiny",
    preset: Preset = "balanced",
    height: Height = None,
    width: Width = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of latents.")] = 5,
    prompts: Annotated[int, typer.Option(min=0, help="Of the built-in model, to be scored; 0 leaves that out.")] = 10,
    seconds: Annotated[float, typer.Option(min=2.0, help="Of video for each prompt.")] = 5.0,
    device: Device = None,
    json_path: Json = None,
    force: Force = False,
) -> None:
    """Error of each forward, and of decoding, against float32: ours beside the baseline's. Of the built-in model
    also what its pictures show, for every preset and dtype; ends with status 1 where that is too little."""
    check_file("--json", json_path, force)
    from ..bench import score
    from ..bench.quality import run

    config = OptimizationConfig.preset(preset_name(preset), height=height, width=width, positions="base")
    engine = load_engine(model, config, device)
    height, width = engine.config.size
    row = run(engine, seeds)
    scores = score.run(device, prompts, seconds) if model == TINY and prompts else {}
    _show(f"{height}x{width}, {preset}", row | {"scores": scores} if scores else row, json_path)
    if failed := score.failures(scores):
        console.print(f"under {score.WANTED:.0%} of the prompts are shown by {', '.join(failed)}", style="red")
        raise typer.Exit(1)


def _show(title: str, row: dict, json_path: Path | None) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in row.items():
        for part, number in value.items() if isinstance(value, dict) else ((None, value),):
            shown = ", ".join(f"{k} {_short(v)}" for k, v in number.items()) if isinstance(number, dict) else number
            table.add_row(name if part is None else f"{name}, {part}", _short(shown))
    results.print(table)
    write_json(json_path, row)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
