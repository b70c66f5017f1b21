"""What the commands share: where they print, a picture's size, an engine with a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..config import HEIGHT, WIDTH
from ..weights.locate import TINY_SIZE

if TYPE_CHECKING:
    from ..config import OptimizationConfig
    from ..engine.engine import LongLiveEngine
    from ..engine.ranks import Ranks
    from ..weights.user_lora import UserLora

# Texts are the user's: square brackets and colons in them mean nothing.
console = Console(stderr=True, markup=False, highlight=False, emoji=False)  # progress and remarks
results = Console(markup=False, highlight=False, emoji=False)  # what was asked for

Height = Annotated[
    int | None,
    typer.Option(
        help=f"Pixels, a multiple of 16; {HEIGHT} by default, of the built-in model {TINY_SIZE[0]}.", show_default=False
    ),
]
Width = Annotated[
    int | None,
    typer.Option(
        help=f"Pixels, a multiple of 16; {WIDTH} by default, of the built-in model {TINY_SIZE[1]}.", show_default=False
    ),
]
LowMemory = Annotated[
    bool | None,
    typer.Option(
        "--low-memory/--no-low-memory",
        help="Hold weights in 8 bits alone: less memory, a coarser bf16. By default where it is short, in 8 bits.",
        show_default=False,
    ),
]
MemoryLimit = Annotated[
    float | None,
    typer.Option(help="GiB that may be taken of the GPU; what is free by default.", show_default=False),
]
TextPrecision = Annotated[
    Literal["auto", "bf16", "int8", "fp8"],
    typer.Option(help="Of the text encoder's weights; auto is their file's, int8 is made of a bf16 file."),
]
TextResidence = Annotated[
    Literal["auto", "gpu", "parked", "cpu"],
    typer.Option(help="Where they lie; parked: in host memory, and on the GPU only while a prompt is encoded."),
]
KeepTextInt8 = Annotated[
    bool, typer.Option("--keep-text-int8", help="Keep what was made int8 in a file beside, for the next time.")
]

Device = Annotated[str | None, typer.Option(help="cuda or cpu; the default is CUDA where there is one.")]
VaeDevice = Annotated[
    str | None,
    typer.Option(help="Another GPU for the VAE, which then decodes beside the next block; by default --device."),
]
TextDevice = Annotated[str | None, typer.Option(help="Another GPU for the text encoder, or cpu; by default --device.")]


def load_engine(
    model: str,
    config: OptimizationConfig,
    device: str | None,
    vae_device: str | None = None,
    text_device: str | None = None,
    ranks: Ranks | None = None,
    loras: Sequence[UserLora] = (),
) -> LongLiveEngine:
    """Load ``model`` and show how far it is, and before that, what is to be downloaded of it."""
    from ..engine.engine import LongLiveEngine
    from .download import have

    have(model, config.vae_type, config.text_precision, config.control)

    columns = TextColumn("loading {task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)

        beside = {"vae_device": vae_device, "text_device": text_device, "ranks": ranks, "loras": loras}
        engine = LongLiveEngine(model, config, device, advance, **beside)
    where = ", ".join(str(device) for device in engine.devices.all if device.type == engine.device.type)
    where += f" on each of {ranks.count} ranks" if ranks and ranks.count > 1 else ""
    dtype = str(engine.dtype).removeprefix("torch.")
    console.print(f"loaded {model} on {where} as {dtype} in {engine.load_seconds:.1f} s", soft_wrap=True)
    return engine
