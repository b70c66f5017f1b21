"""What ``generate`` is given to start from and to follow: files of videos and pictures, block by block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..media import read_picture, read_video, video_seconds
from ..video_time import BLOCK_PIXEL_FRAMES, FIRST_PIXEL_FRAMES, TRAINED_FPS

if TYPE_CHECKING:
    import numpy as np

    from ..engine.request import Control

FIRST_PICTURED = BLOCK_PIXEL_FRAMES + 1  # frames that a first block sees: one latent frame more than of a later one

_ROUNDED = 2e-3  # seconds: files say milliseconds

Video = Annotated[Path | None, typer.Option(help="Start from this video; --noise-scale says how near to it.")]
NoiseScale = Annotated[float, typer.Option(help="Share of noise over --video, 0.1 to 1: less keeps more of it.")]
ControlVideo = Annotated[
    Path | None, typer.Option("--control", help="Follow this video: depth, pose, scribble, flow ... (VACE).")
]
Mask = Annotated[
    Path | None, typer.Option(help="With --control: where to make something new (white), or to keep it (black).")
]
Reference = Annotated[list[Path] | None, typer.Option(help="A picture of what shall be seen; the first one counts.")]
FirstFrame = Annotated[Path | None, typer.Option(help="The picture that the video begins with.")]
LastFrame = Annotated[Path | None, typer.Option(help="The picture that the video ends with; it fills its last block.")]
ControlScale = Annotated[float, typer.Option(help="How strongly control, pictures and masks act, 0 to 2.")]


class Clip:
    """A file's frames at 16 a second, asked for in their order; a single picture, and the last frame, stand still.

    seconds: its length, None of a single picture. Raises FileNotFoundError and ValueError naming ``option`` and the
    file.
    """

    def __init__(self, option: str, path: Path):
        self._option = option
        with _naming(option):
            self.seconds = video_seconds(path)
            self._file = read_video(path)
            self._now, self._ahead = next(self._file), next(self._file, None)
        self._frames: list[np.ndarray] = []  # from frame ``_start`` on
        self._start = 0

    def frames(self, start: int, count: int) -> list[np.ndarray]:
        """``count`` frames uint8 [H, W, 3] from frame ``start`` on, which follows, or is among, those before."""
        del self._frames[: start - self._start]
        self._start = start
        with _naming(self._option):
            while len(self._frames) < count:
                self._frames.append(self._at((start + len(self._frames)) / TRAINED_FPS))
        return self._frames[:count]

    def _at(self, second: float) -> np.ndarray:
        while self._ahead is not None and self._ahead.second <= second + _ROUNDED:
            self._now, self._ahead = self._ahead, next(self._file, None)
        return self._now.picture


@dataclass
class Inputs:
    """What is given, opened; ``length`` in seconds is that of the shorter one of what is started from and followed."""

    video: Clip | None
    control: Clip | None
    mask: Clip | None
    references: list[np.ndarray]
    first: np.ndarray | None
    last: np.ndarray | None
    noise_scale: float
    scale: float

    @property
    def length(self) -> float | None:
        lengths = [clip.seconds for clip in (self.video, self.control) if clip and clip.seconds]
        return min(lengths, default=None)

    @property
    def steers(self) -> bool:
        """Whether VACE is needed."""
        return bool(self.control or self.references) or self.first is not None or self.last is not None

    @property
    def first_frames(self) -> int:
        """Pixel frames of the first block."""
        return FIRST_PICTURED if self.video else FIRST_PIXEL_FRAMES

    def fields(self, start: int, is_last: bool) -> dict:
        """Fields of the BlockRequest for the block whose first frame has the number ``start``."""
        count = BLOCK_PIXEL_FRAMES if start else FIRST_PICTURED
        fields: dict = {}
        if self.video:
            fields = {"video": self.video.frames(start, count), "noise_scale": self.noise_scale}
        return fields | {"control": self._steering(start, count, is_last)}

    def _steering(self, start: int, count: int, is_last: bool) -> Control | None:
        from ..engine.request import Control

        pictures = {
            "frames": self.control and self.control.frames(start, count),
            "masks": self.mask and self.mask.frames(start, count),
            # Beside control frames it takes the place of a latent frame, and moves the others: not in every block.
            "references": self.references if self.references and not (self.control and start) else None,
            "first_frame": None if start else self.first,
            "last_frame": self.last if is_last else None,
        }
        if all(given is None for name, given in pictures.items() if name != "masks"):
            return None
        return Control(**pictures, scale=self.scale)


def open_inputs(
    video: Path | None,
    control: Path | None,
    mask: Path | None,
    reference: list[Path] | None,
    first_frame: Path | None,
    last_frame: Path | None,
    noise_scale: float,
    control_scale: float,
) -> Inputs:
    """Open what is given. Raises FileNotFoundError and ValueError naming the option."""
    if mask and not control:
        raise ValueError("--mask needs --control, of which it says what to keep")
    if not 0.1 <= noise_scale <= 1:
        raise ValueError(f"--noise-scale must lie in 0.1 to 1, got {noise_scale:g}")
    if not 0 <= control_scale <= 2:
        raise ValueError(f"--control-scale must lie in 0 to 2, got {control_scale:g}")
    return Inputs(
        video=Clip("--video", video) if video else None,
        control=Clip("--control", control) if control else None,
        mask=Clip("--mask", mask) if mask else None,
        references=[_picture("--reference", path) for path in reference or ()],
        first=_picture("--first-frame", first_frame) if first_frame else None,
        last=_picture("--last-frame", last_frame) if last_frame else None,
        noise_scale=noise_scale,
        scale=control_scale,
    )


def _picture(option: str, path: Path) -> np.ndarray:
    with _naming(option):
        return read_picture(path)


@contextlib.contextmanager
def _naming(option: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{option}: {error}") from error
