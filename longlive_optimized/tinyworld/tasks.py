"""What the flow stage trains on: a stream's first block, its first blocks, its midst, or a change of prompt and what
follows, as scripts over clips."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

from ..video_time import BLOCK_FRAMES
from .data import AFTER, CUTS
from .script import Script

NOW, SINKS = range(2)  # prompts of a script's rows: of what is denoised; and of sinks that an earlier prompt made

_FRAMES = 8 * BLOCK_FRAMES  # of a script that is no switch
_FAR = tuple(BLOCK_FRAMES * n for n in (8, 15, 39, 135, 334))  # where a midst begins
_SHARES = {"opening": 6, "change": 9, "beginning": 1, "midst": 2, "switch": 3}


@dataclass(frozen=True, eq=False)
class Task:
    """A script, and where each of its rows comes from: (0, the clip; 1, the sinks' clip) and the latent frame in it.

    Few in number and each made once, so that what is computed from one can be kept.
    """

    script: Script
    sources: list[tuple[int, int]]
    cut: int | None  # the latent frame at which the clip changes scene
    decided: int | None  # the first row of the block on whose layout the noise decides

    @property
    def opening(self) -> bool:
        """Whether it is one block and nothing else."""
        return len(self.script.passes) == 1

    @property
    def guessed(self) -> bool:
        """Whether a pass sees as clean what another denoises."""
        rows = [*zip(self.script.rows, self.sources, strict=True)]
        return bool({source for row, source in rows if row.noisy} & {source for row, source in rows if not row.noisy})


def draw_task(random: Random, plain: bool = False) -> Task:
    """One of the kinds of tasks, for one of the windows in which a block sees the one before it; ``plain``: for the
    window and the positions that streams have if nothing else is said."""
    window = 12 if plain else random.choice((12, 12, 12, 9))
    match random.choices([*_SHARES], [*_SHARES.values()])[0]:
        case "opening":
            return opening()
        case "change":
            return switch(window, random.choice(CUTS), 1)
        case "beginning":
            return beginning(window)
        case "midst":
            positions = "relative" if plain else random.choice(("relative", "relative", "base"))
            return midst(window, positions, _FAR[0] if positions == "relative" else random.choice(_FAR))
        case _:
            return switch(12, random.choice(CUTS))


@cache
def opening() -> Task:
    """The first block of a stream."""
    script = Script()
    script.noisy(0, NOW)
    return Task(script, [(0, row.frame) for row in script.rows], None, 0)


@cache
def beginning(window: int) -> Task:
    """The first blocks of a stream."""
    script = Script(window)
    for start in range(0, _FRAMES, BLOCK_FRAMES):
        script.noisy(start, NOW)
        script.clean(start, NOW)
    return Task(script, [(0, row.frame) for row in script.rows], None, 0)


@cache
def midst(window: int, positions: str, first: int) -> Task:
    """The sinks, then blocks from frame ``first`` on, which show the rest of the clip.

    Two of those only lead in, as what came before them is left out. Where positions are relative, ``first`` is nothing
    to the network.
    """
    script = Script(window, positions=positions)
    script.clean(0, SINKS)
    for start in range(first, first + _FRAMES, BLOCK_FRAMES):
        if start >= first + 2 * BLOCK_FRAMES:
            script.noisy(start, NOW)
        script.clean(start, NOW)
    place = {
        row.frame: (1, row.frame) if row.frame < BLOCK_FRAMES else (0, row.frame - first + BLOCK_FRAMES)
        for row in script.rows
    }
    return Task(script, [place[row.frame] for row in script.rows], None, None)


@cache
def switch(window: int, cut: int, blocks: int = AFTER // BLOCK_FRAMES) -> Task:
    """A stream at frame ``cut``: its window under the next prompt, and ``blocks`` under that.

    Passes whose keys nothing sees are left out: of what was before, only the sinks stay that a recache leaves as they
    are, and the last block has no context pass.
    """
    script = Script(window)
    old_sinks = cut > window
    if old_sinks:
        script.clean(0, SINKS)
    script.recache(cut, NOW)
    first = len(script.rows)
    for start in range(cut, cut + blocks * BLOCK_FRAMES, BLOCK_FRAMES):
        if start > cut:
            script.clean(start - BLOCK_FRAMES, NOW)
        script.noisy(start, NOW)
    sources = [(int(old_sinks and row.frame < BLOCK_FRAMES), row.frame) for row in script.rows]
    return Task(script, sources, cut, first)
