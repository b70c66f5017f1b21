"""One viewer's WebRTC connection: video to them, messages both ways."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Iterator

import aioice.ice
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.codecs import h264, vpx

from .access import TokenBucket
from .broadcast import ViewerTrack
from .settings import ServerSettings

CHANNEL = "control"  # the label of the one data channel, which the viewer opens
CONNECT_SECONDS = 20.0  # within which a connection must stand
MESSAGES = 20.0, 40  # a second, and at once
WARNINGS = 1.0, 1  # that these are too many
MOST_CANDIDATES = 32
MOST_UNREAD = 256 * 1024  # bytes; a viewer that leaves more of them unread is cut off
BITS_PER_PIXEL = 0.25


class BadOffer(ValueError):
    """An offer that is no offer to watch."""


class Peer:
    """One viewer.

    on_open, on_message, on_close: called with the peer (and the message) in the event loop, on_close once.
    """

    def __init__(
        self,
        name: str,
        track: ViewerTrack,
        settings: ServerSettings,
        on_open: Callable[[Peer], None],
        on_message: Callable[[Peer, str | bytes], None],
        on_close: Callable[[Peer], None],
    ):
        self.name, self.track = name, track
        self._settings = settings
        self._on_open, self._on_message, self._on_close = on_open, on_message, on_close
        servers = [RTCIceServer(s.urls, s.username, s.credential) for s in settings.ice_servers]
        clock = asyncio.get_running_loop().time
        self.rate, self.warnings = TokenBucket(*MESSAGES, clock), TokenBucket(*WARNINGS, clock)
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._connection.on("connectionstatechange", self._follow_state)
        self._connection.on("datachannel", self._take_channel)
        self._channel, self._closing = None, None
        self._deadline = asyncio.get_running_loop().call_later(CONNECT_SECONDS, self._give_up)
        track.on("ended", self.close_soon)

    async def answer(self, sdp: str) -> str:
        """The answer to a viewer's offer. Raises BadOffer."""
        if faults := _faults(sdp):
            raise BadOffer(faults)
        sdp = _with_local_candidates(sdp) if self._settings.loopback else sdp
        try:
            # The track comes first: codecs are chosen while the offer is read.
            self._connection.addTrack(self.track)
            self._connection.getTransceivers()[0].setCodecPreferences(_codecs(self._settings.codec))
            await self._connection.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        except Exception as error:  # aiortc's parser raises whatever its parts do
            raise BadOffer(f"the offer cannot be answered: {type(error).__name__}: {error}") from error
        return self._connection.localDescription.sdp

    def send(self, message: dict) -> None:
        """Send a message, if the channel is open."""
        channel = self._channel
        # A channel counts as open for a while after the transport below has ended; then a task of aiortc's would fail.
        if channel is None or channel.readyState != "open" or channel.transport.transport.state != "connected":
            return
        if channel.bufferedAmount > MOST_UNREAD:
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
        self._on_close(self)
        await self._connection.close()

    def _follow_state(self) -> None:
        state = self._connection.connectionState
        if state in ("failed", "closed"):
            self.close_soon()

    def _give_up(self) -> None:
        if self._connection.connectionState != "connected":
            self.close_soon()

    def _take_channel(self, channel) -> None:
        if self._channel is not None or channel.label != CHANNEL:
            self.close_soon()
            return
        self._channel = channel
        channel.on("message", lambda message: self._on_message(self, message))
        channel.on("close", self.close_soon)
        self._on_open(self)


def fit_bitrate(height: int, width: int, fps: float) -> int:
    """Bits per second that show such a video well."""
    return round(BITS_PER_PIXEL * width * height * fps)


def allow_bitrate(bits_per_second: int) -> None:
    """Let this process's encoders start at, and go up to, so many bits a second; viewers' feedback lowers it."""
    # aiortc's ceilings of 1.5 and 3 Mbit/s suit calls, and it offers no other way to raise them.
    for codec in (vpx, h264):
        highest = max(bits_per_second, codec.MIN_BITRATE)
        vars(codec).update(DEFAULT_BITRATE=highest, MAX_BITRATE=highest)


@contextlib.contextmanager
def local_addresses(settings: ServerSettings) -> Iterator[None]:
    """Within it, this process's connections use the address that the server is bound to and those that are allowed
    beside it; where neither is given, all but loopback."""
    # The latter is what aioice always does: it has no option for it.
    before, bound = aioice.ice.get_host_addresses, settings.address
    single = () if bound is None or bound.is_unspecified else (bound,)
    if addresses := [str(address) for address in (*single, *settings.ice_addresses)]:
        aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: addresses
    try:
        yield
    finally:
        aioice.ice.get_host_addresses = before


def _codecs(name: str) -> list:
    """The codec of that name in all its variants, and retransmission."""
    wanted = (f"video/{name}", "video/rtx")
    return [codec for codec in RTCRtpSender.getCapabilities("video").codecs if codec.mimeType.lower() in wanted]


def _faults(sdp: str) -> str | None:
    # Each section would get sockets of its own.
    kinds = re.findall(r"^m=(\w*)", sdp, re.MULTILINE)
    if "video" not in kinds or not set(kinds) <= {"video", "application"} or len(kinds) != len(set(kinds)):
        return f"an offer must have one video section and at most one data channel section, got {kinds[:10]}"
    if (count := len(re.findall(r"^a=candidate:", sdp, re.MULTILINE))) > MOST_CANDIDATES:
        return f"an offer may name at most {MOST_CANDIDATES} candidates, got {count}"
    return None


def _with_local_candidates(sdp: str) -> str:
    """Without the candidates that a server on loopback cannot reach: a browser's ``.local`` names cost a second to look
    up. Its own checks make it known, so these are not the last candidates either."""
    kept = (line for line in sdp.splitlines() if line != "a=end-of-candidates" and not _is_foreign(line))
    return "\r\n".join(kept) + "\r\n"


def _is_foreign(line: str) -> bool:
    words = line.split()
    return line.startswith("a=candidate:") and not any(word.startswith("127.") or word == "::1" for word in words[4:5])
