"""Errors that say what is to be installed, or which option or variable is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pydantic import ValidationError


@contextlib.contextmanager
def extra(name: str = "serve") -> Iterator[None]:
    """Within it, what is missing is a ValueError that says how to install it, with this extra of the package."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{error.name} is missing: pip install 'longlive-optimized[{name}]'") from error


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Within it, a ValueError begins with the name of an option or a variable."""
    try:
        yield
    except ValidationError as error:
        raise ValueError(f"{what}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
