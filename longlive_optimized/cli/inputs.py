"""What ``generate`` is to follow beside the prompt: videos, masks and pictures from files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..video_time import BLOCK_PIXEL_FRAMES, FIRST_PIXEL_FRAMES

if TYPE_CHECKING:
    import numpy as np

    from ..footage import Footage


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """The options of ``generate``, as they are given."""

    video: Path | None = None
    noise_scale: float | None = None
    control: Path | None = None
    mask: Path | None = None
    reference: Sequence[Path] = ()
    first_frame: Path | None = None
    last_frame: Path | None = None
    control_scale: float | None = None

    @property
    def steer(self) -> bool:
        """Whether VACE's module is wanted."""
        return bool(self.control or self.reference or self.first_frame or self.last_frame)

    def check(self) -> None:
        """Raise ValueError naming an option that is out of range, or that lacks another one."""
        _check_range("--noise-scale", self.noise_scale, 0.1, 1)
        _check_range("--control-scale", self.control_scale, 0, 2)
        if self.noise_scale is not None and not self.video:
            raise ValueError("--noise-scale needs --video, which it says how much of to keep")
        if self.mask and not self.control:
            raise ValueError("--mask needs --control, the video that it says what to keep of")
        if self.control_scale is not None and not self.steer:
            raise ValueError("--control-scale needs --control, --reference, --first-frame or --last-frame")

    def files(self) -> list[tuple[str, Path]]:
        """Options and the files that they name."""
        named = [("--" + name.replace("_", "-"), value) for name, value in vars(self).items()]
        return [(option, value) for option, value in named if isinstance(value, Path)] + [
            ("--reference", path) for path in self.reference
        ]

    def given(self) -> dict[str, Any]:
        """Those that are given, for a report."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in values.items() if value not in (None, ())}


class Inputs:
    """The files that are named, opened. They have as many pictures as the video: what is shorter begins again.

    length: pictures of the shorter one of --video and --control; None where there are neither, or still pictures alone.
    Raises ValueError naming the option, here and where a file turns out to be damaged in its midst.
    """

    def __init__(self, options: InputOptions, height: int, width: int):
        options.check()
        self._options = options
        self._video, self._control, self._mask = (
            _opened(name, getattr(options, name), height, width) for name in ("video", "control", "mask")
        )
        self._references = [_picture("reference", path) for path in options.reference]
        self._first, self._last = (_picture(name, getattr(options, name)) for name in ("first_frame", "last_frame"))
        moving = [footage for footage in (self._video, self._control) if footage and not footage.still]
        self.length = min((footage.length for footage in moving), default=None)

    def whole_blocks(self, frames: int) -> int:
        """As many pictures, or with a last frame, as many as make its block whole."""
        if self._last is None:
            return frames
        first = FIRST_PIXEL_FRAMES if self._video is None else BLOCK_PIXEL_FRAMES + 1
        return first + max(0, -(-(frames - first) // BLOCK_PIXEL_FRAMES)) * BLOCK_PIXEL_FRAMES

    def of_block(self, start: int, end: int) -> dict[str, Any]:
        """A BlockRequest's fields for the block whose first picture is number ``start``, of a video of ``end``."""
        from ..engine.request import Control

        count = BLOCK_PIXEL_FRAMES + (start == 0)
        made = count if start or self._video else FIRST_PIXEL_FRAMES
        asked: dict[str, Any] = {}
        if self._video:
            asked["video"] = _frames("video", self._video, start, count)
            if self._options.noise_scale is not None:
                asked["noise_scale"] = self._options.noise_scale
        steer: dict[str, Any] = {
            "frames": self._control and _frames("control", self._control, start, count),
            "masks": self._mask and _frames("mask", self._mask, start, count),
            "references": self._references or None,
            "first_frame": self._first if start == 0 else None,
            "last_frame": self._last if start + made >= end else None,
        }
        steer = {name: given for name, given in steer.items() if given is not None}
        if steer:
            if self._options.control_scale is not None:
                steer["scale"] = self._options.control_scale
            asked["control"] = Control(**steer)
        return asked


def _check_range(option: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise ValueError(f"{option} must lie in [{low}, {high}], got {value}")


def _opened(name: str, path: Path | None, height: int, width: int) -> Footage | None:
    if path is None:
        return None
    from ..footage import Footage

    with _named(name):
        return Footage(path, height, width)


def _picture(name: str, path: Path | None) -> np.ndarray | None:
    if path is None:
        return None
    from ..footage import read_picture

    with _named(name):
        return read_picture(path)


def _frames(name: str, footage: Footage, start: int, count: int) -> Sequence[np.ndarray]:
    with _named(name):
        return footage.frames(start, count)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    option = "--" + name.replace("_", "-")
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"{option}: {error}") from error


def _plain(value: Any) -> Any:
    return [*map(str, value)] if isinstance(value, list | tuple) else str(value) if isinstance(value, Path) else value
