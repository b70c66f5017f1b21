"""Plain values: numbers and lists of NumPy, OpenCV and torch as Python's own; names that were meant; dtypes and
sizes in words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def plain(value: Any) -> Any:
    """A NumPy scalar or array, or a tensor, as a number or a list; all else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def exact(value: Any) -> Any:
    """``plain``, with whole floats as ints and what can be gone through as a list: no other number passes for one."""
    value = plain(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return [exact(item) for item in value]
    return value


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """``value`` as an int. Raises ValueError naming the argument unless it is a whole number in [least, most]."""
    number = exact(value)
    if isinstance(number, int) and not isinstance(number, bool):
        if least <= number and (most is None or number <= most):
            return number
    wanted = f"of at least {least}" if most is None else f"in {least}..{most}"
    raise ValueError(f"{name} must be a whole number {wanted}, got {value!r}")


def flag(name: str, value: Any) -> bool:
    """``value`` as a bool. Raises TypeError naming the argument for anything but true and false."""
    if isinstance(plain(value), bool):
        return bool(value)
    raise TypeError(f"{name} must be true or false, got {value!r}")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``; did you mean 'seed'?`` where one of the ``known`` names is close to ``name``, else nothing."""
    close = difflib.get_close_matches(str(name), list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def dtype_name(dtype: Any) -> str:
    """A torch dtype as statistics say it: ``bf16``, ``float32``."""
    return str(dtype).removeprefix("torch.").replace("bfloat16", "bf16")


def size_text(nbytes: float) -> str:
    """Bytes as people read them, to three digits: ``12.3 kB``, ``5.68 GB``."""
    for unit in ("bytes", "kB", "MB"):
        if nbytes < 999.5:  # what rounds to 1000 is of the next unit
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} GB" if nbytes < 999.5 else f"{nbytes:.0f} GB"
