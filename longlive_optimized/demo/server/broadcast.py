"""Frames to everyone who watches, at an even rate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np

from ...engine.timing import percentile
from ...video_time import RTP_CLOCK
from ..interpolation import Tween, Tweens
from .encoding import SharedEncoder, ViewerTrack
from .feed import Feed
from .metrics import StreamMetrics
from .pacing import FrameClock

log = logging.getLogger(__name__)

REPEAT = 0.5  # seconds after which the last picture is sent again: for those who join while nothing moves
RATE_WINDOW = 2.0  # seconds that the shown rate is taken over
INTERVALS = 1000  # that the percentile is taken over


class Broadcast:
    """The frame clock: takes frames from a stream and shows each to every viewer when it is due; with interpolation
    pictures between them, one frame later.

    Time stamps are due times, so playback stays even though the event loop is not. A late block moves all that follows;
    no frame is skipped here, as at most a block waits, but pictures between frames are where there is no time for them.
    Belongs to one event loop.

    new_encoder: makes that of a codec, by name, for all viewers who take it. on_prompt: called with the number of a
    prompt and a time stamp, as the first picture of it is shown.
    """

    def __init__(
        self,
        feed: Feed,
        metrics: StreamMetrics,
        new_encoder: Callable[[str], SharedEncoder],
        on_prompt: Callable[[int, int], None] = lambda number, pts: None,
    ):
        self._feed, self._metrics, self._new_encoder = feed, metrics, new_encoder
        self._on_prompt, self._prompt = on_prompt, 0  # the number of the prompt that is shown
        self._encoders: dict[str, SharedEncoder] = {}
        self._tracks: set[ViewerTrack] = set()
        self._clock, self._start = FrameClock(), 0.0
        self._news = asyncio.Event()
        self._last: np.ndarray | None = None
        self._tweens, self._frames, self._pictures = Tweens(), Rate(), Rate()
        self._intervals: deque[float] = deque(maxlen=INTERVALS)
        self._before: float | None = None  # when the last frame was due; None at the start and after a pause
        # Not the event loop's own threads: those are the encoders', and the clock must not wait for them.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="colours")

    def join(self, track: ViewerTrack) -> None:
        """Show the video on one more viewer's track."""
        self._tracks.add(track)
        if track.codec not in self._encoders:
            self._encoders[track.codec] = self._new_encoder(track.codec)
        self._encoders[track.codec].join(track)
        self._feed.set_watched(True)

    def leave(self, track: ViewerTrack) -> None:
        """Forget a viewer's track."""
        track.stop()
        self._tracks.discard(track)
        if encoder := self._encoders.get(track.codec):
            encoder.leave(track)
            if not encoder.is_needed:
                encoder.close()
                del self._encoders[track.codec]
        self._feed.set_watched(bool(self._tracks))

    def set_rate(self, rate: int) -> None:
        """The picture asks for so many bits per second."""
        for encoder in self._encoders.values():
            encoder.set_rate(rate)

    def wake(self) -> None:
        """Frames may have come."""
        self._news.set()

    @property
    def model_fps(self) -> float:
        """Model frames that were shown per second, of late."""
        return self._frames.at(asyncio.get_running_loop().time())

    @property
    def shown_fps(self) -> float:
        """Pictures that were shown per second, of late: as many as model frames without interpolation."""
        return self._pictures.at(asyncio.get_running_loop().time())

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the last intervals between model frames; 0 before there are any."""
        return 1e3 * percentile(self._intervals, 0.99) if self._intervals else 0.0

    async def run(self) -> None:
        """Show frames until cancelled."""
        self._start = asyncio.get_running_loop().time()
        with self._thread:
            while True:
                try:
                    await self._next()
                except Exception:  # the video goes on, whatever is wrong with a frame
                    log.exception("a frame could not be shown")
                    await asyncio.sleep(REPEAT)

    async def _next(self) -> None:
        loop = asyncio.get_running_loop()
        frame = self._feed.take() if self._tracks else None
        if frame is None:
            await self._repeat()
            return
        prompt = self._feed.frames.arrivals.shown
        picture = await loop.run_in_executor(self._thread, to_yuv, frame)
        interval, fps = self._feed.interval, self._feed.config_wished_for.picture_fps
        due = self._clock.next(loop.time(), interval)
        for encoder in self._encoders.values():
            encoder.fps = fps or 1 / interval
        for tween in self._tweens.next(picture, self._feed.frames.scene, due, interval, fps):
            await self._show_tween(tween, fps, prompt)
        self._last = picture
        self._count(due)

    async def _show_tween(self, tween: Tween, fps: float | None, prompt: int) -> None:
        loop = asyncio.get_running_loop()
        if fps and loop.time() > tween.at + 1 / fps:  # the next one is due already
            self._metrics.tween_skipped()
            return
        picture = await loop.run_in_executor(self._thread, tween.picture) if fps else tween.after
        await asyncio.sleep(tween.at - loop.time())
        self._show(picture, tween.at)
        self._pictures.note(tween.at)
        if prompt != self._prompt and (tween.weight or tween.before is tween.after):  # or it is the frame before
            self._prompt = prompt
            self._on_prompt(prompt, self._pts(tween.at))

    def _count(self, due: float) -> None:
        if self._before is not None:
            self._intervals.append(due - self._before)
            self._metrics.frame_shown(due - self._before)
        self._before = due
        self._frames.note(due)

    async def _repeat(self) -> None:
        if self._feed.paused or not self._tracks:
            self._before = None
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPEAT):  # Python 3.11's wait_for may lose a cancellation
                await self._news.wait()
            return
        if self._last is not None:
            self._show(self._last, self._clock.next(asyncio.get_running_loop().time(), 0.0))

    def _show(self, picture: np.ndarray, due: float) -> None:
        for encoder in self._encoders.values():
            encoder.show(picture, self._pts(due))

    def _pts(self, due: float) -> int:
        """A picture's time stamp."""
        return round((due - self._start) * RTP_CLOCK)


class Rate:
    """How many there were a second, of late: since the first one, or the last silence, where that is not long ago."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._first = 0.0

    def note(self, now: float) -> None:
        """There was one more."""
        self._forget(now)
        if not self._times:
            self._first = now
        self._times.append(now)

    def at(self, now: float) -> float:
        """So many a second until now; 0 where there was one alone."""
        self._forget(now)
        since = now - self._first
        if since >= RATE_WINDOW:
            return len(self._times) / RATE_WINDOW
        return (len(self._times) - 1) / since if len(self._times) > 1 else 0.0

    def _forget(self, now: float) -> None:
        while self._times and self._times[0] < now - RATE_WINDOW:
            self._times.popleft()


def to_yuv(frame: np.ndarray) -> np.ndarray:
    """RGB uint8 [H, W, 3] as planar YUV 4:2:0, uint8 [3/2 H, W], as encoders take it."""
    return av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p").to_ndarray()
