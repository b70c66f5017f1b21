"""How the server is reached, and its limits."""

from __future__ import annotations

import ipaddress
import re
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, IPvAnyAddress, model_validator
from pydantic.dataclasses import dataclass

from ...plain import plain
from ...weights.locate import TINY
from ...weights.published import as_repository

SHORTEST_TOKEN = 16
PORTS = {"http": 80, "https": 443}
ORIGIN = re.compile(r"(https?)://([^\s/@*?#:\[\]]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?/?")


def as_origin(text: str) -> str:
    """A page's origin, spelt as in browsers' headers. Raises ValueError."""
    found = ORIGIN.fullmatch(text.strip().lower())
    if not found:
        raise ValueError(f"an origin is https://HOST or https://HOST:PORT, got {text!r}")
    scheme, host, port = found.groups()
    host = host if host.startswith("[") else host.encode("idna").decode()
    return f"{scheme}://{host}" + (f":{port}" if port and int(port) != PORTS[scheme] else "")


def as_token(text: str) -> str:
    """A token as it can stand in a header. Raises ValueError, which does not repeat it."""
    if not (text.isascii() and text.isprintable() and text == text.strip()):
        raise ValueError("token must be of ASCII letters, digits and signs, without white space around it")
    return text


@dataclass(config=ConfigDict(extra="forbid", strict=True), kw_only=True, frozen=True)
class IceServer:
    """A STUN or TURN server, as browsers name them: ``stun:HOST[:PORT]``, ``turn:HOST[:PORT][?transport=udp|tcp]``."""

    urls: Annotated[str, Field(pattern=r"^(stun|turns?):[^?:/\s]+(:\d+)?(\?transport=(udp|tcp))?$")]
    username: str | None = None
    credential: str | None = None

    @model_validator(mode="after")
    def _turn_needs_a_password(self):
        if self.urls.startswith("turn") and not (self.username and self.credential):
            raise ValueError("a TURN server needs a user name and a password")
        return self


@dataclass(config=ConfigDict(extra="forbid", strict=True), kw_only=True, frozen=True)
class ServerSettings:
    """Raises pydantic's ValidationError, a ValueError, naming the field and what was wanted.

    host: address that is bound. Any but a loopback address needs a token.
    token: what a viewer must present; None asks for none.
    origins: of pages, beside the server's own, that may use it, such as ``https://demo.example``; their host names are
        then also accepted as the server's, as behind a proxy.
    max_viewers: connections to a stream at a time, those still being made included.
    codec: of the video, for viewers who take it; others get the other one. VP8 takes half the processor time of H.264.
    bitrate: bits per second that the video may take; None fits it to the picture.
    ice_servers: at most one STUN and one TURN server; none are used by default.
    ice_addresses: of this machine, that video may use beside the one that is bound. Firefox takes none from loopback.
    record_seconds: of video kept for download; 0 keeps none.
    sessions: streams that may be open at a time; ``auto`` is as many as the device can make, each at
        its own speed: 16 frames a second and ``playback_speed``.
    private: each new visitor gets a stream of their own, in place of the one that all share.
    keep_seconds: that a stream which nobody watches stays open.
    max_queued: streams that may wait for a place.
    sessions_per_client: streams that one address may have open or waiting.
    model: what is loaded, as viewers are told, who see no folder but its name. ask_for_model: nobody named one, so that
        the page says how to get the real one.
    """

    host: str = "127.0.0.1"
    token: Annotated[str, Field(min_length=SHORTEST_TOKEN), AfterValidator(as_token)] | None = None
    origins: tuple[Annotated[str, AfterValidator(as_origin)], ...] = ()
    max_viewers: Annotated[int, Field(ge=1)] = 8
    codec: Literal["vp8", "h264"] = "vp8"
    bitrate: Annotated[int, Field(ge=100_000)] | None = None
    ice_servers: tuple[IceServer, ...] = ()
    ice_addresses: tuple[IPvAnyAddress, ...] = ()
    record_seconds: Annotated[int, Field(ge=0, le=600)] = 30
    sessions: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    private: Annotated[bool, BeforeValidator(plain)] = False
    keep_seconds: Annotated[float, BeforeValidator(plain), Field(ge=0, allow_inf_nan=False)] = 60.0
    max_queued: Annotated[int, Field(ge=0)] = 16
    sessions_per_client: Annotated[int, Field(ge=1)] = 4
    model: str = "tiny"
    ask_for_model: Annotated[bool, BeforeValidator(plain)] = False

    @model_validator(mode="after")
    def _others_need_a_token(self):
        if not self.loopback and self.token is None:
            raise ValueError(
                f"host {self.host} can be reached by others: a token of at least {SHORTEST_TOKEN} characters is needed"
            )
        return self

    @property
    def address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The host as an address; None where it is a name."""
        try:
            return ipaddress.ip_address("127.0.0.1" if self.host == "localhost" else self.host)
        except ValueError:
            return None

    @property
    def shown_model(self) -> dict[str, str | bool]:
        """The model as viewers are told."""
        name = self.model if as_repository(self.model) else PurePath(self.model).name
        return {"name": name, "builtin": self.model == TINY, "ask": self.ask_for_model}

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.address is not None and self.address.is_loopback
