"""``serve --publish``: where the shared stream is published, and the secrets for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..demo.server.janus import JanusRoom, JanusSecrets
    from ..demo.server.settings import ServerSettings

ENVIRONMENT = "LONGLIVE_JANUS_"


def outlet(address: str | None, make_room: bool, settings: ServerSettings) -> JanusRoom | None:
    """The room that the options name. Raises ValueError naming the option or the variable."""
    if address is None:
        if make_room:
            raise ValueError("--publish-make-room needs --publish")
        return None
    if settings.private:
        raise ValueError("--publish is of the stream that all share, which there is none of with --private")
    try:
        from ..demo.server.janus import JanusRoom, read_address
    except ImportError as error:
        raise ValueError(f"{error.name} is missing: pip install 'longlive-optimized[janus]'") from error
    try:
        where = read_address(address)
    except ValueError as error:
        raise ValueError(f"--publish: {error}") from None
    return JanusRoom(where, settings, _secrets(), make_room)


def _secrets() -> JanusSecrets:
    """Those in the environment, or in the files that it names: a command line is for all to see."""
    from ..demo.server.janus import JanusSecrets

    return JanusSecrets(**{field: _secret(ENVIRONMENT + field.upper()) for field in JanusSecrets._fields})


def _secret(name: str) -> str | None:
    value, path = os.environ.get(name), os.environ.get(name + "_FILE")
    if value and path:
        raise ValueError(f"set {name} or {name}_FILE, not both")
    if path:
        try:
            value = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{name}_FILE: {path!r} cannot be read: {error}") from None
        if not value:
            raise ValueError(f"{name}_FILE: {path!r} is empty")
    return value or None
