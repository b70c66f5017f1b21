"""Pictures and videos from files, as uint8 RGB."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import numpy as np

MOST_PIXELS = 1 << 26  # of a picture: a file of a few bytes may claim any size


def read_picture(path: str | PathLike[str]) -> np.ndarray:
    """The picture in a file (PNG, JPEG, WebP ...; a video's first frame), uint8 [H, W, 3]; transparency is left out.

    Raises FileNotFoundError, and ValueError naming a file that holds no picture, or one of more than 2^26 pixels.
    """
    for frame in read_video(path):
        return frame
    raise ValueError(f"{path} holds no picture")


def read_video(path: str | PathLike[str]) -> Iterator[np.ndarray]:
    """The frames of a video file, one after the other, uint8 [H, W, 3]. Raises as ``read_picture``."""
    import av

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with av.open(str(path)) as file:
            if not file.streams.video:
                raise ValueError(f"{path} holds no picture")
            for frame in file.decode(video=0):
                if frame.width * frame.height > MOST_PIXELS:
                    raise ValueError(f"{path} holds pictures of {frame.width}x{frame.height}, which is too large")
                yield frame.to_ndarray(format="rgb24")
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a picture or video: {error.strerror or error}") from error
