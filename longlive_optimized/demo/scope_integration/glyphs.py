"""Text as antialiased coverage, from renderings of DejaVu Sans kept in glyphs.npz (licence: glyphs.LICENSE.txt).

The file is made once, by ``python -m longlive_optimized.demo.scope_integration.glyphs REGULAR.ttf BOLD.ttf``, the only
part that needs Pillow. It holds hinted renderings at small sizes, which stay crisp, and one large master per weight,
from which the sizes between are scaled down.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np

ASCII = "".join(map(chr, range(32, 127)))
NUMERIC = " +-.0123456789e"
CHARACTERS = {"regular": ASCII, "bold": NUMERIC}
HINTED = range(9, 17)
MASTER = {"regular": 64, "bold": 96}
STORED = [(weight, size) for weight in CHARACTERS for size in (*HINTED, MASTER[weight])]
PAD = 1  # columns on either side of a glyph's advance, for ink that overhangs
_FILE = Path(__file__).with_name("glyphs.npz")


class Face:
    """The face of ``weight`` ("regular", or "bold", which has figures only) nearest to ``size`` pixels.

    ``line(text)`` gives its coverage; characters that the face lacks are drawn as ``?``, or as nothing in bold.
    """

    def __init__(self, weight: str, size: int):
        self.size = min(max(size, HINTED[0]), MASTER[weight])
        self.baseline, self.cap_height = _baseline(self.size), round(0.729 * self.size)
        self._stored_size = self.size if self.size in HINTED else MASTER[weight]
        self._stored = _atlas()[weight, self._stored_size]
        self._cells: dict[str, np.ndarray] = {}  # as they are needed: scaling all of them takes a while

    def width(self, text: str) -> int:
        """Pixels from the first pen position to the last."""
        return sum(self._cell(c).shape[1] - 2 * PAD for c in text)

    def line(self, text: str) -> np.ndarray:
        """Coverage [rows, width(text) + 2 PAD], uint8; the pen starts at column PAD, on row ``baseline``."""
        out = np.zeros((_rows(self.size), self.width(text) + 2 * PAD), np.uint8)
        pen = 0
        for cell in map(self._cell, text):
            part = out[:, pen : pen + cell.shape[1]]
            np.maximum(part, cell, out=part)
            pen += cell.shape[1] - 2 * PAD
        return out

    def _cell(self, character: str) -> np.ndarray:
        if character not in self._cells:
            cell = self._stored.get(character, self._stored.get("?", self._stored[" "]))
            same = self.size == self._stored_size
            self._cells[character] = cell if same else _scaled(cell, self._stored_size, self.size)
        return self._cells[character]


face = functools.cache(Face)


@functools.cache
def _atlas() -> dict[tuple[str, int], dict[str, np.ndarray]]:
    with np.load(_FILE, allow_pickle=False) as file:
        ink, widths = file["ink"] * np.uint8(17), file["widths"]
    atlas, at, glyph = {}, 0, 0
    for weight, size in STORED:
        ends = np.cumsum(widths[glyph : glyph + len(CHARACTERS[weight])], dtype=int)
        sheet = ink[at : at + _rows(size) * ends[-1]].reshape(_rows(size), ends[-1])
        cells = np.split(sheet, ends[:-1], axis=1)
        atlas[weight, size] = dict(zip(CHARACTERS[weight], cells, strict=True))
        at, glyph = at + sheet.size, glyph + len(cells)
    return atlas


def _scaled(cell: np.ndarray, stored: int, size: int) -> np.ndarray:
    ratio = stored / size
    advance = round((cell.shape[1] - 2 * PAD) / ratio)
    down = _averages(cell.shape[0], _rows(size), ratio, _baseline(stored) - _baseline(size) * ratio)
    across = _averages(cell.shape[1], advance + 2 * PAD, ratio, PAD - PAD * ratio)
    return np.rint(down @ cell @ across.T).astype(np.uint8)


def _averages(inputs: int, outputs: int, ratio: float, start: float) -> np.ndarray:
    """[outputs, inputs]: row i averages over the inputs in start + ratio * [i, i + 1)."""
    left = start + ratio * np.arange(outputs)[:, None]
    at = np.arange(inputs)
    return np.clip(np.minimum(left + ratio, at + 1) - np.maximum(left, at), 0, None) / ratio


def _baseline(size: int) -> int:
    return round(0.94 * size)


def _rows(size: int) -> int:
    return _baseline(size) + round(0.26 * size)


def build(paths: dict[str, str]) -> dict[str, np.ndarray]:
    """Render the fonts at ``paths`` (by weight): the ink of all sheets in 16 levels, and the glyphs' widths."""
    from PIL import Image, ImageDraw, ImageFont  # pyright: ignore[reportMissingImports]

    sheets, widths = [], []
    for weight, size in STORED:
        font = ImageFont.truetype(paths[weight], size, layout_engine=ImageFont.Layout.BASIC)
        cells = []
        for character in CHARACTERS[weight]:
            cell = Image.new("L", (round(font.getlength(character)) + 2 * PAD, _rows(size)))
            ImageDraw.Draw(cell).text((PAD, _baseline(size)), character, font=font, fill=255, anchor="ls")
            cells.append(np.asarray(cell))
        sheets.append(np.concatenate(cells, axis=1).ravel())
        widths += [cell.shape[1] for cell in cells]
    ink = (np.concatenate(sheets).astype(int) + 8) // 17
    return {"ink": ink.astype(np.uint8), "widths": np.array(widths, np.uint8)}


if __name__ == "__main__":
    built = build(dict(zip(("regular", "bold"), sys.argv[1:], strict=True)))
    np.savez_compressed(_FILE, ink=built["ink"], widths=built["widths"])
