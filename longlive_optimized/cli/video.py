"""Frames to an mp4 file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import numpy as np

from ..video_time import TRAINED_FPS


class Mp4Writer:
    """H.264, 16 frames a second, pictures ``enlarge`` times as large as they come; HD is BT.709, smaller ones BT.601,
    and tagged so. Use as a context manager.

    Its folder exists. Raises OSError where the file cannot be written.
    """

    def __init__(self, path: Path, height: int, width: int, enlarge: int = 1):
        import av

        from .. import h264

        self._as_frame = h264.as_frame
        self._container = av.open(str(path), "w")
        self._size = enlarge * height, enlarge * width
        self._stream = h264.add_stream(self._container, *self._size, TRAINED_FPS, {"crf": "18", "preset": "medium"})
        self._stream.time_base = Fraction(1, TRAINED_FPS)
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
