"""Pictures and videos from files, as uint8 RGB."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from av.container import InputContainer

MOST_PIXELS = 1 << 26  # of a picture: a file of a few bytes may claim any size


class Shown(NamedTuple):
    """A picture uint8 [H, W, 3], and when it is shown: seconds from the file's beginning."""

    second: float
    picture: np.ndarray


def read_picture(path: str | PathLike[str]) -> np.ndarray:
    """The picture in a file (PNG, JPEG, WebP ...; a video's first frame), uint8 [H, W, 3]; transparency is left out.

    Raises FileNotFoundError, and ValueError naming a file that holds no picture, or one of more than 2^26 pixels.
    """
    for shown in read_video(path):
        return shown.picture
    raise ValueError(f"{path} holds no picture")


def read_video(path: str | PathLike[str]) -> Iterator[Shown]:
    """The frames of a video file, in their order. Raises as ``read_picture``."""
    with _opened(path) as file:
        stream, first = file.streams.video[0], None
        for number, frame in enumerate(file.decode(stream)):
            if frame.width * frame.height > MOST_PIXELS:
                raise ValueError(f"{path} holds pictures of {frame.width}x{frame.height}, which is too large")
            time = number / float(stream.average_rate or 25) if frame.time is None else frame.time
            first = time if first is None else first
            yield Shown(time - first, frame.to_ndarray(format="rgb24"))


def video_seconds(path: str | PathLike[str]) -> float | None:
    """How long a video file is, by its packets; None of a single picture. Raises as ``read_picture``."""
    with _opened(path) as file:
        stream = file.streams.video[0]
        packets = [(p.pts, p.duration or 0) for p in file.demux(stream) if p.size]
        if len(packets) < 2:
            return None
        times = [(pts, length) for pts, length in packets if pts is not None]
        if len(times) < len(packets) or stream.time_base is None:
            return len(packets) / float(stream.average_rate or 25)
        last = max(pts + length for pts, length in times)
        return float((last - min(pts for pts, _ in times)) * stream.time_base)


@contextlib.contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[InputContainer]:
    import av

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with av.open(str(path)) as file:
            if not file.streams.video:
                raise ValueError(f"{path} holds no picture")
            yield file
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a picture or video: {error.strerror or error}") from error
