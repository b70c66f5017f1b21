"""Which frames a prompt switch recomputes, and where they go (docs/model.md 5; design: prompt switch)."""

from __future__ import annotations

from typing import NamedTuple


class Recache(NamedTuple):
    """One forward over latent frames [start, start + frames); sinks begin at frame ``origin``."""

    start: int
    frames: int
    origin: int


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
