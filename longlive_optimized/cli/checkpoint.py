"""``make-checkpoint``: a random checkpoint in LongLive's own layout, to measure and test with."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

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
) -> None:
    """Write random weights in the published layout, with a tokenizer."""
    from ..weights.random_checkpoint import make_checkpoint as make

    columns = TextColumn("writing {task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(str(directory))
        make(
            directory,
            config.value,
            text.value if text else None,
            seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"wrote {directory}", highlight=False)
