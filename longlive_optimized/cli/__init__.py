"""The command line: ``longlive-optimized generate | presets | serve | download | make-checkpoint | bench | doctor``."""

from __future__ import annotations

import io
import logging
import os
import sys

import typer
from rich.text import Text

from . import bench, checkpoint, doctor, download, generate, presets, serve
from .loading import console, results
from .mistakes import told
from .threads import share_the_machine

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Real-time LongLive-1.3B.",
)
app.command("generate")(generate.generate)
app.command("presets")(presets.presets)
app.command("serve")(serve.serve)
app.command("download")(download.download)
app.command("make-checkpoint")(checkpoint.make_checkpoint)
app.command("doctor")(doctor.doctor)
app.add_typer(bench.app, name="bench")


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        print(f"longlive-optimized {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: bool = typer.Option(False, "--verbose", help="Log automatic choices."),
    version: bool = typer.Option(
        False, "--version", help="Say which version this is.", callback=_version, is_eager=True
    ),
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s", force=True)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2, not a traceback."""
    share_the_machine()
    console.quiet = results.quiet = (os.environ.get("RANK") or "0") != "0"  # of several ranks the first one speaks
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it: no terminal is too poor for a result
    try:
        app()
    except Exception as error:
        if (text := told(error)) is None:
            raise
        console.print(Text.assemble(("error:", "red"), " ", text), soft_wrap=True)
        sys.exit(2)
