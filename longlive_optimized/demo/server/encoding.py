"""A picture is encoded once for all who watch a stream, whatever their number: once for each codec that they take.

aiortc encodes for every viewer by themselves, unless their track gives packets that are encoded already. So one
encoder, aiortc's own, makes packets, and each viewer's sender puts them into RTP of its own. What one encoder for many
asks for:

- Who joins, and who has lost something, needs a key frame. One serves all; more than one in ``KEY_SECONDS`` is not
  made, so that one bad connection does not cost the others their bits.
- One rate has to suit all. It is that of the slowest, as each viewer's connection is made to carry it or loses frames;
  but never less than ``FLOOR`` of what the picture asks for where others watch too, or one would spoil it for all:
  such a viewer sees it in jumps. Browsers begin with a low estimate, so one who joins others counts after
  ``SETTLE_SECONDS``. Every change begins with a key frame: there is at most one in ``RATE_SECONDS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
from aiortc import RTCRtpCodecParameters, RTCRtpSender
from aiortc.codecs import depayload, h264, vpx
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtp import RTCP_PSFB_APP, RtcpPsfbPacket, unpack_remb_fci

from ...video_time import RTP_CLOCK
from .metrics import Metrics

log = logging.getLogger(__name__)

TIME_BASE = Fraction(1, RTP_CLOCK)
BITS_PER_PIXEL = 0.25
FITTED_FPS = 40  # pictures a second that bits are fitted to
H264_FPS = 30  # pictures a second that aiortc's H.264 encoder divides its bits among, whatever their time stamps
KEY_SECONDS = 0.5  # between two key frames that viewers ask for
SETTLE_SECONDS = 5.0  # after which a viewer's feedback counts where others watch
RATE_SECONDS = 2.0  # between two looks at the rate
FLOOR = 0.25  # of the full rate, where several watch
MOST_UNSENT = 60  # packets that may wait to be sent to one viewer
_IDR = re.compile(rb"\x00\x00\x01[\x05\x25\x45\x65]")  # a start code, then a unit of the kind that needs no other


class ViewerTrack(MediaStreamTrack):
    """One viewer's video: packets of the encoder that serves all of their codec.

    codec: its name, once it is agreed upon. rate: bits per second that the viewer says they can take; None before that.
    ask_for_key: set by the encoder; called where the viewer needs a key frame.
    """

    kind = "video"

    def __init__(self, metrics: Metrics):
        super().__init__()
        self._sent, self._dropped = metrics.sent, metrics.dropped.labels("viewer lags")
        self._waiting: deque[av.Packet] = deque()
        self._some, self._broken = asyncio.Event(), True
        self._clock = asyncio.get_running_loop().time
        self._joined = self._clock()
        self.codec, self.rate = "", None
        self._sender: RTCRtpSender | None = None
        self._pts: int | None = None  # of the packet that was taken last
        self._origin: int | None = None  # RTP time of the time stamp 0
        self.ask_for_key: Callable[[], None] = lambda: None

    def send(self, packet: av.Packet, is_key: bool) -> None:
        """Send a packet. After a gap nothing is sent before a key frame."""
        if self._broken and not is_key:
            return
        self._broken = False
        self._waiting.append(packet)
        if len(self._waiting) > MOST_UNSENT:
            self._dropped.inc(len(self._waiting))
            self._waiting.clear()
            self._broken = True
            self.ask_for_key()
        self._some.set()

    @property
    def settled(self) -> bool:
        """Whether ``rate`` says more of the viewer's connection than of how it began."""
        return self._clock() - self._joined > SETTLE_SECONDS

    def follow(self, sender: RTCRtpSender) -> None:
        """Hear what its viewer's feedback says of the rate, and ask for a key frame where they need one."""
        handle, self._sender = sender._handle_rtcp_packet, sender

        async def hear(packet) -> None:
            await handle(packet)
            if isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_APP:
                with contextlib.suppress(ValueError):  # of another kind
                    rate, sources = unpack_remb_fci(packet.fci)
                    self.rate = rate if sender._ssrc in sources else self.rate

        # aiortc has no public names for them: it would tell the viewer's own encoder, which encodes nothing.
        vars(sender).update(_handle_rtcp_packet=hear, _send_keyframe=lambda: self.ask_for_key())

    async def recv(self) -> av.Packet:
        """The next packet for the viewer."""
        self._find_origin()
        while not self._waiting:
            if self.readyState != "live":
                raise MediaStreamError
            self._some.clear()
            await self._some.wait()
        self._sent.inc()
        packet = self._waiting.popleft()
        self._pts = packet.pts
        return packet

    def rtp_time(self, pts: int) -> int | None:
        """The RTP time stamp with which the viewer gets a picture; None before it is known."""
        return None if self._origin is None else (self._origin + pts) % 2**32

    def _find_origin(self) -> None:
        """aiortc begins RTP times with a random one, which it keeps to itself: its last packet tells it."""
        if self._origin is None and self._pts is not None:
            stamp = vars(self._sender).get("_RTCRtpSender__rtp_timestamp") if self._sender else None
            self._origin = None if stamp is None else (stamp - self._pts) % 2**32

    def stop(self) -> None:
        """End the track."""
        super().stop()
        self._waiting.clear()
        self._some.set()


class SharedEncoder:
    """Encodes a stream's pictures for all of its viewers who take a codec, in threads of the event loop's.

    codec: ``VP8`` or ``H264``. depth: pictures that may wait; then the oldest makes way for the newest. rate: bits per
    second that the picture asks for. fps: pictures a second that it is given. Belongs to one event loop.
    """

    def __init__(self, codec: str, depth: int, rate: int, metrics: Metrics):
        self._codec = RTCRtpCodecParameters(mimeType=f"video/{codec}", clockRate=RTP_CLOCK)
        self._depth, self._full, self.fps = depth, rate, float(H264_FPS)
        self._encoded, self._dropped = metrics.encoded, metrics.dropped.labels("encoder lags")
        self._tracks: set[ViewerTrack] = set()
        self._pictures: deque[tuple[np.ndarray, int]] = deque()
        self._some, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self._key_wanted, self._key_at = False, float("-inf")
        self._rate_at = float("-inf")
        self._encoder = self._new_encoder()
        self._task = asyncio.create_task(self._run(), name=f"{codec} encoder")

    @property
    def is_needed(self) -> bool:
        """Whether anyone watches by it."""
        return bool(self._tracks)

    def join(self, track: ViewerTrack) -> None:
        """Send what is encoded to one more viewer, from a key frame on."""
        self._tracks.add(track)
        track.ask_for_key = self.ask_for_key
        self.ask_for_key()

    def leave(self, track: ViewerTrack) -> None:
        """Send nothing to this viewer any more."""
        self._tracks.discard(track)
        track.ask_for_key = lambda: None

    def show(self, picture: np.ndarray, pts: int) -> None:
        """Encode a picture, planar YUV [3/2 H, W], which must not change afterwards."""
        while len(self._pictures) >= self._depth:
            self._pictures.popleft()
            self._dropped.inc()
        self._pictures.append((picture, pts))
        self._some.set()

    def set_rate(self, rate: int) -> None:
        """The picture asks for so many bits per second from now on: it has another size."""
        self._full, self._rate_at = rate, float("-inf")

    def ask_for_key(self) -> None:
        """Make one of the next frames a key frame."""
        self._key_wanted = True

    def close(self) -> None:
        """End it."""
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            while not self._pictures:
                self._some.clear()
                await self._some.wait()
            picture, pts = self._pictures.popleft()
            try:
                await self._encode(picture, pts)
            except Exception:  # the video goes on, with another encoder and a key frame
                log.exception("a frame could not be encoded")
                self._encoder = self._new_encoder()
                self._key_wanted, self._key_at = True, float("-inf")

    async def _encode(self, picture: np.ndarray, pts: int) -> None:
        frame = av.VideoFrame.from_numpy_buffer(picture, format="yuv420p")
        frame.pts, frame.time_base = pts, TIME_BASE  # which the encoder replaces by its own
        now = self._loop.time()
        self._follow_rates(now)
        force = self._key_wanted and now - self._key_at >= KEY_SECONDS
        data = await self._loop.run_in_executor(None, self._compress, frame, force)
        if not data:
            return
        self._encoded.inc()
        is_key = is_key_frame(self._codec.name, data)
        if is_key:
            self._key_wanted, self._key_at = False, now
        packet = av.Packet(data)
        packet.pts, packet.time_base = pts, TIME_BASE
        for track in self._tracks:
            track.send(packet, is_key)

    def _compress(self, frame: av.VideoFrame, force: bool) -> bytes:
        """The frame as one packet; aiortc's encoder gives it in the pieces that one viewer's RTP would take."""
        pieces, _ = self._encoder.encode(frame, force)
        return b"".join(depayload(self._codec, piece) for piece in pieces)

    def _follow_rates(self, now: float) -> None:
        if now - self._rate_at < RATE_SECONDS:
            return
        self._rate_at = now
        alone = len(self._tracks) == 1
        known = [track.rate for track in self._tracks if track.rate and (alone or track.settled)]
        least = 0 if alone else round(FLOOR * self._full)
        rate = max(least, min([self._full, *known]))
        spread = min(1.0, H264_FPS / self.fps) if self._codec.name == "H264" else 1.0
        self._encoder.target_bitrate = round(spread * rate)

    def _new_encoder(self) -> Vp8Encoder | H264Encoder:
        encoder = Vp8Encoder() if self._codec.name == "VP8" else H264Encoder()
        encoder.target_bitrate = self._full
        return encoder


def is_key_frame(codec: str, data: bytes) -> bool:
    """Whether an encoded frame can be decoded without any other; codec: ``VP8`` or ``H264``."""
    if codec.upper() == "VP8":
        return bool(data) and not data[0] & 1
    return _IDR.search(data) is not None


def fit_bitrate(height: int, width: int) -> int:
    """Bits per second that show such a video well."""
    return round(BITS_PER_PIXEL * width * height * FITTED_FPS)


def allow_bitrate(bits_per_second: int) -> None:
    """Let this process's encoders start at, and go up to, so many bits a second."""
    # aiortc's ceilings of 1.5 and 3 Mbit/s suit calls, and it offers no other way to raise them.
    for codec in (vpx, h264):
        highest = max(bits_per_second, codec.MIN_BITRATE)
        vars(codec).update(DEFAULT_BITRATE=highest, MAX_BITRATE=highest)
