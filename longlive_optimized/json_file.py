"""JSON files from elsewhere: read with a bound, before anything is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_bounded(path: str | Path, most: int) -> str:
    """The text of a file of at most ``most`` bytes; ValueError naming a file that is larger or not UTF-8; OSError."""
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path} is larger than {most} bytes, so it is something else")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def json_object(text: str, path: str | Path) -> dict[str, Any]:
    """The JSON object that ``text`` is; ValueError naming the file, ``path``, if it is none."""
    try:
        raw = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"{path} is not valid JSON: it is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold a JSON object, got {_kind(raw)}")
    return raw


def whole_number(value: object, least: int, most: int, where: str) -> int:
    """``value`` if it is a whole number from ``least`` to ``most``, else ValueError saying ``where`` it stands."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{where} must be a whole number from {least} to {most}, got {_kind(value)}")
    return value


def _kind(value: object) -> str:
    return f"{value!r:.40}" if isinstance(value, bool | int | float | str | None) else f"a {type(value).__name__}"


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")
