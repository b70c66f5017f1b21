"""Which prompt each frame is made with, so that viewers can be told when the first one of a prompt is shown."""

from __future__ import annotations

from collections import deque

from ..scope_integration.prompt_box import Prompt

KEPT = 64  # prompts whose numbers are known


class Arrivals:
    """Prompts are numbered as they are asked for; the one that a stream begins with is 0.

    asked: the number of the last one. shown: that of the frame that was taken last. Not safe for threads: whoever has
    it guards it.
    """

    def __init__(self, first: Prompt):
        self.asked = self.shown = 0
        self._numbers: deque[tuple[int, object]] = deque([(0, first.prompt)], maxlen=KEPT)
        self._waiting: deque[list[int]] = deque()  # a prompt's number, and how many frames of it wait

    def ask(self, prompt: Prompt) -> int:
        """A prompt is asked for: its number."""
        self.asked += 1
        self._numbers.append((self.asked, prompt.prompt))
        return self.asked

    def number(self, prompt: object) -> int:
        """The number of what a block was made with: of all prompts that say the same, the last."""
        return next((number for number, asked in reversed(self._numbers) if asked == prompt), self.shown)

    def made(self, number: int, frames: int) -> None:
        """Frames of this prompt wait, behind those that waited before."""
        self._waiting.append([number, frames])

    def take(self) -> None:
        """The first of the frames that wait is taken."""
        if self._waiting:
            first = self._waiting[0]
            self.shown = first[0]
            first[1] -= 1
            if not first[1]:
                self._waiting.popleft()

    def clear(self) -> None:
        """No frame waits any more."""
        self._waiting.clear()
