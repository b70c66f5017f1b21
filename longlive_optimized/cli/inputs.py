"""What ``generate`` is given to start from and to follow: files of videos and pictures, block by block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..media import read_upright, read_video, video_seconds
from ..video_time import BLOCK_PIXEL_FRAMES, FIRST_PIXEL_FRAMES, TRAINED_FPS

if TYPE_CHECKING:
    import numpy as np

    from ..engine.request import Control

FIRST_PICTURED = BLOCK_PIXEL_FRAMES + 1  # frames that a first block sees: one latent frame more than of a later one

_ROUNDED = 2e-3  # seconds: files say milliseconds

Video = Annotated[Path | None, typer.Option(help="Start from this video; --noise-scale says how near to it.")]
NoiseScale = Annotated[
    float | None,
    typer.Option(help="Share of noise over --video, 0.1 to 1: less keeps more of it; 0.7.", show_default=False),
]
ControlVideo = Annotated[
    Path | None, typer.Option("--control", help="Follow this video: depth, pose, scribble, flow ... (VACE).")
]
Mask = Annotated[
    Path | None, typer.Option(help="With --control: where to make something new (white), or to keep it (black).")
]
Reference = Annotated[list[Path] | None, typer.Option(help="A picture of what shall be seen; the first one counts.")]
FirstFrame = Annotated[Path | None, typer.Option(help="The picture that the video begins with.")]
LastFrame = Annotated[Path | None, typer.Option(help="The picture that the video ends with; it fills its last block.")]
ControlScale = Annotated[
    float | None,
    typer.Option(help="How strongly control, pictures and masks act, 0 to 2; 1.", show_default=False),
]


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """The options as they are given. Raises ValueError naming one that is out of range, or that lacks another one."""

    video: Path | None = None
    noise_scale: float | None = None
    control: Path | None = None
    mask: Path | None = None
    reference: Sequence[Path] = ()
    first_frame: Path | None = None
    last_frame: Path | None = None
    control_scale: float | None = None

    def __post_init__(self) -> None:
        if self.mask and not self.control:
            raise ValueError("--mask needs --control, of which it says what to keep")
        if self.noise_scale is not None and not self.video:
            raise ValueError("--noise-scale needs --video, of which it says how much to keep")
        if self.control_scale is not None and not self.steers:
            raise ValueError("--control-scale needs --control, --reference, --first-frame or --last-frame")
        if self.noise_scale is not None and not 0.1 <= self.noise_scale <= 1:
            raise ValueError(f"--noise-scale must lie in 0.1 to 1, got {self.noise_scale:g}")
        if self.control_scale is not None and not 0 <= self.control_scale <= 2:
            raise ValueError(f"--control-scale must lie in 0 to 2, got {self.control_scale:g}")

    @property
    def steers(self) -> bool:
        """Whether VACE is needed."""
        return bool(self.control or self.reference or self.first_frame or self.last_frame)

    @property
    def files(self) -> list[tuple[str, Path]]:
        """Each file, behind its option."""
        names = "video", "control", "mask", "first_frame", "last_frame"
        single = [(_option(name), path) for name in names if (path := getattr(self, name))]
        return single + [("--reference", path) for path in self.reference]

    def as_json(self) -> dict:
        """Those that are given."""
        given = {name: value for name, value in vars(self).items() if value not in (None, ())}
        return {name: _plain(value) for name, value in given.items()}


class Clip:
    """A file's frames at 16 a second, scaled to cover ``size`` [height, width], asked for in their order; a single
    picture, and the last frame, stand still.

    seconds: its length, None of a single picture. Raises FileNotFoundError and ValueError naming ``option`` and the
    file.
    """

    def __init__(self, option: str, path: Path, size: tuple[int, int]):
        self._option = option
        with _naming(option):
            self.seconds = video_seconds(path)
            self._file = read_video(path, size)
            first = next(self._file, None)
            if first is None:
                raise ValueError(f"{path} holds no picture")
            self._now, self._ahead = first, next(self._file, None)
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
    options: InputOptions

    @property
    def length(self) -> float | None:
        lengths = [clip.seconds for clip in (self.video, self.control) if clip and clip.seconds]
        return min(lengths, default=None)

    @property
    def first_frames(self) -> int:
        """Pixel frames of the first block."""
        return FIRST_PICTURED if self.video else FIRST_PIXEL_FRAMES

    def fields(self, start: int, is_last: bool) -> dict:
        """Fields of the BlockRequest for the block whose first frame has the number ``start``."""
        count = BLOCK_PIXEL_FRAMES if start else FIRST_PICTURED
        fields: dict = {}
        if self.video:
            fields = {"video": self.video.frames(start, count)}
            if self.options.noise_scale is not None:
                fields["noise_scale"] = self.options.noise_scale
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
        scale = self.options.control_scale
        return Control(**pictures) if scale is None else Control(**pictures, scale=scale)


def open_inputs(options: InputOptions, size: tuple[int, int]) -> Inputs:
    """Open the files, for a video of ``size`` [height, width]. Raises FileNotFoundError and ValueError naming the
    option."""

    def clip(name: str) -> Clip | None:
        path = getattr(options, name)
        return Clip(_option(name), path, size) if path else None

    def picture(name: str) -> np.ndarray | None:
        path = getattr(options, name)
        return _picture(_option(name), path) if path else None

    return Inputs(
        video=clip("video"),
        control=clip("control"),
        mask=clip("mask"),
        references=[_picture("--reference", path) for path in options.reference],
        first=picture("first_frame"),
        last=picture("last_frame"),
        options=options,
    )


def _picture(option: str, path: Path) -> np.ndarray:
    with _naming(option):
        return read_upright(path)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _plain(value: object) -> object:
    return [*map(str, value)] if isinstance(value, list | tuple) else str(value) if isinstance(value, Path) else value


@contextlib.contextmanager
def _naming(option: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{option}: {error}") from error
