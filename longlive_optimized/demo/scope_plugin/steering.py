"""VACE's inputs of a session's calls as the engine's ``Control``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from ...engine.request import Control
from ...media import read_picture
from .call_params import CallParams

ONE_SHOT = ("vace_ref_images", "first_frame_image", "last_frame_image")
INPUTS = ("vace_input_frames", "vace_input_masks", *ONE_SHOT)
Complain = Callable[[str, Any, str], None]


class Steering:
    """One session's control. Pictures that scope names once are kept until a block has been made of them.

    assets: the folder of the server's pictures. scale: where a call says none.
    """

    def __init__(self, assets: Path, scale: float, complain: Complain):
        self._assets, self._scale, self._complain = assets, scale, complain
        self._due: dict[str, Tensor] = {}

    def note(self, call: CallParams) -> None:
        """Read the pictures that a call names. What cannot be read is complained about, and left out."""
        for name in ONE_SHOT:
            if given := getattr(call, name):
                path = given if isinstance(given, str) else given[0]
                if not isinstance(given, str) and len(given) > 1:
                    self._complain(name, len(given), "the first picture alone is taken")
                try:
                    self._due[name] = torch.from_numpy(read_picture(found(path, self._assets)))
                except (ValueError, OSError) as error:
                    self._complain(name, path, str(error))

    def control(self, call: CallParams, frames: list[Tensor] | None) -> Control | None:
        """What steers the block of ``call``, whose control frames are ``frames``; None if nothing does."""
        masks = call.vace_input_masks
        if masks is not None and frames is None:
            self._complain("vace_input_masks", "masks", "they need vace_input_frames, and are ignored without")
            masks = None
        pictures = {"frames": frames, "masks": masks}
        pictures |= {"references": None, "first_frame": None, "last_frame": None}
        if "vace_ref_images" in self._due:
            pictures["references"] = [self._due["vace_ref_images"]]
        for name in ("first_frame", "last_frame"):
            pictures[name] = self._due.get(f"{name}_image")  # pyright: ignore[reportArgumentType]
        if all(given is None for given in pictures.values()):
            return None
        scale = self._scale if call.vace_context_scale is None else call.vace_context_scale
        try:
            return Control(**pictures, scale=scale)  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError) as error:
            self._complain("vace_input_frames", "frames", str(error))
            return None

    def block_made(self) -> None:
        """The pictures that were due have been seen."""
        self._due.clear()


def found(path: str, assets: Path) -> Path:
    """The file that a client means by ``path``: that one, or the one of its name among the ``assets``, as a client on
    another system names it. Raises FileNotFoundError."""
    whole = Path(path)
    names = PureWindowsPath(path).name, PurePosixPath(path).name
    places = [whole if whole.is_absolute() else assets / whole, *(assets / name for name in names if name)]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"there is no such file, nor one of that name in {assets}")
