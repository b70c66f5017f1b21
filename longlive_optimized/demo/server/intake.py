"""The frames that one viewer sends, by aiortc, which bounds nothing of what comes in by itself."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable

import av
from aiortc import MediaStreamTrack, RTCRtpTransceiver
from aiortc.mediastreams import MediaStreamError

MOST_UNDECODED = 30  # frames that may wait for the decoder; more are dropped, up to the next key frame
LOOK_SECONDS = 0.2  # between two looks at that


class Intake:
    """A viewer's incoming video: decoded while it is wanted, else left as it comes.

    take: called in the event loop with each frame.
    """

    def __init__(self, transceiver: RTCRtpTransceiver, take: Callable[[av.VideoFrame], None]):
        self._transceiver, self._receiver, self._take = transceiver, transceiver.receiver, take
        self._draining: asyncio.Future | None = None
        self._asking: asyncio.Future | None = None
        self.want(False)

    @property
    def possible(self) -> bool:
        """Whether the viewer's connection may send video."""
        return self._transceiver.currentDirection == "sendrecv"

    def follow(self, track: MediaStreamTrack) -> None:
        """Take the track's frames. They are taken off it whether wanted or not, or its queue would grow."""
        self._draining = asyncio.ensure_future(self._drain(track))

    def want(self, wanted: bool) -> None:
        """Decode what comes from now on, or no longer."""
        self._wanted, self._came = wanted, False
        # Packets are dropped before they are decoded. aiortc has no public name for it.
        self._receiver._enabled = wanted
        if not wanted:
            self._drop_undecoded()
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
                if self._wanted and isinstance(frame, av.VideoFrame):
                    self._came = True
                    self._take(frame)

    async def _look_after(self) -> None:
        """Ask for a key frame until one has come: a decoder that joins late has not seen the last one."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._undecoded().qsize() > MOST_UNDECODED:
                self._drop_undecoded()
                self._came = False
            if not self._came:
                for source in self._receiver.getSynchronizationSources():
                    await self._receiver._send_rtcp_pli(source.source)

    def _drop_undecoded(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._undecoded().get_nowait()

    def _undecoded(self) -> queue.Queue:
        return vars(self._receiver).get("_RTCRtpReceiver__decoder_queue") or queue.Queue()
