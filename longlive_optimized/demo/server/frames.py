"""Frames that are made and wait to be shown."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

import numpy as np

from ..scope_integration.prompt_box import Prompt
from .arrivals import Arrivals


class Frames:
    """Of one stream, in their order. Not safe for threads: whoever has them guards them.

    coming: how many more are on their way from the device. scene: of the frame that was taken last; another one where
    the video has begun anew in between. arrivals: which prompt each is made with.
    """

    def __init__(self, prompt: Prompt):
        self.arrivals, self.coming, self.scene = Arrivals(prompt), 0, 0
        self._waiting: deque[tuple[int, np.ndarray]] = deque()  # with the scene of each
        self._scenes = 0
        self._begins_at = self._taken_at = float("-inf")  # when the first one is late; when the last one was taken
        self._shown = False  # whether one was taken since someone watches

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, pictures: Iterable[np.ndarray], number: int, new_scene: bool) -> None:
        """Those of a block, uint8 [H, W, 3], made with the prompt of this number."""
        before, self._scenes = len(self._waiting), self._scenes + new_scene
        self._waiting.extend((self._scenes, picture) for picture in pictures)
        self.arrivals.made(number, len(self._waiting) - before)

    def take(self) -> np.ndarray:
        """The next one; there must be one."""
        self._taken_at, self._shown = time.monotonic(), True
        self.arrivals.take()
        self.scene, frame = self._waiting.popleft()
        return frame

    def drop(self) -> int:
        """Forget those that wait: how many."""
        dropped = len(self._waiting)
        self._waiting.clear()
        self.arrivals.clear()
        return dropped

    def are_awaited(self, patience: float) -> None:
        """Someone waits for the first one, which is late after so many seconds."""
        self._begins_at, self._shown = time.monotonic() + patience, False

    def hold(self) -> None:
        """From now on the next one is awaited, though the last one was taken long ago."""
        self._taken_at = time.monotonic()

    def late_at(self, interval: float) -> float:
        """When those who watch have none left, of those that come too, taking one each interval of so many seconds."""
        if not self._shown:
            return self._begins_at
        return self._taken_at + (len(self._waiting) + self.coming + 1) * interval
