"""Who sees whom: the passes that the engine makes one after another, written down so that they can be made at once.

A *row* is one latent frame in one pass: a frame that is denoised, kept as clean context and later recomputed under
another prompt has three rows. In the engine a pass attends to what the ring holds; here each pass names the rows it
attends to, so that a whole stream trains in one forward (``forward.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..engine.recache import plan_recache
from ..video_time import BLOCK_FRAMES


class Row(NamedTuple):
    """One latent frame in one pass."""

    frame: int
    noisy: bool
    prompt: int


class Pass(NamedTuple):
    """Rows that go through the network together, and the rows whose keys they see."""

    rows: tuple[int, ...]
    keys: tuple[tuple[int, int], ...]  # rows, themselves among them, and their positions in time for the rotation


class Script:
    """The passes of one stream, in order. Row numbers count the frames in ``memory`` first, whose keys are known.

    positions: as in the engine's configuration; ``base`` keeps the sinks where they were, ``relative`` moves them along
    with the window.
    """

    def __init__(self, window: int = 12, sink: int = 3, positions: str = "relative", memory: Sequence[int] = ()):
        self.window, self.sink, self.relative = window, sink, positions == "relative"
        self.memory = tuple(memory)
        self.rows: list[Row] = []
        self.passes: list[Pass] = []
        self.held = {frame: row for row, frame in enumerate(self.memory)}  # the clean row of each frame in the ring

    def noisy(self, start: int, prompt: int = 0) -> None:
        """A denoising pass of the block from latent frame ``start``: sees clean context and itself."""
        self._pass(start, BLOCK_FRAMES, noisy=True, prompt=prompt, sinks=True)

    def clean(self, start: int, prompt: int = 0) -> None:
        """The context pass of that block, which later passes see."""
        self._hold(self._pass(start, BLOCK_FRAMES, noisy=False, prompt=prompt, sinks=True))

    def recache(self, position: int, prompt: int) -> None:
        """The window before ``position`` once more, under a new prompt, every frame of it seeing every other."""
        start, frames, _ = plan_recache(position, self.window, self.sink, global_sink=True)
        self._hold(self._pass(start, frames, noisy=False, prompt=prompt, sinks=start >= self.sink))

    def _pass(self, start: int, frames: int, noisy: bool, prompt: int, sinks: bool) -> dict[int, int]:
        """Append a pass over frames [start, start + frames); the row of each."""
        first = len(self.memory) + len(self.rows)
        own = {start + i: first + i for i in range(frames)}
        self.rows += [Row(frame, noisy, prompt) for frame in own]
        oldest = start + frames - (self.window - self.sink)  # of the frames that are no sinks
        seen = {f: row for f, row in self.held.items() if sinks and (f < self.sink or oldest <= f < start)} | own
        shift = max(0, start + frames - self.window) if self.relative else 0
        keys = tuple((row, f + shift if f < self.sink else f) for f, row in seen.items())
        self.passes.append(Pass(tuple(own.values()), keys))
        return own

    def _hold(self, rows: dict[int, int]) -> None:
        self.held |= rows
        oldest = max(self.held) + 1 - (self.window - self.sink)
        self.held = {f: row for f, row in self.held.items() if f < self.sink or f >= oldest}
