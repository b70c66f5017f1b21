"""Which frames a prompt switch recomputes, and where they go (docs/model.md 5; design: prompt switch); and which passes
make a lost ring again."""

from __future__ import annotations

from typing import NamedTuple

from ..video_time import BLOCK_FRAMES


class Recache(NamedTuple):
    """One forward over latent frames [start, start + frames); sinks begin at frame ``origin``."""

    start: int
    frames: int
    origin: int

    @property
    def end(self) -> int:
        return self.start + self.frames

    @property
    def keeps_sinks(self) -> bool:
        """Whether it reads the sinks instead of writing them."""
        return self.start > self.origin


NOTHING = Recache(0, 0, 0)  # what there is of a video that has begun and was never recached


def plan_recache(position: int, window: int, sink: int, global_sink: bool) -> Recache:
    """The recache of a stream whose next block starts at latent frame ``position`` > 0.

    Up to ``window`` frames all are recomputed, sinks included. Later the sinks stay (``global_sink``) and only the
    window - sink frames beside them are recomputed, or the window's oldest frames become the new sinks.
    """
    if position <= window:
        return Recache(0, position, 0)
    if global_sink:
        return Recache(position - (window - sink), window - sink, 0)
    return Recache(position - window, window, position - window)


class Rebuild(NamedTuple):
    """The passes that fill an empty ring: behind the sinks', unless ``first`` writes these, ``first`` and then
    ``blocks``, each a context pass."""

    first: Recache
    blocks: list[Recache]


def plan_rebuild(
    position: int, window: int, sink: int, *, kept: int, last: Recache = NOTHING, first_sink: int = 0
) -> Rebuild:
    """The rebuild of a stream at latent frame ``position`` > 0, of which the last ``kept`` frames are there.

    Where these reach back to the stream's ``last`` recache, or its first frame, the passes since then are done again as
    they were. Otherwise the oldest frames that fill the window are recached, and the passes since then follow.
    ``kept`` must be at least the window, or all.
    """
    first = last
    if position - last.start > kept:
        whole = window - sink
        later = max(0, min(kept - whole, position - window - first_sink)) // BLOCK_FRAMES * BLOCK_FRAMES
        start = position - whole - later
        first = Recache(start, whole, 0 if sink else start)
    blocks, start = [], first.end
    while start < position:
        # The first block of a video that began in video mode has one frame more.
        frames = BLOCK_FRAMES + (0 if start else position % BLOCK_FRAMES)
        blocks.append(Recache(start, frames, 0))
        start += frames
    return Rebuild(first, blocks)
