"""One viewer's WebRTC connection: video to them, messages both ways."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import re
import secrets
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import aioice.ice
import av
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.exceptions import OperationError

from .encoding import ViewerTrack
from .intake import Intake
from .offer import BadOffer, Offer
from .settings import ServerSettings

log = logging.getLogger(__name__)

CONNECT_SECONDS = 20.0  # within which a connection must stand
GONE_SECONDS = 10.0  # of sending without an answer after which a viewer has vanished: aioice takes 30 to see it
LOOK_SECONDS = 1.0  # between two looks
MOST_UNREAD = 256 * 1024  # bytes; a viewer that leaves more of them unread is cut off
_host_addresses = aioice.ice.get_host_addresses
_chosen: ContextVar[list[str] | None] = ContextVar("addresses that a task's connections use", default=None)


class Peer:
    """One viewer.

    seat: known to the viewer alone; who sends it, sends for them. intake: the video that they send.
    on_connect, on_open, on_message, on_frame, on_close: called with the peer (and the message, or the frame) in the
    event loop: when the connection stands, when the viewer's data channel is there, for each message, for each frame
    that is wanted of the viewer, and once at the end.
    """

    def __init__(
        self,
        name: str,
        track: ViewerTrack,
        settings: ServerSettings,
        on_connect: Callable[[Peer], None],
        on_open: Callable[[Peer], None],
        on_message: Callable[[Peer, str | bytes], None],
        on_frame: Callable[[Peer, av.VideoFrame], None],
        on_close: Callable[[Peer], None],
    ):
        self.name, self.track, self.seat = name, track, secrets.token_urlsafe(16)
        self._settings = settings
        self._on_connect, self._on_open, self._on_message, self._on_close = on_connect, on_open, on_message, on_close
        servers = [RTCIceServer(s.urls, s.username, s.credential) for s in settings.ice_servers]
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._connection.on("connectionstatechange", self._follow_state)
        self._connection.on("datachannel", self._take_channel)
        # The track comes first: codecs are chosen while the offer is read.
        self._transceiver = self._connection.addTransceiver(track, direction="sendrecv")
        self.intake = Intake(self._transceiver, functools.partial(on_frame, self))
        self._connection.on("track", self.intake.follow)
        self._channel, self._closing, self._watching = None, None, None
        self._deadline = asyncio.get_running_loop().call_later(CONNECT_SECONDS, self._give_up)
        track.on("ended", self.close_soon)

    async def answer(self, sdp: str) -> str:
        """The answer to a viewer's offer. Raises BadOffer."""
        offer = Offer(sdp)
        try:
            self._transceiver.setCodecPreferences(preferred(self._settings.codec))
            taken = offer.taken(local=self._settings.loopback)
            await self._connection.setRemoteDescription(RTCSessionDescription(taken, "offer"))
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        except OperationError:  # of a codec that the offer names, but in another profile or packing
            raise BadOffer(
                "the offer's video section has no codec that the server sends: VP8, which browsers have, or H264 of "
                "the Baseline profile (42001f, 42e01f) with packetization-mode 1"
            ) from None
        except Exception as error:  # aiortc's parser raises whatever its parts do
            raise BadOffer(f"the offer cannot be answered: {type(error).__name__}: {error}") from error
        answer = self._connection.localDescription.sdp
        self.track.codec = first_codec(answer)
        self.track.follow(self._transceiver.sender)
        return offer.answer(answer)

    def send(self, message: dict) -> None:
        """Send a message, if the channel is open."""
        channel = self._channel
        # A channel counts as open for a while after the transport below has ended; then a task of aiortc's would fail.
        if channel is None or channel.readyState != "open" or channel.transport.transport.state != "connected":
            return
        if channel.bufferedAmount > MOST_UNREAD:
            log.warning("%s does not read what is said: cut off", self.name)
            self.close_soon()
            return
        channel.send(json.dumps(message))

    def close_soon(self) -> None:
        """Begin to close."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())

    async def close(self) -> None:
        """Close, and wait until that is done."""
        self.close_soon()
        assert self._closing is not None
        await self._closing

    async def _close(self) -> None:
        self._deadline.cancel()
        if self._watching:
            self._watching.cancel()
        self._on_close(self)
        self.intake.close()
        await self._connection.close()

    def _follow_state(self) -> None:
        state = self._connection.connectionState
        if state == "connected" and self._watching is None and self._closing is None:
            self._watching = asyncio.ensure_future(self._watch())
            self._on_connect(self)
        if state in ("failed", "closed"):
            self.close_soon()

    def _give_up(self) -> None:
        if self._connection.connectionState != "connected":
            log.warning("%s did not connect: something on the way may block UDP; a TURN server helps", self.name)
            self.close_soon()

    async def _watch(self) -> None:
        await vanished(self._connection)
        log.warning("%s has vanished", self.name)
        self.close_soon()

    def _take_channel(self, channel) -> None:
        if self._channel is not None:
            refusal = f"messages go over this viewer's first data channel, {self._channel.label!r}: use that one"
            refuse = json.dumps({"type": "error", "error": refusal, "id": None})
            channel.on("message", lambda message: channel.send(refuse))
            channel.send(refuse)
            return
        self._channel = channel
        channel.on("message", lambda message: self._on_message(self, message))
        channel.on("close", self.close_soon)
        self._on_open(self)


async def vanished(connection: RTCPeerConnection) -> None:
    """Wait until the other end has vanished: it is sent packets and sends none, not even reports of what it got."""
    at_first = heard = sent = None
    silent = 0.0
    while silent < GONE_SECONDS:
        before, heard_before = sent, heard
        heard, sent = await _traffic(connection)
        at_first = heard if at_first is None else at_first
        if heard != heard_before:
            silent = 0.0
        elif sent != before and heard != at_first:  # one who never reports at all is left to aioice
            silent += LOOK_SECONDS
        await asyncio.sleep(LOOK_SECONDS)


async def _traffic(connection: RTCPeerConnection) -> tuple[int, int]:
    """Packets that came from the other end, and packets of video sent."""
    stats = (await connection.getStats()).values()
    came = sum(one.packetsReceived for one in stats if one.type == "transport")
    return came, sum(one.packetsSent for one in stats if one.type == "outbound-rtp")


@contextlib.contextmanager
def local_addresses(settings: ServerSettings) -> Iterator[None]:
    """Within it, this process's connections use the address that the server is bound to and those that are allowed
    beside it; where neither is given, all but loopback."""
    # The latter is what aioice always does: it has no option for it.
    before, bound = aioice.ice.get_host_addresses, settings.address
    single = () if bound is None or bound.is_unspecified else (bound,)
    addresses = [str(address) for address in (*single, *settings.ice_addresses)]

    def chosen(use_ipv4: bool, use_ipv6: bool) -> list[str]:
        return _chosen.get() or addresses or before(use_ipv4, use_ipv6)

    aioice.ice.get_host_addresses = chosen
    try:
        yield
    finally:
        aioice.ice.get_host_addresses = before


@contextlib.contextmanager
def all_addresses(besides: str | None) -> Iterator[None]:
    """Within it, the connections that this task opens use one address of this machine, and all but loopback besides,
    whatever the others use; None adds no address."""
    one = [besides] if besides else []
    token = _chosen.set([*dict.fromkeys([*one, *_host_addresses(use_ipv4=True, use_ipv6=True)])])
    try:
        yield
    finally:
        _chosen.reset(token)


async def sending_offer(
    connection: RTCPeerConnection, track: ViewerTrack, codec: str, besides: str | None
) -> RTCRtpSender:
    """Let a connection offer the track, and nothing else; what sends it. The offer, with all addresses of
    ``all_addresses``, is then its local description. codec: the name of the one that is preferred."""
    transceiver = connection.addTransceiver(track, direction="sendonly")
    transceiver.setCodecPreferences(preferred(codec))
    with all_addresses(besides):
        await connection.setLocalDescription(await connection.createOffer())
    return transceiver.sender


def preferred(name: str) -> list:
    """All codecs, those of that name first."""
    known = RTCRtpSender.getCapabilities("video").codecs
    return sorted(known, key=lambda codec: codec.mimeType.lower() != f"video/{name}")


def first_codec(answer: str) -> str:
    """The name of the codec that the video is sent in, as an answer says. Raises BadOffer where it takes none."""
    found = re.search(r"^m=video [1-9]\d* \S+ (\d+)", answer, re.MULTILINE)
    named = found and re.search(rf"^a=rtpmap:{found[1]} (\w+)/", answer, re.MULTILINE)
    if not named:
        raise BadOffer("the offer leaves no codec to send the video in")
    return named[1].upper()
