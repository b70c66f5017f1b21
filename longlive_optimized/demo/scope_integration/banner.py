"""A message across the picture: a few lines of text on a dark ground, blended into frames on their device."""

from __future__ import annotations

import unicodedata

import numpy as np
import torch
from torch import Tensor

from ...kernels.overlay_blend import overlay_blend
from .glyphs import Face, face
from .overlay import LARGEST, frames_of, text_size, to_device
from .panel import GROUND, GROUND_ALPHA, WARNING, WHITE, over, write

SECONDS = 6.0  # that a message stays
MOST_LINES = 4
_WRITTEN = str.maketrans({"×": "x", "…": "...", "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "≥": ">="})


class Banner:
    """Shows the last message for ``SECONDS`` from the first frames on that it is drawn into. One thread may use it."""

    def __init__(self) -> None:
        self._text, self._until = "", 0.0
        self._sent: tuple[tuple, Tensor] | None = None

    def show(self, text: str) -> None:
        """Show ``text`` in place of what is shown now; an empty one shows nothing."""
        self._text, self._until = text, 0.0

    @torch.inference_mode()  # so that frames made in it can be written to
    def draw(self, frames: Tensor, now: float, at_top: bool = False) -> Tensor:
        """Draw the message over ``frames`` IN PLACE, at the bottom or the top, and return them.

        frames: what ``LatencyOverlay.apply`` takes; raises as that does. now: seconds of one clock. Text that does not
        fit is cut, with dots at its end.
        """
        if not self._text:
            return frames
        block = frames_of(frames)
        self._until = self._until or now + SECONDS
        if now > self._until:
            self._text, self._sent = "", None
            return frames
        panel = self._panel_on(block)
        overlay_blend(block, panel, 0 if at_top else block.shape[1] - panel.shape[0], 0)
        return frames

    def _panel_on(self, block: Tensor) -> Tensor:
        _, height, width, _ = block.shape
        device = block.device
        key = self._text, height, width, device, torch.cuda.current_stream(device) if block.is_cuda else None
        if self._sent is None or self._sent[0] != key:
            self._sent = key, to_device(_panel(self._text, height, width), device)
        return self._sent[1]


def _panel(text: str, height: int, width: int) -> np.ndarray:
    """RGBA [rows <= height, width, 4]."""
    em = min(text_size(height, width), LARGEST)
    regular, pitch, edge = face("regular", em), round(1.42 * em), max(2, round(em / 5))
    side = min(round(0.9 * em), width // 8)
    most = max(1, min(MOST_LINES, (height // 2 - side) // pitch))
    lines = _lines(regular, _plain(text), width - 2 * side - edge, most)
    canvas = np.zeros((min(height, len(lines) * pitch + side), width, 4), np.uint8)
    over(canvas, GROUND_ALPHA, GROUND)
    over(canvas[:, :edge], 1.0, WARNING)
    for row, line in enumerate(lines):
        write(canvas, regular, line, side + edge, side // 2 + row * pitch + regular.baseline, WHITE)
    return canvas


def _lines(regular: Face, text: str, width: int, most: int) -> list[str]:
    """``text`` in at most so many lines of at most ``width`` pixels, broken between words where words are short."""
    lines, words = [""], text.split(" ")
    while words:
        word = words.pop(0)
        longer = f"{lines[-1]} {word}".strip()
        if regular.width(longer) <= width:
            lines[-1] = longer
        elif not lines[-1]:
            fits = max(1, next((n for n in range(len(word), 0, -1) if regular.width(word[:n]) <= width), 1))
            lines[-1] = word[:fits]
            words[:0] = [word[fits:]] if word[fits:] else []
            lines += [""] if words else []
        else:
            lines, words = [*lines, ""], [word, *words]
    if len(lines) > most:
        last = lines[most - 1]
        while last and regular.width(f"{last}...") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], f"{last}..."]
    return lines


def _plain(text: str) -> str:
    """``text`` in one line of the characters that there are glyphs of, as far as it can be."""
    text = " ".join(text.translate(_WRITTEN).split())
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
