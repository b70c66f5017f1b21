"""Pictures and videos that come in, read by FFmpeg, as uint8 RGB."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    import av
    import numpy as np
    from av.container import InputContainer

MOST_PIXELS = 1 << 26  # of a picture: a file of a few bytes may claim any size
MOST_ELONGATED = 8  # sides of a picture: longer strips would be scaled to far more than what is kept of them

_USUAL_RATE = 25  # frames a second, of files that say nothing
_UNTAGGED = 2  # colour space (ITU-T H.273)


class Shown(NamedTuple):
    """A picture uint8 [H, W, 3], and when it is shown: seconds from the file's beginning."""

    second: float
    picture: np.ndarray


def read_picture(path: str | PathLike[str]) -> np.ndarray:
    """The picture in a file (PNG, JPEG, WebP ...; a video's first frame), uint8 [H, W, 3], as scope reads it: not
    turned, transparency left out.

    Raises FileNotFoundError, and ValueError naming a file that holds no picture, one in tiles (HEIC of phones), or one
    of more than 2^26 pixels.
    """
    return _first(path).to_ndarray(format="rgb24")


def read_upright(path: str | PathLike[str]) -> np.ndarray:
    """The picture in a file as it is meant to be seen: upright, what is transparent white.

    Raises as ``read_picture``.
    """
    return _upright(_first(path))


def read_video(path: str | PathLike[str], size: tuple[int, int] | None = None) -> Iterator[Shown]:
    """The frames of a video file in their order, as ``read_upright``; size: height and width to ``cover``.

    Raises as ``read_picture`` and ``cover``.
    """
    for second, frame, aspect in _decoded(path):
        yield Shown(second, _upright(frame, aspect) if size is None else cover(frame, *size, aspect))


def video_seconds(path: str | PathLike[str]) -> float | None:
    """How long a video file is, by its packets; None of a single picture. Raises as ``read_picture``."""
    with _opened(path) as file:
        stream = file.streams.video[0]
        packets = [packet for packet in file.demux(stream) if packet.size and not packet.is_discard]
        if len(packets) < 2:
            return None
        times = sorted(float(p.pts * p.time_base) for p in packets if p.pts is not None and p.time_base is not None)
        if len(times) < len(packets):
            return len(packets) / float(stream.average_rate or _USUAL_RATE)
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return times[-1] - times[0] + statistics.median(gaps)  # what containers say of the last one is often wrong


def decode_picture(data: bytes, most_pixels: int) -> av.VideoFrame:
    """The picture in a PNG, JPEG or WebP file's bytes. Raises ValueError saying what is wrong."""
    import av

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
    return frames[0]


_MARKS = {
    "png": ((0, b"\x89PNG\r\n\x1a\n"),),
    "mjpeg": ((0, b"\xff\xd8\xff"),),
    "webp": ((0, b"RIFF"), (8, b"WEBP")),
}


def cover(frame: av.VideoFrame, height: int, width: int, aspect: float = 1) -> np.ndarray:
    """A frame as it is meant to be seen, uint8 [height, width, 3]: upright, what is transparent white, scaled to cover
    that size, what protrudes cut off on both sides alike. aspect: the width of its pixels, in their height. Raises
    ValueError for a strip."""
    import numpy as np

    shown = frame.height, frame.width * aspect
    if max(shown) > MOST_ELONGATED * min(shown):
        raise ValueError(f"a picture's sides must be in proportions of 1 to 8, got {round(shown[1])}x{shown[0]}")
    turns = _quarter_turns(frame)
    lying = (width, height) if turns % 2 else (height, width)
    scale = max(lying[0] / shown[0], lying[1] / shown[1])
    size = max(lying[0], round(shown[0] * scale)), max(lying[1], round(shown[1] * scale))
    picture = _rgb(_on_white(frame), *size, "AREA" if scale < 1 else "BICUBIC")
    top, left = (size[0] - lying[0]) // 2, (size[1] - lying[1]) // 2
    return np.ascontiguousarray(np.rot90(picture[top : top + lying[0], left : left + lying[1]], turns))


def _first(path: str | PathLike[str]) -> av.VideoFrame:
    for _, frame, _ in _decoded(path):
        return frame
    raise ValueError(f"{path} holds no picture")


def _decoded(path: str | PathLike[str]) -> Iterator[tuple[float, av.VideoFrame, float]]:
    """For each frame its seconds since the first, and the width of its pixels, in their height."""
    with _opened(path) as file:
        stream, first = file.streams.video[0], None
        aspect = float(stream.sample_aspect_ratio or 1)
        for number, frame in enumerate(file.decode(stream)):
            if frame.width * frame.height * max(1, aspect) > MOST_PIXELS:
                raise ValueError(f"{path} holds pictures of {frame.width}x{frame.height}, which is too large")
            time = number / float(stream.average_rate or _USUAL_RATE) if frame.time is None else frame.time
            first = time if first is None else first
            yield time - first, frame, aspect


@contextlib.contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[InputContainer]:
    import av
    from av.stream import Disposition

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with av.open(str(path)) as file:
            if not file.streams.video or file.format.name == "tty":  # FFmpeg paints what texts say
                raise ValueError(f"{path} holds no picture")
            if file.streams.video[0].disposition & Disposition.dependent:  # FFmpeg's streams are its tiles
                raise ValueError(f"{path} holds a picture in tiles, as phones write HEIC: save it as JPEG or PNG")
            yield file
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a picture or video: {error.strerror or error}") from error


def _upright(frame: av.VideoFrame, aspect: float = 1) -> np.ndarray:
    import numpy as np

    picture = _rgb(_on_white(frame), frame.height, max(1, round(frame.width * aspect)), "BICUBIC")
    return np.ascontiguousarray(np.rot90(picture, _quarter_turns(frame)))


def _on_white(frame: av.VideoFrame) -> av.VideoFrame:
    if not (frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)):
        return frame
    import av
    import numpy as np

    if frame.format.name == "yuva420p":  # (findings/pyav-rgba-last-columns.sh)
        frame = frame.reformat(format="yuva444p")
    rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
    opacity = rgba[..., 3:]
    rgb = (rgba[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255
    return av.VideoFrame.from_ndarray(rgb.astype(np.uint8), format="rgb24")


def _rgb(frame: av.VideoFrame, height: int, width: int, interpolation: str) -> np.ndarray:
    from .h264 import MATRIX, colours

    matrix = MATRIX[colours(frame.height, frame.width)] if frame.colorspace == _UNTAGGED else None
    form = {"height": height, "width": width, "format": "rgb24", "interpolation": interpolation}
    return frame.reformat(**form, src_colorspace=matrix).to_ndarray()


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counterclockwise, to make it upright."""
    return round(frame.rotation / 90) % 4 if abs(frame.rotation) <= 360 else 0  # of a matrix that turns nothing
