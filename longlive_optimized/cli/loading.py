"""An engine with a progress bar, for the commands that need one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..config import OptimizationConfig
from ..engine.engine import LongLiveEngine
from ..tinyworld.render import NATIVE
from ..weights.locate import TINY

console = Console(stderr=True)  # progress and remarks
results = Console()  # what was asked for


Height = Annotated[
    int | None,
    typer.Option(help="Pixels, a multiple of 16; 480 by default, of the built-in model 64.", show_default=False),
]
Width = Annotated[
    int | None,
    typer.Option(help="Pixels, a multiple of 16; 832 by default, of the built-in model 96.", show_default=False),
]


def picture_size(model: str, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width as given, or what the model was trained at."""
    native = NATIVE if model == TINY else (480, 832)
    return native[0] if height is None else height, native[1] if width is None else width


def load_engine(model: str, config: OptimizationConfig, device: str | None) -> LongLiveEngine:
    """Load ``model`` and show how far it is."""
    columns = TextColumn("loading {task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)

        engine = LongLiveEngine(model, config, device, progress=advance)
    where = f"{engine.device} as {str(engine.dtype).removeprefix('torch.')}"
    console.print(f"loaded {model} on {where} in {engine.load_seconds:.1f} s", highlight=False)
    return engine
