"""The built-in model: a random checkpoint of a few megabytes, made on first use, read like any other."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import zlib
from pathlib import Path

from .. import __version__
from .random_checkpoint import make_checkpoint

_RECIPE = ("random_checkpoint.py", "random_tokenizer.py", "corpus.txt")

_log = logging.getLogger(__name__)


def tiny_folder() -> Path:
    """The built-in model's folder in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``), made if need be.

    Processes that make it at the same time do not disturb each other. Where the cache cannot be written it is a
    temporary folder that goes with the process; the log says so.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    folder = cache / "longlive_optimized" / f"tiny-{_version()}"
    if not folder.is_dir() and cache.is_absolute():
        try:
            make_checkpoint(folder, "tiny")
        except OSError as error:
            _log.debug("making %s: %s", folder, error)
    # Another process may have been first, which is why the failure above does not decide.
    return folder if folder.is_dir() and cache.is_absolute() else Path(_temporary(cache).name) / "tiny"


@functools.cache
def _version() -> str:
    """Changes with the package's version and with anything that changes the weights."""
    recipe = b"".join(Path(__file__).with_name(name).read_bytes() for name in _RECIPE)
    return f"{__version__}-{zlib.crc32(recipe):08x}"


@functools.cache
def _temporary(cache: Path) -> tempfile.TemporaryDirectory:
    _log.warning("%s cannot be written: the built-in model goes to a temporary folder", cache)
    kept = tempfile.TemporaryDirectory(prefix="longlive_optimized-")
    make_checkpoint(Path(kept.name) / "tiny", "tiny")
    return kept
