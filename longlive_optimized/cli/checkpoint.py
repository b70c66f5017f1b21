"""``make-checkpoint``: a random checkpoint in LongLive's own layout, to measure and test with."""

from __future__ import annotations

import time
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .files import say_written
from .loading import console


class Config(StrEnum):
    tiny = "tiny"
    full = "1.3b"


class Text(StrEnum):
    full = "full"
    tiny = "tiny"


def make_checkpoint(
    directory: Annotated[Path, typer.Argument(help="A folder that does not exist yet, or is empty.")],
    config: Annotated[Config, typer.Option(help="Size of the network and the VAE.")] = Config.tiny,
    text: Annotated[Text | None, typer.Option(help="Size of the text encoder; full is 11 GB.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    control: Annotated[bool, typer.Option("--control", help="With a control module (VACE); 1.5 GB for 1.3b.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the checkpoint that is there.")] = False,
) -> None:
    """Write random weights in the published layout, with a tokenizer."""
    began = time.perf_counter()
    from ..weights.random_checkpoint import make_checkpoint as make

    columns = TextColumn("writing {task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(str(directory))
        size = text.value if text else None
        try:
            make(directory, config.value, size, seed, force, partial(_advance, bar, task), control)
        except OSError as error:
            if not error.strerror:  # it is our own, and says all
                raise
            raise OSError(f"directory: {directory} cannot be written: {error.strerror}") from error
    say_written(directory, f" in {time.perf_counter() - began:.1f} s")


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)
