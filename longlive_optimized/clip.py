"""Pictures to a file that moves, mp4, GIF or WebP, as large as one likes."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import av
import av.filter
import numpy as np
from av.error import BlockingIOError, EOFError

from . import h264
from .video_time import TRAINED_FPS

Format = Literal["mp4", "gif", "webp"]
MEDIA_TYPES: dict[Format, str] = {"mp4": "video/mp4", "gif": "image/gif", "webp": "image/webp"}
FEW_PIXELS = 2**15  # of a picture, up to which WebP keeps it exactly
MOST_SCALE = 8
MOST_PICTURE = 2**23  # pixels of an enlarged picture
MOST_CLIP = {"mp4": 2**32, "gif": 2**27, "webp": 2**28}  # pixels of all pictures together: time and memory to write it
MP4 = {"crf": "18", "preset": "veryfast"}
DITHER = "dither=bayer:bayer_scale=3"  # of GIF, a fixed pattern: what rests does not flicker
GIF_CLOCK, WEBP_CLOCK = 100, 1000  # ticks a second
ENDLESS = {"loop": "0"}


class Shot(NamedTuple):
    """A picture, RGB uint8 [H, W, 3], from when on it is shown and for how long, in frames of the clip."""

    picture: np.ndarray
    start: int
    frames: int = 1


class Clip:
    """What is to be written. shots: begins to read them anew, in their order, the first at 0; GIF reads twice, so that
    nothing need be held. scale: each pixel becomes so many in height and width. fps: frames a second.

    Raises ValueError naming ``scale`` or ``seconds`` for what would be too large.
    """

    def __init__(
        self,
        shots: Callable[[], Iterable[Shot]],
        height: int,
        width: int,
        frames: int,
        form: Format,
        scale: int = 1,
        fps: int = TRAINED_FPS,
    ):
        size = f"{scale * height}x{scale * width}"
        if scale * scale * height * width > MOST_PICTURE:
            most = max(1, math.isqrt(MOST_PICTURE // (height * width)))
            raise ValueError(f"scale: {scale} makes pictures of {size}, and here at most {most} is possible")
        if frames * scale * scale * height * width > MOST_CLIP[form]:
            most = MOST_CLIP[form] // (scale * scale * height * width)
            raise ValueError(
                f"seconds: {form} of {size} may have at most {most / fps:.3g}, and {frames / fps:.3g} "
                "were wanted: take fewer, a smaller scale, or mp4"
            )
        self._shots, self._few = shots, height * width <= FEW_PIXELS
        self._size, self._form, self._scale = (height, width), form, scale
        self._height, self._width, self._fps = scale * height, scale * width, fps

    def write(self, target: Any) -> None:
        """Write it to a file object or path."""
        write = {"mp4": self._write_mp4, "gif": self._write_gif, "webp": self._write_webp}[self._form]
        write(target)

    def _write_mp4(self, target: Any) -> None:
        with av.open(target, "w", format="mp4") as container:
            stream = h264.add_stream(container, self._height, self._width, self._fps, MP4)
            stream.codec_context.thread_count = 1  # or the bytes depend on the number of cores
            stream.time_base = Fraction(1, self._fps)
            for shot in self._enlarged():
                frame = h264.as_frame(shot.picture, self._height, self._width)
                container.mux(stream.encode(_timed(frame, shot, self._fps, self._fps)))
            container.mux(stream.encode())

    def _write_webp(self, target: Any) -> None:
        own = {"lossless": str(int(self._few)), "quality": "80", "compression_level": "1"}
        with av.open(target, "w", format="webp", options=ENDLESS) as container:
            stream = self._add_stream(container, "libwebp_anim", "bgra" if self._few else "yuv420p", WEBP_CLOCK, own)
            for shot in self._enlarged():
                frame = av.VideoFrame.from_ndarray(shot.picture, format="rgb24").reformat(format=stream.pix_fmt)
                container.mux(stream.encode(_timed(frame, shot, WEBP_CLOCK, self._fps)))
            container.mux(stream.encode())

    def _write_gif(self, target: Any) -> None:
        palette, last = self._palette()
        graph = av.filter.Graph()
        video, colours = _source(graph, self._height, self._width, self._fps), graph.add_buffer(**_form_of(palette))
        use, sink = graph.add("paletteuse", DITHER), graph.add("buffersink")
        video.link_to(use, 0, 0)
        colours.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()
        colours.push(palette)
        colours.push(None)
        until, since = (_ticks(at, GIF_CLOCK, self._fps) for at in (last.start + last.frames, last.start))
        stays = until - since
        with av.open(target, "w", format="gif", options=ENDLESS | {"final_delay": str(stays)}) as container:
            stream = self._add_stream(container, "gif", "pal8", GIF_CLOCK, {})
            waiting: deque[Shot] = deque()
            for shot in itertools.chain(self._enlarged(), [None]):
                if shot:
                    waiting.append(shot)
                video.push(_frame(shot, self._fps) if shot else None)
                for frame in _pull(sink):
                    container.mux(stream.encode(_timed(frame, waiting.popleft(), GIF_CLOCK, self._fps)))
            container.mux(stream.encode())

    def _palette(self) -> tuple[av.VideoFrame, Shot]:
        """The 256 colours that suit all pictures, and the last of these."""
        graph, last = av.filter.Graph(), None
        video, find, sink = _source(graph, *self._size, self._fps), graph.add("palettegen"), graph.add("buffersink")
        video.link_to(find)
        find.link_to(sink)
        graph.configure()
        for last in self._shots():
            video.push(_frame(last, self._fps))
        video.push(None)
        (palette,) = _pull(sink)
        assert last
        palette.pts, palette.time_base = 0, Fraction(1, self._fps)
        return palette, last

    def _add_stream(self, container, codec: str, pixels: str, clock: int, options: dict[str, str]):
        stream = container.add_stream(codec, rate=clock, options=options)
        stream.width, stream.height, stream.pix_fmt = self._width, self._height, pixels
        stream.codec_context.time_base = Fraction(1, clock)
        return stream

    def _enlarged(self) -> Iterator[Shot]:
        for shot in self._shots():
            yield shot._replace(picture=enlarged(shot.picture, self._scale))


def enlarged(picture: np.ndarray, scale: int) -> np.ndarray:
    """A picture [H, W, 3] of which each pixel has become ``scale`` times ``scale``."""
    return picture if scale == 1 else picture.repeat(scale, 0).repeat(scale, 1)


def _source(graph: av.filter.Graph, height: int, width: int, fps: int):
    base = Fraction(1, fps)
    return graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=base)


def _frame(shot: Shot, fps: int) -> av.VideoFrame:
    return _timed(av.VideoFrame.from_ndarray(shot.picture, format="rgb24"), shot, fps, fps)


def _timed(frame: av.VideoFrame, shot: Shot, clock: int, fps: int) -> av.VideoFrame:
    """A shot's frame with its time, in ticks of so many a second."""
    frame.pts, frame.time_base = _ticks(shot.start, clock, fps), Fraction(1, clock)
    return frame


def _ticks(frames: int, clock: int, fps: int) -> int:
    return round(Fraction(frames * clock, fps))


def _form_of(frame: av.VideoFrame) -> dict[str, Any]:
    return {"width": frame.width, "height": frame.height, "format": frame.format, "time_base": frame.time_base}


def _pull(sink) -> Iterator[av.VideoFrame]:
    """The frames that a filter has ready."""
    with contextlib.suppress(BlockingIOError, EOFError):
        while True:
            yield sink.pull()
