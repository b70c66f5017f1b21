"""Pictures and videos that come in: read by FFmpeg, upright, scaled to cover a size; RGB uint8."""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import cast

import av
import numpy as np

from .h264 import MATRIX, colours
from .video_time import TRAINED_FPS

MOST_ELONGATED = 8  # sides of a picture: longer strips would be scaled to far more than what is kept of them
_UNTAGGED = 2  # colour space
_SLACK = 0.002  # seconds by which a container may round times


def cover(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """A frame as it is meant to stand, [height, width, 3]: scaled to cover that, what protrudes cut off on both sides
    alike. Raises ValueError for a strip."""
    if max(frame.height, frame.width) > MOST_ELONGATED * min(frame.height, frame.width):
        raise ValueError(f"a picture's sides must be in proportions of 1 to 8, got {frame.width}x{frame.height}")
    turns = _quarter_turns(frame)
    lying = (width, height) if turns % 2 else (height, width)
    scale = max(lying[0] / frame.height, lying[1] / frame.width)
    size = max(lying[0], round(frame.height * scale)), max(lying[1], round(frame.width * scale))
    picture = _rgb(frame, *size, "AREA" if scale < 1 else "BICUBIC")
    top, left = (size[0] - lying[0]) // 2, (size[1] - lying[1]) // 2
    return np.ascontiguousarray(np.rot90(picture[top : top + lying[0], left : left + lying[1]], turns))


def read_picture(path: str | PathLike[str]) -> np.ndarray:
    """The picture in a file, or a video's first, [H, W, 3] as it is meant to stand; what is transparent becomes white.

    Raises OSError, ValueError naming the file.
    """
    with _told(path), av.open(str(path)) as container:
        for frame in container.decode(_video_of(container)):
            flat = _on_white(frame)
            return np.ascontiguousarray(np.rot90(_rgb(flat, flat.height, flat.width, "POINT"), _quarter_turns(frame)))
    raise ValueError(f"{path} holds no picture")


def decode_picture(data: bytes, most_pixels: int) -> av.VideoFrame:
    """The picture in a PNG, JPEG or WebP file's bytes, over white. Raises ValueError saying what is wrong."""
    codec = next((codec for codec, marks in _MARKS.items() if all(data[at:].startswith(m) for at, m in marks)), None)
    if codec is None:
        raise ValueError("a picture must be a PNG, JPEG or WebP file")
    decoder = cast(av.VideoCodecContext, av.CodecContext.create(codec, "r"))
    decoder.options = {"max_pixels": str(most_pixels)}
    try:
        frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
    except av.FFmpegError:
        frames = []
    if not frames:
        raise ValueError(f"the picture cannot be read: it is damaged, or has more than {most_pixels} pixels")
    return _on_white(frames[0])


_MARKS = {
    "png": ((0, b"\x89PNG\r\n\x1a\n"),),
    "mjpeg": ((0, b"\xff\xd8\xff"),),
    "webp": ((0, b"RIFF"), (8, b"WEBP")),
}


class Footage:
    """A video file's pictures at the model's 16 a second, scaled to cover a size. Behind its end it begins again, so
    a still picture stays.

    length: pictures, as long as the file lasts. still: whether it is one picture. Raises OSError, ValueError naming
    the file.
    """

    def __init__(self, path: str | PathLike[str], height: int, width: int):
        self._path, self._size = path, (height, width)
        with _told(path), av.open(str(path)) as container:
            stream = _video_of(container)
            rate = float(stream.average_rate or TRAINED_FPS)
            shown = [p for p in container.demux(stream) if p.pts is not None and p.size and not p.is_discard]
            times = sorted(float(p.pts * p.time_base) for p in shown if p.pts is not None)
        if not times:
            raise ValueError(f"{path} holds no picture")
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        lasts = statistics.median(gaps) if gaps else 1 / rate  # what containers say of the last one is often wrong
        self.still = len(times) == 1
        self.length = 1 if self.still else max(1, round((times[-1] - times[0] + lasts) * TRAINED_FPS))
        self._rate = rate
        self._pictures = self._endless()
        self._kept, self._start = deque([next(self._pictures)]), 0

    def frames(self, start: int, count: int) -> Sequence[np.ndarray]:
        """``count`` pictures [H, W, 3] from number ``start`` on, which must not go back. Raises as the constructor."""
        while self._start < start:
            if not self._kept:
                self._kept.append(next(self._pictures))
            self._kept.popleft()
            self._start += 1
        while len(self._kept) < count:
            self._kept.append(next(self._pictures))
        return [*self._kept][:count]

    def _endless(self) -> Iterator[np.ndarray]:
        while True:
            yield from self._once()

    def _once(self) -> Iterator[np.ndarray]:
        """The file's pictures from its beginning to its end: at each instant the one that is shown then."""
        shown, given = None, 0
        for time, frame in self._decoded():
            while shown is not None and given < self.length and given / TRAINED_FPS < time - _SLACK:
                yield shown
                given += 1
            if given / TRAINED_FPS < time + 1 / TRAINED_FPS:  # or the next one will come before it is shown
                shown = cover(frame, *self._size)
        if shown is None:
            raise ValueError(f"{self._path} holds no picture")
        for _ in range(given, self.length):
            yield shown

    def _decoded(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Frames and their seconds since the first."""
        with _told(self._path), av.open(str(self._path)) as container:
            stream, first, last = _video_of(container), None, 0.0
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                time = frame.time if frame.time is not None else last + 1 / self._rate
                first, last = time if first is None else first, time
                yield time - first, _on_white(frame)


class _told:
    """Names a file in FFmpeg's errors."""

    def __init__(self, path: str | PathLike[str]):
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, av.FFmpegError):
            if isinstance(error, OSError) and not isinstance(error, ValueError):
                raise OSError(f"{self._path} cannot be read: {error.strerror}") from error
            raise ValueError(f"{self._path} is no picture or video that FFmpeg reads: {error.strerror}") from error


def _video_of(container) -> av.VideoStream:
    if not container.streams.video or container.format.name == "tty":  # FFmpeg paints what texts say
        raise ValueError(f"{container.name} holds no video")
    return container.streams.video[0]


def _on_white(frame: av.VideoFrame) -> av.VideoFrame:
    if not (frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)):
        return frame
    rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
    opacity = rgba[..., 3:]
    rgb = (rgba[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255
    return av.VideoFrame.from_ndarray(rgb.astype(np.uint8), format="rgb24")


def _rgb(frame: av.VideoFrame, height: int, width: int, interpolation: str) -> np.ndarray:
    matrix = MATRIX[colours(frame.height, frame.width)] if frame.colorspace == _UNTAGGED else None
    form = {"height": height, "width": width, "format": "rgb24", "interpolation": interpolation}
    return frame.reformat(**form, src_colorspace=matrix).to_ndarray()


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counterclockwise, to make it upright."""
    return round(frame.rotation / 90) % 4
