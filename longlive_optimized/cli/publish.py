"""``serve --publish``: where the shared stream is published, and the secrets for it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .needs import extra, named

if TYPE_CHECKING:
    from ..demo.server.janus import JanusRoom, JanusSecrets
    from ..demo.server.publishing import Outlet
    from ..demo.server.settings import ServerSettings
    from ..demo.server.whip import WhipEndpoint

log = logging.getLogger(__name__)

ENVIRONMENT = "LONGLIVE_JANUS_"
WHIP_TOKEN = "LONGLIVE_WHIP_TOKEN"


def outlet(address: str | None, make_room: bool, settings: ServerSettings) -> Outlet | None:
    """What the options name. Raises ValueError naming the option or the variable."""
    if address is None:
        if make_room:
            raise ValueError("--publish-make-room needs --publish")
        return None
    if settings.private:
        raise ValueError("--publish is of the stream that all share, which there is none of with --private")
    scheme = address.partition(":")[0].lower()
    if scheme.startswith("whip"):
        if make_room:
            raise ValueError("--publish-make-room is for a room of Janus, and --publish names a WHIP endpoint")
        return _endpoint(address, settings)
    if not scheme.startswith("janus"):
        raise ValueError(
            "--publish: where to is whip+https://HOST[:PORT]/PATH for WHIP, janus://HOST[:PORT][/PATH]/ROOM for Janus"
        )
    return _room(address, make_room, settings)


def _endpoint(address: str, settings: ServerSettings) -> WhipEndpoint:
    with extra("whip"):
        from ..demo.server.whip import WhipEndpoint, read_whip
    with named("--publish"):
        where = read_whip(address)
    token = _secret(WHIP_TOKEN)
    if token and where.is_open:
        log.warning("%s goes to %s in the clear: whip+https:// keeps it secret", WHIP_TOKEN, where.host)
    with named(WHIP_TOKEN):
        return WhipEndpoint(where, settings, token)


def _room(address: str, make: bool, settings: ServerSettings) -> JanusRoom:
    with extra("janus"):
        from ..demo.server.janus import JanusRoom, read_address
    with named("--publish"):
        where = read_address(address)
    return JanusRoom(where, settings, _secrets(), make)


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
