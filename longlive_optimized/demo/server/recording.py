"""The last seconds of the video, kept compressed, to be downloaded as clips.

What is kept are the frames that the engine made, each for 1/16 s, the model's time: how fast they were shown, what was
lost on the way to a viewer, and pauses are not in a clip.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np

from ... import h264
from ...clip import FEW_PIXELS, Clip, Format, Shot
from ...video_time import RTP_CLOCK, TRAINED_FPS

log = logging.getLogger(__name__)

TICKS = RTP_CLOCK // TRAINED_FPS  # of a frame
SEGMENT = TRAINED_FPS  # frames: what is forgotten at a time
MOST_WAITING = 64 * 2**20  # bytes of frames that may wait to be encoded: four blocks of 480x832
MOST_KEPT = 256 * 2**20  # bytes of what is kept, whatever its seconds
MOST_CLIPS = 3  # that may wait to be made
OPTIONS = {"preset": "superfast", "tune": "zerolatency", "crf": "20"}  # 3-5 ms a frame of 832x480 on one core
EXACT = {"preset": "superfast", "tune": "zerolatency", "qp": "0", "x264-params": "cpu-independent=1"}


class _Kept(NamedTuple):
    """About a second of video, playable on its own: frames from ``first`` on, the last one before ``end``."""

    first: int
    end: int
    data: bytes


class _Segment:
    """As ``_Kept``, still open. Small pictures are kept exactly, which browsers do not play; others as an mp4 has
    them."""

    def __init__(self, first: int, height: int, width: int):
        self._first, self._end, self._data = first, first, io.BytesIO()
        self._container, self._size = av.open(self._data, "w", format="mpegts"), (height, width)
        self._exact = height * width <= FEW_PIXELS
        if self._exact:
            self._stream = self._container.add_stream("libx264rgb", rate=TRAINED_FPS, options=EXACT)
            self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "rgb24"
        else:
            self._stream = h264.add_stream(self._container, height, width, TRAINED_FPS, OPTIONS)
        self._stream.codec_context.thread_count = 1
        self._stream.codec_context.time_base = Fraction(1, TRAINED_FPS)

    @property
    def full(self) -> bool:
        return self._end - self._first >= SEGMENT

    def add(self, picture: np.ndarray, number: int) -> None:
        exact = self._exact
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24") if exact else h264.as_frame(picture, *self._size)
        frame.pts, frame.time_base = number - self._first, Fraction(1, TRAINED_FPS)
        self._container.mux(self._stream.encode(frame))
        self._end = number + 1

    def close(self) -> _Kept:
        self._container.mux(self._stream.encode())
        self._container.close()
        return _Kept(self._first, self._end, self._data.getvalue())


class Recorder:
    """Keeps at most so many seconds, and at most MOST_KEPT bytes, the newest. Encodes in a thread of its own; if that
    lags, frames are skipped, and the one before stands for them.
    """

    def __init__(self, seconds: int):
        self.seconds, self.skipped, self._count, self._waiting = seconds, 0, 0, 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recording")
        self._clips = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clips")
        self._clips_due: deque[Future] = deque()
        self._pending: deque[tuple[Future, int]] = deque()
        self._done: deque[_Kept] = deque()  # oldest first
        self._open: _Segment | None = None
        self._size = 0, 0

    def add(self, frames: np.ndarray) -> None:
        """Append frames, RGB uint8 [T, H, W, 3]; returns at once. They must not change afterwards. Called by one
        thread at a time; after ``close`` without effect."""
        first, self._count = self._count, self._count + len(frames)
        while self._pending and self._pending[0][0].done():
            self._waiting -= self._pending.popleft()[1]
        if self._waiting and self._waiting + frames.nbytes > MOST_WAITING:
            self.skipped += len(frames)
            return
        with contextlib.suppress(RuntimeError):  # it has been closed
            self._pending.append((self._thread.submit(self._add, frames, first), frames.nbytes))
            self._waiting += frames.nbytes

    @property
    def busy(self) -> bool:
        """Whether so many clips are being made that no more should be asked for."""
        while self._clips_due and self._clips_due[0].done():
            self._clips_due.popleft()
        return len(self._clips_due) >= MOST_CLIPS

    def clip(self, seconds: float, form: Format = "mp4", scale: int = 1) -> Future[bytes]:
        """About the last ``seconds``, in whole segments, at most all that is kept; empty if nothing was made yet.

        form: of the file. scale: each pixel becomes so many in height and width. Raises ValueError, from the future,
        naming what would be too large.
        """
        kept = self._thread.submit(self._last_of_all, seconds)
        made = self._clips.submit(lambda: self._made(kept.result(), form, scale))
        self._clips_due.append(made)
        return made

    def close(self) -> None:
        """Forget everything."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._clips.shutdown(wait=False, cancel_futures=True)

    def _add(self, frames: np.ndarray, first: int) -> None:
        try:
            if frames.shape[1:3] != self._size:  # which one file cannot hold
                self._forget()
                self._size = frames.shape[1:3]
            for number, picture in enumerate(frames, first):
                if self._open is None:
                    self._open = _Segment(number, *self._size)
                self._open.add(picture, number)
                if self._open.full:
                    self._close_segment(self._open)
        except Exception:  # nobody waits for it
            log.exception("frames could not be recorded")
            self._open = None

    def _forget(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = None
        self._done.clear()

    def _close_segment(self, segment: _Segment) -> None:
        self._done.append(segment.close())
        self._open = None
        while len(self._last(self.seconds)) < len(self._done) or sum(len(kept.data) for kept in self._done) > MOST_KEPT:
            self._done.popleft()

    def _last(self, seconds: float) -> list[_Kept]:
        """The fewest segments, from the end, that hold so many seconds; all if they hold fewer."""
        since = (self._done[-1].end if self._done else 0) - seconds * TRAINED_FPS
        return [kept for kept in self._done if kept.end > since]

    def _last_of_all(self, seconds: float) -> list[_Kept]:
        if self._open is not None:
            self._close_segment(self._open)
        return self._last(seconds)

    def _made(self, kept: Sequence[_Kept], form: Format, scale: int) -> bytes:
        if not kept:
            return b""
        height, width = self._size
        if form == "mp4" and scale == 1 and height * width > FEW_PIXELS:
            return _join(kept)
        out, frames = io.BytesIO(), kept[-1].end - kept[0].first
        Clip(lambda: _shots(kept), height, width, frames, form, scale).write(out)
        return out.getvalue()


def _sources(kept: Sequence[_Kept]) -> Iterator[tuple[Any, int, int]]:
    """The segments, opened one after the other, each with when its first and what follows its last frame are shown, in
    frames from the first segment on."""
    begin = kept[0].first
    ends = [*(following.first for following in kept[1:]), kept[-1].end]
    for segment, end in zip(kept, ends, strict=True):
        with av.open(io.BytesIO(segment.data), "r", format="mpegts") as source:
            yield source, segment.first - begin, end - begin


def _starts(times: Sequence[int | None], first: int, end: int) -> list[int]:
    """When each frame of a segment is shown, and what follows the last."""
    known = [time for time in times if time is not None]
    return [*(first + round((time - known[0]) / TICKS) for time in known), end]


def _join(kept: Sequence[_Kept]) -> bytes:
    """The segments' pictures, as they are, one after another in an mp4."""
    out, stream = io.BytesIO(), None
    with av.open(out, "w", format="mp4") as target:
        for source, first, end in _sources(kept):
            if stream is None:
                stream = target.add_stream_from_template(source.streams.video[0])
                stream.time_base = Fraction(1, RTP_CLOCK)  # which PyAV before 17 takes from the rate instead
            packets = [packet for packet in source.demux(video=0) if packet.dts is not None]
            starts = _starts([packet.dts for packet in packets], first, end)
            for packet, (start, following) in zip(packets, itertools.pairwise(starts), strict=True):
                packet.dts = packet.pts = TICKS * start
                packet.duration, packet.stream = TICKS * (following - start), stream
                target.mux(packet)
    return out.getvalue()


def _shots(kept: Sequence[_Kept]) -> Iterator[Shot]:
    """The segments' pictures."""
    for source, first, end in _sources(kept):
        frames = list(source.decode(video=0))
        starts = _starts([frame.pts for frame in frames], first, end)
        for frame, (start, following) in zip(frames, itertools.pairwise(starts), strict=True):
            yield Shot(frame.to_ndarray(format="rgb24"), start, following - start)
