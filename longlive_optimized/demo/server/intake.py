"""The frames that one viewer sends, by aiortc, which bounds nothing of what comes in by itself."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable
from typing import TYPE_CHECKING

import av
from aiortc import MediaStreamTrack, RTCRtpCodecParameters, RTCRtpReceiver, RTCRtpTransceiver
from aiortc.jitterbuffer import JitterBuffer
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtcpByePacket

from .encoding import is_key_frame
from .whole_frames import EncodedFrame, FrameBuffer, begins_video, can_replace

if TYPE_CHECKING:
    from aiortc.jitterbuffer import JitterFrame

MOST_UNDECODED = 30  # frames that may wait for the decoder; more are dropped, up to the next key frame
LOOK_SECONDS = 0.2  # between two looks at what comes
STUCK = 5  # looks at which packets came and no frame
# aiortc has no public names for them: what makes frames of packets, and their way to the decoder's thread.
BUFFER, QUEUE = "_RTCRtpReceiver__jitter_buffer", "_RTCRtpReceiver__decoder_queue"


class Intake:
    """A viewer's incoming video: decoded while it is wanted, else left as it comes.

    take: called in the event loop with each frame.
    """

    def __init__(self, transceiver: RTCRtpTransceiver, take: Callable[[av.VideoFrame], None]):
        self._transceiver, self._receiver, self._take = transceiver, transceiver.receiver, take
        self._gate = Gate()
        self._ends_frames = _can_end_frames(self._receiver)
        vars(self._receiver)[QUEUE] = self._gate
        if self._ends_frames:
            self._make_buffer()
        _outlive_goodbyes(self._receiver)
        self._draining: asyncio.Future | None = None
        self._asking: asyncio.Future | None = None

    @property
    def possible(self) -> bool:
        """Whether the viewer's connection may send video."""
        return self._transceiver.currentDirection == "sendrecv"

    @property
    def wanted(self) -> bool:
        """Whether what comes is decoded."""
        return self._gate.wanted

    def follow(self, track: MediaStreamTrack) -> None:
        """Take the track's frames. They are taken off it whether wanted or not, or its queue would grow."""
        self._draining = asyncio.ensure_future(self._drain(track))

    def want(self, wanted: bool) -> None:
        """Decode what comes from now on, or no longer."""
        self._gate.wanted = wanted
        if not wanted:
            self._gate.drop()
            if self._asking:
                self._asking.cancel()
                self._asking = None
        elif self._asking is None:
            self._asking = asyncio.ensure_future(self._look_after())

    def close(self) -> None:
        """Take nothing any more: closing the connection waits for what is still to be decoded."""
        self.want(False)
        if self._draining:
            self._draining.cancel()

    async def _drain(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                if self.wanted and isinstance(frame, av.VideoFrame):
                    self._take(frame)

    async def _look_after(self) -> None:
        """Ask for key frames while frames are left out; and where a lost packet holds up all later ones, forget it.

        aiortc waits for such a packet until 512 others have come: many seconds of a small picture.
        """
        heard, frames, stuck = {}, self._gate.frames, 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            before, heard = heard, {one.source: one.timestamp for one in self._receiver.getSynchronizationSources()}
            if frames != self._gate.frames:
                frames, stuck = self._gate.frames, 0
            elif heard != before:
                stuck += 1
            if stuck >= STUCK:
                self._make_buffer()
                self._gate.whole, stuck = False, 0
            if not self._gate.whole:
                for source in heard:
                    await self._receiver._send_rtcp_pli(source)

    def _make_buffer(self) -> None:
        """Forget all packets that came."""
        buffer = FrameBuffer() if self._ends_frames else JitterBuffer(capacity=512, is_video=True)
        vars(self._receiver)[BUFFER] = buffer


class Gate(queue.Queue):
    """The way to a decoder: of (codec, encoded frame) what is wanted, at most so many at a time; after a gap from a key
    frame on. None ends the decoder.

    whole: whether nothing is missing between the last frame that came and a key frame. frames: how many came.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wanted = self.whole = False
        self.frames = 0

    def put(self, item: tuple | None, block: bool = True, timeout: float | None = None) -> None:
        if item is None:
            super().put(None, block, timeout)
            return
        codec, frame = item
        self._offer(codec, frame)
        for one in getattr(frame, "later", ()):
            one.timestamp += frame.timestamp
            self._offer(codec, one)

    def _offer(self, codec: RTCRtpCodecParameters, frame: JitterFrame | EncodedFrame) -> None:
        self.frames += 1
        gap = getattr(frame, "after_gap", False)
        room = self.wanted and self.qsize() < MOST_UNDECODED
        begins = is_key_frame(codec.name, frame.data) and (not gap or begins_video(codec.name, frame.data))
        self.whole = room and (begins or (self.whole and not gap))
        if self.whole:
            super().put((codec, frame))

    def drop(self) -> None:
        """Leave out what waits, but not the decoder's end."""
        self.whole, ended = False, False
        with contextlib.suppress(queue.Empty):
            while True:
                ended |= self.get_nowait() is None
        if ended:
            super().put(None)


def _can_end_frames(receiver: RTCRtpReceiver) -> bool:
    """Whether the installed aiortc is one whose frames can be taken when they are whole; else they are a frame late."""
    held = vars(receiver)
    return can_replace(held.get(BUFFER)) and isinstance(held.get(QUEUE), queue.Queue)


def _outlive_goodbyes(receiver: RTCRtpReceiver) -> None:
    """Let no RTCP BYE end a receiver's track: browsers send one whenever they set up their encoder anew, and go on."""
    handle = getattr(receiver, "_handle_rtcp_packet", None)

    async def handle_others(packet: object) -> None:
        if handle and not isinstance(packet, RtcpByePacket):
            await handle(packet)

    vars(receiver)["_handle_rtcp_packet"] = handle_others
