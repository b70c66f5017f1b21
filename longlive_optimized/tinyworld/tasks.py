"""What the flow stage trains on: a stream's beginning, its midst, or a change of prompt, as scripts over clips."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

from .data import CUTS
from .script import BLOCK, Script

# Prompts of a script's rows: what is denoised, which may be denied its prompt; its clean context; what came before a
# change of prompt; and the sinks, where an even earlier prompt made them.
NOW, CONTEXT, PAST, SINKS = range(4)

_FRAMES = 8 * BLOCK  # of a script that is no switch
_AFTER = 4 * BLOCK  # frames under the new prompt
_FAR = tuple(BLOCK * n for n in (8, 9, 11, 15, 23, 39, 71, 135, 199, 263, 334))  # first frames of a stream's midst


@dataclass(frozen=True, eq=False)
class Task:
    """A script, and where each of its rows comes from: (0, the clip; 1, the sinks' clip) and the latent frame in it.

    Few in number and each made once, so that what is computed from one can be kept.
    """

    script: Script
    sources: list[tuple[int, int]]
    cut: int | None  # the latent frame at which the clip changes scene


def draw_task(random: Random) -> Task:
    """One of the three, for one of the windows in which a block sees the one before it."""
    window = random.choice((12, 12, 12, 9))
    kind = random.choice(("beginning", "beginning", "midst", "switch", "switch"))
    if kind == "beginning":
        return beginning(window)
    if kind == "midst":
        positions = random.choice(("relative", "relative", "base"))
        return midst(window, positions, _FAR[0] if positions == "relative" else random.choice(_FAR))
    return switch(window, random.choice(CUTS))


@cache
def beginning(window: int) -> Task:
    """The first blocks of a stream."""
    script = Script(window)
    for start in range(0, _FRAMES, BLOCK):
        script.noisy(start, NOW)
        script.clean(start, CONTEXT)
    return Task(script, [(0, row.frame) for row in script.rows], None)


@cache
def midst(window: int, positions: str, first: int) -> Task:
    """The sinks, then blocks from frame ``first`` on, which show the rest of the clip.

    Two of those only lead in, as what came before them is left out. Where positions are relative, ``first`` is nothing
    to the network.
    """
    script = Script(window, positions=positions)
    script.clean(0, SINKS)
    for start in range(first, first + _FRAMES, BLOCK):
        if start >= first + 2 * BLOCK:
            script.noisy(start, NOW)
        script.clean(start, CONTEXT)
    place = {row.frame: (1, row.frame) if row.frame < BLOCK else (0, row.frame - first + BLOCK) for row in script.rows}
    return Task(script, [place[row.frame] for row in script.rows], None)


@cache
def switch(window: int, cut: int) -> Task:
    """A stream up to frame ``cut``, its window once more under the next prompt, and four blocks under that."""
    script = Script(window)
    old_sinks = cut > window  # then the recache leaves them as they are
    for start in range(0, cut, BLOCK):
        script.clean(start, SINKS if old_sinks and start == 0 else PAST)
    script.recache(cut, CONTEXT)
    for start in range(cut, cut + _AFTER, BLOCK):
        script.noisy(start, NOW)
        script.clean(start, CONTEXT)
    return Task(script, [(int(old_sinks and row.frame < BLOCK), row.frame) for row in script.rows], cut)
