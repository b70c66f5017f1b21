"""The overlay's panel as a small RGBA picture: laid out once for a size, drawn anew when what it shows has changed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .glyphs import PAD, Face, face

Colour = tuple[int, int, int]
WHITE, LABEL, FAINT = (255, 255, 255), (205, 211, 220), (176, 183, 194)
GOOD, WARNING, ERROR = (110, 231, 168), (252, 196, 62), (255, 107, 107)
GROUND = (11, 14, 20)
GROUND_ALPHA, EDGE_ALPHA, RULE_ALPHA, BAR_ALPHA = 0.84, 0.10, 0.14, 235
SMALLEST = 9  # pixels of text below which the panel is cropped rather than scaled


class Figure(NamedTuple):
    value: str
    unit: str = ""
    colour: Colour = WHITE


class Bar(NamedTuple):
    """One bar of the graph, ``height`` in 0..1."""

    height: float
    colour: Colour


class Panel:
    """The panel at ``em`` pixels of text, for figures of these labels, optimisations, precision, and a graph or none.

    What stays is drawn once; ``draw`` adds figures and bars. The first figure is drawn large.
    """

    def __init__(self, em: int, labels: tuple[str, ...], optimizations: tuple[str, ...], precision: str, graph: bool):
        self._em, self._edge, self._pitch = em, max(1, round(em / 16)), max(2, round(0.2 * em))
        self._regular, self._small = face("regular", em), face("regular", max(SMALLEST, round(0.86 * em)))
        self._bold, self._hero = face("bold", em), face("bold", round(1.75 * em))
        self._left, self._inner = round(0.9 * em), round(11.6 * em)
        self._right = self._left + self._inner
        self._writings: list[tuple[Face, str, int, int, Colour]] = []
        self._rules: list[int] = []

        y = self._left + self._hero.cap_height
        pitch, gap = round(1.42 * em), round(0.25 * em)
        self._lines = [y, *(y + gap + row * pitch for row in range(1, len(labels)))]
        for label, line in zip(labels, self._lines, strict=True):
            self._writings.append((self._regular, label, self._left, line, LABEL))
        y = self._lines[-1]
        if optimizations or precision:
            y = self._list(y, optimizations, precision)
        if graph:
            self._graph = y + round(0.8 * em), y + round(3.2 * em)
            y = self._graph[1]
            self._rules.append(y - self._edge)
        self.height, self.width = y + self._left, self._inner + 2 * self._left
        self.bars = self._inner // self._pitch if graph else 0  # how many fit side by side

    def draw(self, figures: Sequence[Figure], bars: Sequence[Bar]) -> np.ndarray:
        """RGBA [height, width, 4], uint8, colour not premultiplied; the last bar stands at the right."""
        canvas = self._base.copy()
        units = max(self._small.width(figure.unit) for figure in figures)
        end = self._right - units - round(0.25 * self._em)
        for i, (figure, line) in enumerate(zip(figures, self._lines, strict=True)):
            large = self._bold if i else self._hero
            write(canvas, large, figure.value, end - large.width(figure.value), line, figure.colour)
            write(canvas, self._small, figure.unit, self._right - units, line, FAINT)
        for i, bar in enumerate(reversed(bars)):
            top, bottom = self._graph
            right = self._right - i * self._pitch
            left = right - self._pitch + max(1, round(0.3 * self._pitch))
            rise = max(self._edge, round(bar.height * (bottom - top)))
            canvas[bottom - rise : bottom, left:right] = (*bar.colour, BAR_ALPHA)
        return canvas

    def _list(self, y: int, optimizations: tuple[str, ...], precision: str) -> int:
        """A rule below y, a heading with the precision at its right, the list. Returns the last baseline."""
        small, pitch = self._small, round(1.34 * self._small.size)
        self._rules.append(y + round(0.7 * self._em))
        y = self._rules[-1] + round(0.6 * self._em) + small.cap_height
        heading = "Optimizations" if optimizations else "Precision"
        while precision and small.width(precision) > self._inner - small.width(heading + " "):
            precision = precision[:-1]
        self._writings.append((small, heading, self._left, y, FAINT))
        self._writings.append((small, precision, self._right - small.width(precision), y, LABEL))
        for name in optimizations:
            y += pitch
            self._writings.append((small, "+", self._left, y, GOOD))
            self._writings.append((small, name, self._left + small.width("+ "), y, LABEL))
        return y

    @functools.cached_property
    def _base(self) -> np.ndarray:
        canvas = np.zeros((self.height, self.width, 4), np.uint8)
        edge, radius = self._edge, 0.6 * self._em
        outer = rounded(self.height, self.width, radius)
        inside = np.zeros_like(outer)
        inside[edge:-edge, edge:-edge] = rounded(self.height - 2 * edge, self.width - 2 * edge, radius - edge)
        over(canvas, outer * GROUND_ALPHA, GROUND)
        over(canvas, (outer - inside) * EDGE_ALPHA, WHITE)
        for y in self._rules:
            over(canvas[y : y + edge, self._left : self._right], RULE_ALPHA, WHITE)
        for writing in self._writings:
            write(canvas, *writing)
        return canvas


def over(canvas: np.ndarray, alpha: np.ndarray | float, colour: Colour) -> None:
    """Lay a colour over RGBA that is not premultiplied, in place."""
    under = canvas[..., 3:] / 255
    above = np.broadcast_to(np.asarray(alpha, float), canvas.shape[:2])[..., None]
    total = above + under * (1 - above)
    mixed = above * np.array(colour, float) + under * (1 - above) * canvas[..., :3]
    canvas[..., :3] = np.rint(mixed / np.maximum(total, 1e-9))
    canvas[..., 3:] = np.rint(255 * total)


def write(canvas: np.ndarray, with_face: Face, text: str, x: int, line: int, colour: Colour) -> None:
    """Write from pen position x on the baseline ``line``; what falls outside of the canvas is cut off."""
    ink = with_face.line(text)
    top, left = line - with_face.baseline, x - PAD
    ink = ink[max(0, -top) :, max(0, -left) :]
    part = canvas[max(0, top) :, max(0, left) :][: ink.shape[0], : ink.shape[1]]
    over(part, ink[: part.shape[0], : part.shape[1]] / 255, colour)


def rounded(height: int, width: int, radius: float) -> np.ndarray:
    """Coverage of a rectangle with round corners, antialiased."""
    y = np.abs(np.arange(height) + 0.5 - height / 2)[:, None] - (height / 2 - radius)
    x = np.abs(np.arange(width) + 0.5 - width / 2)[None] - (width / 2 - radius)
    outside = np.hypot(np.maximum(x, 0), np.maximum(y, 0)) + np.minimum(np.maximum(x, y), 0) - radius
    return np.clip(0.5 - outside, 0, 1)
