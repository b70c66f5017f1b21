"""The last seconds of the video, kept compressed, to be downloaded."""

from __future__ import annotations

import io
import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np

from ... import h264
from ...video_time import RTP_CLOCK

log = logging.getLogger(__name__)

TIME_BASE = Fraction(1, RTP_CLOCK)
SEGMENT = 1.0  # seconds: what is forgotten at a time
LAG = 50  # frames that may wait to be encoded
OPTIONS = {"preset": "superfast", "tune": "zerolatency", "crf": "20"}  # 3-5 ms a frame of 832x480 on one core


class _Segment:
    """About a second of video, which can be played on its own; ``seconds`` is how much it holds."""

    def __init__(self, height: int, width: int):
        self.seconds, self._data = 0.0, io.BytesIO()
        self._container, self._size = av.open(self._data, "w", format="mpegts"), (height, width)
        self._stream = h264.add_stream(self._container, height, width, 30, OPTIONS)
        self._stream.codec_context.thread_count = 1
        self._stream.codec_context.time_base = TIME_BASE

    def add(self, picture: np.ndarray, seconds: float) -> None:
        frame = h264.as_frame(picture, *self._size)
        frame.pts, frame.time_base = round(self.seconds / TIME_BASE), TIME_BASE
        self._container.mux(self._stream.encode(frame))
        self.seconds += seconds

    def close(self) -> bytes:
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._data.getvalue()


class Recorder:
    """Encodes in a thread of its own. Paused time is not in the recording. If the thread lags, frames are skipped, and
    the one before is shown for longer."""

    def __init__(self, seconds: int):
        self.seconds, self.skipped, self._gap = seconds, 0, 0.0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recording")
        self._pending: deque[Future] = deque()
        self._done: deque[tuple[float, bytes]] = deque()  # seconds and data of segments, oldest first
        self._open: _Segment | None = None
        self._size = 0, 0

    def add(self, picture: np.ndarray, seconds: float) -> None:
        """Append a picture, RGB uint8 [H, W, 3], shown for so long; returns at once. It must not change afterwards."""
        while self._pending and self._pending[0].done():
            self._pending.popleft()
        if len(self._pending) >= LAG:
            self.skipped += 1
            self._gap += seconds
            return
        self._pending.append(self._thread.submit(self._add, picture, seconds, self._gap))
        self._gap = 0.0

    def mp4(self, seconds: float) -> Future[bytes]:
        """An mp4 of about the last ``seconds``, in whole segments, at most all that is kept; empty if nothing was
        shown yet.
        """
        return self._thread.submit(self._mp4, seconds)

    def close(self) -> None:
        """Forget everything."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _add(self, picture: np.ndarray, seconds: float, gap: float = 0.0) -> None:
        if picture.shape[:2] != self._size:  # which one file cannot hold
            self._forget()
            self._size = picture.shape[:2]
        if self._open is not None:
            self._open.seconds += gap  # the picture before is shown for longer
        elif self._done:
            before, data = self._done.pop()
            self._done.append((before + gap, data))
        if self._open is None:
            self._open = _Segment(*picture.shape[:2])
        self._open.add(picture, seconds)
        if self._open.seconds >= SEGMENT:
            self._close_segment(self._open)

    def _forget(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = None
        self._done.clear()

    def _close_segment(self, segment: _Segment) -> None:
        self._done.append((segment.seconds, segment.close()))
        self._open = None
        while len(self._last(self.seconds)) < len(self._done):
            self._done.popleft()

    def _last(self, seconds: float) -> list[tuple[float, bytes]]:
        """The fewest segments, from the end, that hold so many seconds; all if they hold fewer."""
        chosen: list[tuple[float, bytes]] = []
        for segment in reversed(self._done):
            if seconds <= 0:
                break
            chosen.append(segment)
            seconds -= segment[0]
        return chosen[::-1]

    def _mp4(self, seconds: float) -> bytes:
        if self._open is not None:
            self._close_segment(self._open)
        segments = self._last(seconds)
        return _join(segments) if segments else b""


def _join(segments: list[tuple[float, bytes]]) -> bytes:
    """The segments' pictures, as they are, one after another in an mp4."""
    out, stream, begin = io.BytesIO(), None, 0.0
    with av.open(out, "w", format="mp4") as target:
        for seconds, data in segments:
            with av.open(io.BytesIO(data), "r", format="mpegts") as source:
                if stream is None:
                    stream = target.add_stream_from_template(source.streams.video[0])
                    stream.time_base = TIME_BASE  # which PyAV before 17 takes from the rate instead
                packets = [(packet, packet.dts) for packet in source.demux(video=0) if packet.dts is not None]
                shift, end = round(begin / TIME_BASE) - packets[0][1], round((begin + seconds) / TIME_BASE)
                ends = [*(dts + shift for _, dts in packets[1:]), end]
                for (packet, dts), following in zip(packets, ends, strict=True):
                    start = dts + shift
                    packet.dts = packet.pts = start
                    packet.duration, packet.stream = following - start, stream
                    target.mux(packet)
            begin += seconds
    return out.getvalue()
