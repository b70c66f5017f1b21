"""The files that a command is to write: found unfit before any work, named when they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..plain import size_text
from .loading import console

Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]


def check_file(option: str, path: Path | None, force: bool, *suffixes: str) -> None:
    """Make the folder of a file to come and try to write there. Raises ValueError and OSError naming the option."""
    if path is None:
        return
    try:
        if suffixes and (path.suffix.lower() not in suffixes or (path.exists() and not path.is_file())):
            raise ValueError(f"{option} must be {_listed(suffixes)} file, got {str(path)!r}")
        if is_device(path):
            return
        target = Path(os.path.realpath(path))  # a link stays one, also where what it names is not there yet
        there = path.exists()
        if there and path.is_file() and not force:
            raise FileExistsError(f"{option}: {path} exists; --force overwrites it")
        if target.parent.exists() and not target.parent.is_dir():
            raise NotADirectoryError(f"{option}: {path} cannot be written: {target.parent} is no folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("ab"):
            pass
        if not there:
            target.unlink()
    except OSError as error:
        if not error.strerror:  # it is one of the above
            raise
        raise OSError(f"{option}: {path} cannot be written: {error.strerror}") from error


def _listed(suffixes: Sequence[str]) -> str:
    *others, last = suffixes
    return f"an {', '.join(others)} or {last}" if others else f"an {last}"


def write_json(path: Path | None, value: object) -> None:
    """Write ``value`` where a path is given. Raises OSError naming the option."""
    if path is None:
        return
    try:
        with path.open("a" if is_device(path) else "w") as file:  # /dev/stdout may be a file that has a table in it
            file.write(json.dumps(value, indent=2) + "\n")
    except OSError as error:
        raise OSError(f"--json: {path} cannot be written: {error.strerror}") from error
    if not is_device(path):
        say_written(path)


def is_device(path: Path) -> bool:
    """Whether it is a device or a pipe, such as /dev/stdout, which may lead to a file."""
    standard = str(path.absolute()) in ("/dev/stdout", "/dev/stderr") or path.absolute().is_relative_to("/dev/fd")
    return standard or (path.exists() and not path.is_file() and not path.is_dir())


def same_file(one: Path, other: Path) -> bool:
    """Whether both are one file, by whatever links."""
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return os.path.realpath(one) == os.path.realpath(other)


def say_written(path: Path, note: str = "") -> None:
    """``wrote FILE: 12.3 kB``, and ``note``."""
    files = [path] if not path.is_dir() else [file for file in path.rglob("*") if file.is_file()]
    console.print(f"wrote {path}: {size_text(sum(file.stat().st_size for file in files))}{note}", soft_wrap=True)
