"""An engine with a progress bar, for the commands that need one."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..config import OptimizationConfig
from ..engine.engine import LongLiveEngine

console = Console(stderr=True)  # progress and remarks
results = Console()  # what was asked for


def load_engine(model: str, config: OptimizationConfig, device: str | None) -> LongLiveEngine:
    """Load ``model`` and show how far it is."""
    columns = TextColumn("loading {task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, int] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)

        engine = LongLiveEngine(model, config, device, progress=advance)
    where = f"{engine.device} as {str(engine.dtype).removeprefix('torch.')}"
    console.print(f"loaded {model} on {where} in {engine.load_seconds:.1f} s", highlight=False)
    return engine
