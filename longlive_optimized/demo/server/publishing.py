"""A stream is published elsewhere too, for more viewers than this machine can send to.

What is sent there are the packets that its viewers get, encoded once for all. Where to is an ``Outlet``'s matter;
a room of Janus's is ``janus.py``, a WHIP endpoint ``whip.py``.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Protocol

from .encoding import ViewerTrack

log = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds before another attempt; twice as long after each that fails
LONGEST_REST = 600.0  # seconds that the other end may ask for
CLOSE_SECONDS = 3.0  # that the end of an attempt may take
SPREAD = 0.2  # of a wait: servers that lost the same thing do not come back all at once


class Lost(Exception):
    """Publishing ended, or could not begin: why, in words for whoever runs the server.

    wait: seconds for which the other end wants to be left alone.
    """

    def __init__(self, why: str, wait: float = 0.0):
        super().__init__(why)
        self.wait = wait


class Outlet(Protocol):
    """Where packets can be published.

    address: in words, without secrets.
    """

    address: str

    async def publish(self, track: ViewerTrack, rate: int, begin: Callable[[], None]) -> None:
        """Send a track's packets until that ends, and leave nothing behind, also where this is cancelled.

        rate: bits per second that the picture asks for. begin: to be called once packets can be sent and
        ``track.codec`` is set; none come before that. Raises Lost at the end.
        """
        ...


class Publisher:
    """Publishes a stream, and tries again when that ends. Belongs to one event loop.

    new_track: for one attempt. on_begin, on_end: called with its track when packets are wanted, and when no more are.
    """

    def __init__(
        self,
        outlet: Outlet,
        rate: Callable[[], int],
        new_track: Callable[[], ViewerTrack],
        on_begin: Callable[[ViewerTrack], None],
        on_end: Callable[[ViewerTrack], None],
    ):
        self._outlet, self._rate, self._new_track = outlet, rate, new_track
        self._on_begin, self._on_end = on_begin, on_end
        self._clock = asyncio.get_running_loop().time
        self._lost, self._wait, self._again_at = "", FIRST_WAIT, 0.0
        self._track: ViewerTrack | None = None  # while packets are sent
        self._task = asyncio.create_task(self._run(), name=f"publisher to {outlet.address}")

    @property
    def active(self) -> bool:
        """Whether packets are sent."""
        return self._track is not None

    async def close(self) -> None:
        """End it."""
        while not self._task.done():  # wait_for, of Python 3.11, loses a cancellation where it has just ended
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=CLOSE_SECONDS)

    def status(self) -> dict:
        """How it is doing: phase is ``connecting``, ``publishing`` or ``waiting``; detail: why it has to wait, or what
        ended the attempt before; bitrate: bits per second that the other end says it takes.
        """
        wait = max(0.0, self._again_at - self._clock())
        phase = "publishing" if self.active else "waiting" if wait else "connecting"
        rate = self._track.rate if self._track else None
        where = {"to": self._outlet.address, "phase": phase, "detail": self._lost}
        return where | {"retry_in": round(wait, 1), "bitrate": rate}

    async def _run(self) -> None:
        while True:
            wanted = 0.0
            try:
                await self._publish()
            except Lost as error:
                self._tell(str(error))
                wanted = error.wait
            except Exception as error:  # it goes on, whatever the other end does
                log.exception("publishing to %s failed", self._outlet.address)
                self._tell(f"{type(error).__name__}: {error}")
            await self._rest(min(wanted, LONGEST_REST))

    async def _publish(self) -> None:
        track = self._new_track()
        try:
            await self._outlet.publish(track, self._rate(), lambda: self._begin(track))
        finally:
            track.stop()
            if self.active:
                self._track = None
                self._on_end(track)

    def _begin(self, track: ViewerTrack) -> None:
        again = " again" if self._lost else ""
        log.log(logging.WARNING if again else logging.INFO, "publishing to %s%s", self._outlet.address, again)
        self._track, self._lost, self._wait = track, "", FIRST_WAIT
        self._on_begin(track)

    def _tell(self, why: str) -> None:
        if why != self._lost:
            log.warning("not publishing to %s: %s", self._outlet.address, why)
        self._lost = why

    async def _rest(self, least: float) -> None:
        seconds = max(self._wait * random.uniform(1 - SPREAD, 1 + SPREAD), least)
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._again_at = self._clock() + seconds
        await asyncio.sleep(seconds)
