#!/usr/bin/env bash
# rich's Console(markup=False) does not hold for progress bars: words in square brackets vanish from their texts.
#
# Versions: rich 15.0.0.
# Who meets it: command lines that show with rich how far a file is: users name files "clip [final].mp4", and the bar then speaks
#   of "clip .mp4". Whoever turned markup off for the whole console takes every text that it prints to be plain; each TextColumn
#   has a switch of its own, on by default.
# Seen:
#   Console(markup=False).print: saved clip [final].mp4
#   its progress bar: saving clip .mp4
#   the same with TextColumn(..., markup=False): saving clip [final].mp4
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet "rich==15.0.0"
"$scratch/venv/bin/python" -W error - <<'PYTHON'
import io

from rich.console import Console
from rich.progress import Progress, TextColumn

NAME = "clip [final].mp4"


def console() -> Console:
    return Console(file=io.StringIO(), markup=False, width=80)


def bar(**options) -> str:
    out = console()
    with Progress(TextColumn("saving {task.description}", **options), console=out) as progress:
        progress.add_task(NAME, total=1)
    return out.file.getvalue().strip()


out = console()
out.print(f"saved {NAME}")
print("Console(markup=False).print:", out.file.getvalue().strip())
print("its progress bar:", bar())
print("the same with TextColumn(..., markup=False):", bar(markup=False))
assert out.file.getvalue() == f"saved {NAME}\n" and bar() == "saving clip .mp4" and bar(markup=False) == f"saving {NAME}"
PYTHON
