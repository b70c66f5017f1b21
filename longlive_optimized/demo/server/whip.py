"""A WHIP endpoint as an outlet (RFC 9725): where streaming services and media servers take video over WebRTC."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from aiortc import RTCBundlePolicy, RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription

from .encoding import ViewerTrack
from .offer import BadOffer
from .publishing import Lost
from .rtc import first_codec, sending_offer, vanished
from .settings import ServerSettings, as_token
from .whip_http import Signalling, tls

FORM = "whip+https://HOST[:PORT]/PATH, or whip+http:// for a connection without TLS"
SCHEMES = {"whip+https": ("https", 443), "whip+http": ("http", 80)}
CONNECT_SECONDS = 20.0  # within which the connection for video must stand


class WhipAddress(NamedTuple):
    """Where the offer is sent, and the name or address of its host, with the port."""

    url: str
    host: str
    port: int

    @property
    def shown(self) -> str:
        """Without path and query, which may be a key to the stream."""
        return f"WHIP at {'{0.scheme}://{0.netloc}'.format(urlsplit(self.url))}"

    @property
    def is_open(self) -> bool:
        """Whether others on the network can read what is sent there over HTTP, such as a token."""
        if self.url.startswith("https:") or self.host == "localhost":
            return False
        with contextlib.suppress(ValueError):
            return not ipaddress.ip_address(self.host).is_loopback
        return True


class WhipEndpoint:
    """An outlet of a WHIP endpoint. token: what it may ask for. Raises ValueError for one that is none."""

    def __init__(self, address: WhipAddress, settings: ServerSettings, token: str | None = None):
        self.address = address.shown
        self._to, self._settings = address, settings
        self._token = token and as_token(token)
        self._tls = tls()

    async def publish(self, track: ViewerTrack, rate: int, begin: Callable[[], None]) -> None:
        """Begin a session and send until that ends. Raises Lost."""
        servers = [RTCIceServer(one.urls, one.username, one.credential) for one in self._settings.ice_servers]
        connection = RTCPeerConnection(RTCConfiguration(iceServers=servers, bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        signalling = Signalling(self._to.url, self._token, self._tls)
        try:
            await self._connect(connection, signalling, track)
            begin()
            raise Lost(await _end(connection))
        finally:
            try:
                await signalling.close()
            finally:
                await connection.close()

    async def _connect(self, connection: RTCPeerConnection, signalling: Signalling, track: ViewerTrack) -> None:
        """Send the track, once its codec is agreed upon."""
        # Addresses that viewers come to need not reach the endpoint, as loopback; the one that leads there does.
        towards = await _address_towards(self._to)
        sender = await sending_offer(connection, track, self._settings.codec, besides=towards)
        answer = await signalling.offer(connection.localDescription.sdp)
        if found := re.search(r"^a=(inactive|sendonly)\s*$", answer, re.MULTILINE):
            raise Lost(f"the endpoint takes no video: its answer says {found[1]}")
        try:
            track.codec = first_codec(answer)
            await connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        except BadOffer:
            raise Lost("the endpoint takes no video: its answer rejects it") from None
        except Exception as error:  # aiortc's parser raises whatever its parts do
            raise Lost(f"the endpoint's answer cannot be used: {type(error).__name__}: {error}") from error
        track.follow(sender)
        await _connected(connection)


def read_whip(text: str) -> WhipAddress:
    """An endpoint's address. Raises ValueError, which says the form and does not repeat the path."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:  # of brackets or a port
        raise ValueError(f"a WHIP endpoint is {FORM}") from None
    if parts.username is not None:
        raise ValueError(f"a WHIP endpoint is {FORM}, without a name or password: secrets are for the environment")
    printable = text.isascii() and text.isprintable() and " " not in text
    if parts.scheme not in SCHEMES or not host or port == 0 or parts.fragment or not printable:
        raise ValueError(f"a WHIP endpoint is {FORM}")
    scheme, usual = SCHEMES[parts.scheme]
    url = urlunsplit((scheme, parts.netloc, parts.path or "/", parts.query, ""))
    return WhipAddress(url, host, port or usual)


async def _connected(connection: RTCPeerConnection) -> None:
    """Wait until it stands. Raises Lost."""
    changed = asyncio.Event()
    connection.on("connectionstatechange", changed.set)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            while connection.connectionState != "connected":
                if connection.connectionState in ("failed", "closed"):
                    raise Lost("the endpoint ended the connection for video before it stood")
                await changed.wait()
                changed.clear()
    except TimeoutError:
        raise Lost(
            "no video gets through to the endpoint: something on the way may block UDP; a TURN server helps"
        ) from None


async def _end(connection: RTCPeerConnection) -> str:
    """Wait until it ends, and say how."""
    over = asyncio.Event()
    connection.on("connectionstatechange", over.set)
    ended, gone = asyncio.ensure_future(over.wait()), asyncio.ensure_future(vanished(connection))
    if connection.connectionState != "connected":
        over.set()
    try:
        await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        return "the endpoint has ended the connection for video" if over.is_set() else "the endpoint has vanished"
    finally:
        ended.cancel()
        gone.cancel()


async def _address_towards(to: WhipAddress) -> str | None:
    """This machine's address on the way there; None where that is not known. Nothing is sent."""
    with contextlib.suppress(OSError):  # whoever asks it then says what is wrong
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=(to.host, to.port))
        try:
            return transport.get_extra_info("sockname")[0]
        finally:
            transport.close()
    return None
