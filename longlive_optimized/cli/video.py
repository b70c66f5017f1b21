"""Frames to a file: mp4, GIF or WebP."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import numpy as np

from ..video_time import TRAINED_FPS


class Mp4Writer:
    """H.264, pictures ``enlarge`` times as large as they come; HD is BT.709, smaller ones BT.601, and tagged so. Use as
    a context manager. fps: frames a second.

    Its folder exists. Raises OSError where the file cannot be written.
    """

    def __init__(self, path: Path, height: int, width: int, enlarge: int = 1, fps: int = TRAINED_FPS):
        import av

        from .. import h264

        self._as_frame = h264.as_frame
        self._container = av.open(str(path), "w")
        self._size = enlarge * height, enlarge * width
        self._stream = h264.add_stream(self._container, *self._size, fps, {"crf": "18", "preset": "medium"})
        self._stream.time_base = Fraction(1, fps)
        self.frames = 0

    def write(self, frames: np.ndarray) -> None:
        """Append uint8 frames [T, H, W, 3]."""
        for picture in frames:
            frame = self._as_frame(picture, *self._size)
            frame.pts, self.frames = self.frames, self.frames + 1
            self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


class Gathered:
    """As Mp4Writer, for GIF and WebP: written at the end, as one picture's colours depend on all."""

    def __init__(self, path: Path, enlarge: int, fps: int):
        self._path, self._how, self._blocks = path, {"scale": enlarge, "fps": fps}, []
        self.frames = 0

    def write(self, frames: np.ndarray) -> None:
        """Append uint8 frames [T, H, W, 3]."""
        self._blocks.append(frames)
        self.frames += len(frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        import numpy as np

        from ..video import Video

        if self._blocks:
            Video(np.concatenate(self._blocks)).save(self._path, **self._how)


class Unwritten:
    """As Mp4Writer, of a rank whose frames another one writes: counts them."""

    def __init__(self) -> None:
        self.frames = 0

    def write(self, frames: np.ndarray) -> None:
        self.frames += len(frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        pass
