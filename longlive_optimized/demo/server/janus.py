"""A room of Janus's VideoRoom plugin as an outlet: Janus sends on what it is sent once, to all who subscribe there."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from aiortc import RTCSessionDescription

from .encoding import ViewerTrack
from .janus_link import Link, Refused
from .offer import BadOffer
from .publishing import Lost
from .rtc import first_codec, sending_offer
from .settings import ServerSettings

FORM = "janus://HOST[:PORT][/PATH]/ROOM, or januss:// for a connection over TLS"
PORTS = {"janus": ("ws", 8188), "januss": ("wss", 8989)}  # Janus's own
ROOM = re.compile(r"[A-Za-z0-9_.-]{1,64}")
NO_SUCH_ROOM, ROOM_EXISTS, MISSING, FULL, UNAUTHORIZED = 426, 427, 429, 432, 433  # VideoRoom's codes


class JanusAddress(NamedTuple):
    """Where Janus listens for WebSockets, and a room there: a number, or a text where Janus has ``string_ids``."""

    url: str
    room: int | str


class JanusSecrets(NamedTuple):
    """What Janus may ask for.

    api_secret, token: of its API. pin: of the room. admin_key: to make a room.
    """

    api_secret: str | None = None
    token: str | None = None
    pin: str | None = None
    admin_key: str | None = None


class JanusRoom:
    """An outlet of a room. make: make the room where it does not exist."""

    def __init__(
        self, address: JanusAddress, settings: ServerSettings, secrets: JanusSecrets | None = None, make: bool = False
    ):
        self.address = f"room {address.room} of {address.url}"
        self._url, self._room = address
        self._settings, self._make = settings, make
        self._secrets = secrets or JanusSecrets()

    async def publish(self, track: ViewerTrack, rate: int, begin: Callable[[], None]) -> None:
        """Join the room and send until that ends. Raises Lost."""
        link = Link(self._url, self._secrets.api_secret, self._secrets.token, self._settings.ice_servers)
        try:
            await link.open()
            await self._enter(link, rate)
            await self._connect(link, track)
            begin()
            raise Lost(await link.ended())
        finally:
            await link.close()

    async def _enter(self, link: Link, rate: int) -> None:
        """Join, and make the room before where that is wanted."""
        try:
            await self._join(link)
        except Refused as refused:
            if not self._make or refused.code != NO_SUCH_ROOM:
                raise Lost(self._why_not_joined(refused)) from None
        else:
            return
        await self._make_room(link, rate)
        try:
            await self._join(link)
        except Refused as refused:
            raise Lost(self._why_not_joined(refused)) from None

    async def _join(self, link: Link) -> None:
        body = {"request": "join", "ptype": "publisher", "display": "longlive-optimized", "room": self._room}
        await link.ask(body | _given(pin=self._secrets.pin))

    async def _make_room(self, link: Link, rate: int) -> None:
        body = {"request": "create", "room": self._room, "videocodec": "vp8,h264", "bitrate": rate, "permanent": False}
        try:
            await link.ask(body | _given(pin=self._secrets.pin, admin_key=self._secrets.admin_key))
        except Refused as refused:
            if refused.code == ROOM_EXISTS:  # somebody else was faster
                return
            hint = "set LONGLIVE_JANUS_ADMIN_KEY to the admin_key of its VideoRoom plugin"
            hint = f": {hint}" if refused.code in (UNAUTHORIZED, MISSING) else ""
            raise Lost(f"Janus does not make room {self._room}{hint} ({refused})") from None

    def _why_not_joined(self, refused: Refused) -> str:
        room = self._room
        if refused.code == NO_SUCH_ROOM:
            return f"Janus has no room {room}: make it there, or let it be made by --publish-make-room"
        if refused.code in (UNAUTHORIZED, MISSING):
            return f"room {room} wants another PIN: set LONGLIVE_JANUS_PIN to its own ({refused})"
        if refused.code == FULL:
            return f"room {room} has as many publishers as it takes ({refused})"
        return f"Janus does not let us into room {room} ({refused})"

    async def _connect(self, link: Link, track: ViewerTrack) -> None:
        """Send the track, once its codec is agreed upon."""
        # Addresses that viewers come to need not reach Janus, as loopback; that of the WebSocket does.
        sender = await sending_offer(link.pc, track, self._settings.codec, besides=link.local_address)
        offer = {"type": "offer", "sdp": link.pc.localDescription.sdp}
        try:
            answer = await link.ask({"request": "publish"}, offer)
        except Refused as refused:
            raise Lost(f"Janus does not let us publish in room {self._room} ({refused})") from None
        sdp = answer.get("jsep", {}).get("sdp", "")
        try:
            track.codec = first_codec(sdp)
            await link.pc.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
        except (BadOffer, ValueError) as error:
            codecs = "VP8 nor H264 of the Baseline profile: its videocodec has to allow one of them"
            raise Lost(f"room {self._room} takes neither {codecs}") from error
        track.follow(sender)
        await link.connected()


def read_address(text: str) -> JanusAddress:
    """A room's address. Raises ValueError, which says the form."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:  # of brackets or a port
        raise ValueError(f"a room of Janus is {FORM}, got {text!r}") from None
    if parts.username is not None:
        raise ValueError(f"a room of Janus is {FORM}, without a name or password: secrets are for the environment")
    path, _, room = parts.path.rpartition("/")
    if parts.scheme not in PORTS or not host or port == 0 or parts.query or parts.fragment or not ROOM.fullmatch(room):
        raise ValueError(f"a room of Janus is {FORM}, got {text!r}")
    scheme, usual = PORTS[parts.scheme]
    host = f"[{host}]" if ":" in host else host
    return JanusAddress(f"{scheme}://{host}:{port or usual}{path}", int(room) if room.isdecimal() else room)


def _given(**secrets: str | None) -> dict:
    return {name: value for name, value in secrets.items() if value is not None}
