"""A video that has been made, as Python has it: its frames, a file of it, and how a notebook shows it."""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .plain import whole
from .video_time import TRAINED_FPS

if TYPE_CHECKING:
    import numpy as np

    from .clip import Clip, Format
    from .story import Story

MOST_FPS = 60
FORMS = ("mp4", "gif", "webp")
_SHOWN_WIDTH = 480  # pixels in a notebook, up to which small pictures are enlarged


class Video:
    """frames: RGB, uint8 [T, H, W, 3]. story: what they were made from; None where it is not known. fps: frames a
    second, 16 as the model counts time."""

    def __init__(self, frames: np.ndarray, story: Story | None = None, fps: int = TRAINED_FPS):
        self.frames, self.story, self.fps = frames, story, fps

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.frames) / self.fps

    def save(self, path: str | PathLike[str], *, fps: int | None = None, scale: int = 1) -> Path:
        """Write it as the ending says: ``.mp4`` (H.264), ``.gif`` or ``.webp``, which repeat without end; a file that
        is there is replaced.

        fps: 1 to 60, the video's own by default. scale: 1 to 8, each pixel becomes so many in height and width. Raises
        ValueError naming what is wrong, before anything is written, and OSError.
        """
        path = Path(path)
        clip = self._clip(form_of("path", path), fps, scale)
        with path.open("wb") as file:
            clip.write(file)
        return path

    def _clip(self, form: Format, fps: int | None, scale: int) -> Clip:
        from .clip import MOST_SCALE, Clip, Shot

        fps = self.fps if fps is None else whole("fps", fps, 1, MOST_FPS)
        scale = whole("scale", scale, 1, MOST_SCALE)
        frames = self.frames
        count, height, width, _ = frames.shape

        def shots() -> Iterator[Shot]:
            return (Shot(picture, i) for i, picture in enumerate(frames))

        return Clip(shots, height, width, count, form, scale, fps)

    @functools.cached_property
    def _page(self) -> str:
        width = self.frames.shape[2]
        scale, data = max(1, _SHOWN_WIDTH // width), io.BytesIO()
        self._clip("mp4", None, min(scale, 8)).write(data)
        source = "data:video/mp4;base64," + base64.b64encode(data.getvalue()).decode()
        prompt = html.escape(str(self.story.prompts[0].what) if self.story else "", quote=True)
        return (
            f'<video src="{source}" title="{prompt}" width="{scale * width}" autoplay loop muted controls playsinline '
            'style="image-rendering: pixelated; max-width: 100%"></video>'
        )

    def _repr_html_(self) -> str:
        return self._page

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        return f"<Video of {count} frames, {height}x{width}, {self.seconds:.3g} s>"


def form_of(name: str, path: Path) -> Format:
    """The format that a file's ending says. Raises ValueError naming the argument."""
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMS:
        raise ValueError(f"{name} must end in .mp4, .gif or .webp, got {str(path)!r}")
    return cast("Format", form)
