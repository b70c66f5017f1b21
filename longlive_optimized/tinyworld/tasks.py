"""What the flow stage trains on: a stream's first block, its first blocks, its midst, or a change of prompt, as scripts
over clips."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

from ..video_time import BLOCK_FRAMES
from .data import CUTS
from .script import Script

# Prompts of a script's rows: of what is denoised; of what came before a change of prompt; and of the sinks, where an
# even earlier prompt made them.
NOW, PAST, SINKS = range(3)

_FRAMES = 8 * BLOCK_FRAMES  # of a script that is no switch
_AFTER = 4 * BLOCK_FRAMES  # frames under the new prompt
_FAR = tuple(BLOCK_FRAMES * n for n in (8, 9, 11, 15, 23, 39, 71, 135, 199, 263, 334))  # where a midst begins


@dataclass(frozen=True, eq=False)
class Task:
    """A script, and where each of its rows comes from: (0, the clip; 1, the sinks' clip) and the latent frame in it.

    Few in number and each made once, so that what is computed from one can be kept.
    """

    script: Script
    sources: list[tuple[int, int]]
    cut: int | None  # the latent frame at which the clip changes scene

    @property
    def begins(self) -> bool:
        """Whether its first row is a stream's first frame, made from noise."""
        return self.script.rows[0].noisy

    @property
    def opening(self) -> bool:
        """Whether it is one block and nothing else."""
        return len(self.script.passes) == 1


def draw_task(random: Random) -> Task:
    """An opening, the hardest and the shortest, as often as one of the others, for one of the windows in which a block
    sees the one before it."""
    if random.random() < 0.5:
        return opening()
    window = random.choice((12, 12, 12, 9))
    kind = random.choice(("beginning", "midst", "midst", "switch", "switch"))
    if kind == "beginning":
        return beginning(window)
    if kind == "midst":
        positions = random.choice(("relative", "relative", "base"))
        return midst(window, positions, _FAR[0] if positions == "relative" else random.choice(_FAR))
    return switch(window, random.choice(CUTS))


@cache
def opening() -> Task:
    """The first block of a stream."""
    script = Script()
    script.noisy(0, NOW)
    return Task(script, [(0, row.frame) for row in script.rows], None)


@cache
def beginning(window: int) -> Task:
    """The first blocks of a stream."""
    script = Script(window)
    for start in range(0, _FRAMES, BLOCK_FRAMES):
        script.noisy(start, NOW)
        script.clean(start, NOW)
    return Task(script, [(0, row.frame) for row in script.rows], None)


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
    return Task(script, [place[row.frame] for row in script.rows], None)


@cache
def switch(window: int, cut: int) -> Task:
    """A stream up to frame ``cut``, its window once more under the next prompt, and four blocks under that."""
    script = Script(window)
    old_sinks = cut > window  # then the recache leaves them as they are
    for start in range(0, cut, BLOCK_FRAMES):
        script.clean(start, SINKS if old_sinks and start == 0 else PAST)
    script.recache(cut, NOW)
    for start in range(cut, cut + _AFTER, BLOCK_FRAMES):
        script.noisy(start, NOW)
        script.clean(start, NOW)
    return Task(script, [(int(old_sinks and row.frame < BLOCK_FRAMES), row.frame) for row in script.rows], cut)
