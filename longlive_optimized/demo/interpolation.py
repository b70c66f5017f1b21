"""Pictures between a video's frames, for a rate that is not the frames' own: a plain blend of the two."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SLIVER = 1e-6  # seconds by which a picture may be early: what sums of intervals are off


@dataclass(frozen=True)
class Tween:
    """A picture that is due at ``at``, in seconds: between two frames, ``weight`` of the way."""

    at: float
    before: np.ndarray
    after: np.ndarray
    weight: float

    def picture(self) -> np.ndarray:
        """The picture; that of the frames which it equals, where it does."""
        return blend(self.before, self.after, self.weight)


class Tweens:
    """Evenly timed pictures of a video whose frames come at another pace.

    Which frame is due now is where the picture arrives at the frame's end, coming from the frame before: so all is
    shown one frame late, whatever the rate of pictures. Nothing is blended across scenes: of a new one the first frame
    is shown at once, and rests until the second is there.
    """

    def __init__(self) -> None:
        self._frame: np.ndarray | None = None
        self._scene: int | None = None
        self._next = -math.inf

    def next(self, frame: np.ndarray, scene: int, due: float, interval: float, fps: float | None) -> list[Tween]:
        """The pictures from ``due`` until the frame after this one is due, ``interval`` seconds later.

        frame: uint8. scene: another number where it continues nothing. fps: pictures a second; with None the frame is
        the picture.
        """
        before = self._frame if scene == self._scene and self._frame is not None else frame
        self._frame, self._scene = frame, scene
        if fps is None:
            self._next = -math.inf
            return [Tween(due, frame, frame, 1.0)]
        first = max(self._next, due)
        count = max(0, math.ceil((due + interval - SLIVER - first) * fps))
        self._next = first + count / fps
        times = [first + i / fps for i in range(count)]
        return [Tween(at, before, frame, min(1.0, (at - due) / interval)) for at in times]


def blend(before: np.ndarray, after: np.ndarray, weight: float) -> np.ndarray:
    """Two uint8 pictures of one shape, mixed; weight: of ``after``, 0 to 1, rounded to 1/256."""
    share = round(256 * weight)
    if before is after or share == 0:
        return before
    if share == 256:
        return after
    mixed = before.astype(np.uint16)
    mixed *= np.uint16(256 - share)
    mixed += after * np.uint16(share)
    mixed += np.uint16(128)
    mixed >>= np.uint16(8)
    return mixed.astype(np.uint8)
