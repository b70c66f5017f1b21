"""The command line: ``longlive-optimized generate | serve | make-checkpoint | bench | doctor``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

import torch
import typer
from rich.console import Console

from . import bench, checkpoint, doctor, generate, serve

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Real-time LongLive-1.3B."
)
app.command("generate")(generate.generate)
app.command("serve")(serve.serve)
app.command("make-checkpoint")(checkpoint.make_checkpoint)
app.command("doctor")(doctor.doctor)
app.add_typer(bench.app, name="bench")


@app.callback()
def _options(verbose: bool = typer.Option(False, "--verbose", help="Log automatic choices.")) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s", force=True)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2, not a traceback."""
    try:
        app()
    except (ValueError, OSError, NotImplementedError, torch.OutOfMemoryError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/red] {_plain(error)}", highlight=False)
        sys.exit(2)


def _plain(error: Exception) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(map(_fault, error.errors()))
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU is out of memory: close other programs, or take a smaller size or window. {error}"
    return str(error)


def _fault(found: Mapping) -> str:
    text = found["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, found['loc']))}: {text}, got {found['input']!r}" if found["loc"] else text
