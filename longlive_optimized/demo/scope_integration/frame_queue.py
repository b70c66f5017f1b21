"""Frames of a block, waiting to be shown at a steady rate."""

from __future__ import annotations

from collections import deque

from torch import Tensor


class FrameQueue:
    """Hands out frames in order; a caller that has fallen too far behind skips some.

    A block's frames fall due one after another, ``fps`` a second, from when the block was put in or after the frames
    before it. Times are seconds of one clock, given by the caller.
    """

    def __init__(self) -> None:
        self._frames: deque[Tensor] = deque()
        self.clear()

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, block: Tensor) -> None:
        """Add frames [T, ...] whose making has just been enqueued."""
        self._untimed = 0 if self._frames else 2
        self._frames.extend(block)

    def get(self, now: float, fps: float, depth: int | None) -> Tensor:
        """The next frame. With ``depth``, frames are first skipped until at most so many overdue ones are left."""
        if self._untimed:
            # A block is handed over while the device still makes it: whoever takes its first frame waits for that, so
            # the time until the second one is asked for is not the caller's lag.
            self._untimed -= 1
            self._next_due = max(self._next_due, now)
        self._next_due = min(self._next_due, now + 1 / fps)  # being early is no credit for being late afterwards
        overdue = int((now - self._next_due) * fps)
        if depth is not None:
            for _ in range(min(overdue - depth, len(self._frames) - 1)):
                self._pop(fps)
                self.dropped += 1
        return self._pop(fps)

    def clear(self) -> None:
        """Forget the waiting frames and the count of dropped ones."""
        self._frames.clear()
        self._next_due, self._untimed, self.dropped = 0.0, 0, 0

    def _pop(self, fps: float) -> Tensor:
        self._next_due += 1 / fps
        return self._frames.popleft()
