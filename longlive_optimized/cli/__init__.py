"""The command line: ``longlive-optimized generate | serve | make-checkpoint | bench | doctor``."""

from __future__ import annotations

import logging
import sys

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
    except (ValueError, OSError, NotImplementedError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/red] {_plain(error)}", highlight=False)
        sys.exit(2)


def _plain(error: Exception) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
    return str(error)
