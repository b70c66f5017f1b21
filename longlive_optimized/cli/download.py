"""``download``: the real model, from the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ..plain import size_text
from ..weights.published import ABOUT, LONGLIVE, Repository, Wishes, as_repository, command
from .loading import console, results

if TYPE_CHECKING:
    from ..weights.hub_plan import Plan


def download(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="A folder of models, as scope has it; by default the hub client's cache."),
    ] = None,
    model: Annotated[str, typer.Option(help="ORG/NAME or ORG/NAME@REVISION of a LongLive on the hub.")] = LONGLIVE,
    vace: Annotated[
        bool, typer.Option("--vace", help="VACE's module too, 1.5 GB: control video and pictures.")
    ] = False,
    text: Annotated[
        Literal["fp8", "bf16"], typer.Option(help="The text encoder's file; int8 is made of bf16, the larger one.")
    ] = "fp8",
    vae: Annotated[Literal["wan", "lightvae", "tae", "lighttae"], typer.Option(help="Which VAE; wan is best.")] = "wan",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Compare what is there with its checksums too, and replace what differs.")
    ] = False,
) -> None:
    """Download what is missing of the real model; the same command goes on where it was interrupted."""
    from ..weights.hub_plan import make_plan
    from ..weights.locate import locate

    if (repository := as_repository(model)) is None:
        raise ValueError(f"--model must be ORG/NAME or ORG/NAME@REVISION of the hub, and no path, got {model!r}")
    wishes, name = Wishes(vae, text, vace), str(directory or model)
    try:
        with console.status("asking the hub"):
            plan = make_plan(repository, wishes, directory, force)
    except ConnectionError as error:
        try:
            locate(directory or model, vae, vace)
        except FileNotFoundError:
            get = command(directory or repository, wishes)
            raise ConnectionError(
                f"{error}; not all of it is on this machine. Where the hub can be reached:\n  {get}"
            ) from None
        console.print(f"{error}; all of it is on this machine", soft_wrap=True)
    else:
        _show(plan)
        if not plan.complete:
            plan.check_room()
            if not yes and sys.stdin.isatty() and not typer.confirm("Download?", default=True, err=True):
                raise typer.Exit(1)
            fetch_shown(plan)
    console.print("ready to use as --model, or LongLiveEngine(...):")
    results.print(name, soft_wrap=True)


def fetch_shown(plan: Plan) -> None:
    """Get what is missing, and show how far it is."""
    from ..weights.hub import fetch

    columns = TextColumn("downloading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=plan.size, completed=plan.size - plan.missing)
        try:
            fetch(plan, lambda what, done, total: bar.update(task, completed=done))
        except KeyboardInterrupt:
            console.print(f"stopped. Go on with\n  {plan.command}", soft_wrap=True)
            raise typer.Exit(130) from None


def have(model: str, vae: str = "wan", text_precision: str = "auto", control: bool = False) -> None:
    """Get what is missing of ``ORG/NAME[@REVISION]``, sizes said first, before a command begins its own work."""
    from ..weights.hub import missing

    if (plan := missing(model, vae, text_precision, control)) and not plan.complete:
        _show(plan)
        fetch_shown(plan)


def tell_of_the_real_one() -> None:
    """Say how to get the real model, or that it is here. The hub is not asked."""
    from ..weights.locate import locate

    serve = f"longlive-optimized serve --model {LONGLIVE}"
    try:
        locate(LONGLIVE)
    except FileNotFoundError:
        get = command(Repository(LONGLIVE))
        text = f"this is the built-in model. For pictures of the real world, {ABOUT}:\n  {get}\n  {serve}"
    else:
        text = f"this is the built-in model; the real one is on this machine too:\n  {serve}"
    console.print(text, soft_wrap=True)


def _show(plan: Plan) -> None:
    """What there is, with sizes."""
    from ..weights.hub_plan import free_bytes

    widest = max(len(str(item)) for item in plan.items)
    for item in plan.items:
        state = "is there" if item.there else f"from {item.source}" if item.source else ""
        state = state or (f"{size_text(item.begun)} are there" if item.begun else "")
        line = f"{item!s:{widest}}  {size_text(item.size):>10}  {state}"
        console.print(line.rstrip(), soft_wrap=True)
    if plan.complete:
        console.print(f"all {size_text(plan.size)} are there", soft_wrap=True)
        return
    room = f"where {size_text(free_bytes(plan.where))} are free"
    missing = f"{size_text(plan.missing)} of {size_text(plan.size)} are to be downloaded"
    console.print(f"{missing}, to {plan.where}, {room}", soft_wrap=True)
