"""Draw docs/prompt-switch.svg and frame-rates.svg from docs/measurements: ``python tests/measure/plots.py``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from measure.report import ROOT, SIZES, by_size, newest

COLOURS = {"waits": "#e3e6ea", "text": "#9ec5e8", "recache": "#f6c177", "denoise": "#a5d6a7", "decode": "#c3a6e0"}
INK, PALE, LINE, ROW = "#20242b", "#68707c", "#d5d9df", 46
LEFT, WIDTH, RIGHT = 110, 720, 90


class Part(NamedTuple):
    """Of a bar: what takes so many milliseconds."""

    name: str
    ms: float
    colour: str


def switch_of(size: str) -> list[Part]:
    """From Enter, half-way through a block, to the new prompt's pictures."""
    (row, _), (block, _) = by_size(["prompt-switch"], "prompt switch")[size], by_size(["block"], "block")[size]
    first, rest = row["decode_ms"]
    return [
        Part("the block under way", block["block_ms"]["median"] / 2, "waits"),
        Part("text", row["text_ms"], "text"),
        Part("recache", row["recache_ms"], "recache"),
        Part("denoising", row["denoise_ms"], "denoise"),
        Part("first pictures", first, "decode"),
        Part("the others", rest, "decode"),
    ]


def prompt_switch() -> str:
    """A bar for each size: where the time from Enter to the new pictures goes."""
    bars = {size: switch_of(size) for size in SIZES}
    longest = max(sum(part.ms for part in bar) for bar in bars.values())
    scale, body = WIDTH / longest, []
    for number, (size, bar) in enumerate(bars.items()):
        top, at = 54 + number * (ROW + 34), 0.0
        body.append(_text(LEFT - 12, top + 28, size, "end", 13))
        for part in bar:
            x, wide = LEFT + at * scale, part.ms * scale
            body.append(_box(x, top, wide, ROW, COLOURS[part.colour]))
            if wide > 7 * len(part.name):
                body.append(_text(x + wide / 2, top + 20, part.name, "middle"))
            if wide > 45:
                body.append(_text(x + wide / 2, top + 36, f"{part.ms:.0f} ms", "middle", colour=PALE))
            at += part.ms
            if part.name == "first pictures":
                body.append(_mark(LEFT + at * scale, top, f"first new picture, {at:.0f} ms"))
    body.append(_text(LEFT, 24, "Enter, half-way through a block: how long until the new prompt is seen", size=14))
    body.append(_text(LEFT, 42, "blue: the prompt is encoded; violet: pictures are decoded", colour=PALE))
    return _picture(body, 54 + len(SIZES) * (ROW + 34))


def frame_rates() -> str:
    """A bar for each preset and size: frames a second."""
    rows = newest(["presets"], lambda row: (row["size"], row["preset"]), "presets")
    found = {key: row["fps"] for key, (row, _) in rows.items()}
    found |= {(size, "balanced"): row["fps"] for size, (row, _) in by_size(["block"], "block").items()}
    most, body, top = max(found.values()), [], 54.0
    presets = sorted({preset for _, preset in found}, key=lambda preset: found[SIZES[0], preset])
    for preset in presets:
        body.append(_text(LEFT - 12, top + 25, preset, "end", 13))
        for size, colour in zip(SIZES, ("denoise", "text"), strict=True):
            fps = found[size, preset]
            body.append(_box(LEFT, top, fps / most * WIDTH, 18, COLOURS[colour]))
            body.append(_text(LEFT + fps / most * WIDTH + 6, top + 14, f"{fps:.0f}", size=12))
            top += 19
        top += 10
    x = LEFT + 16 / most * WIDTH
    body.append(f'<path d="M {x:.1f} 48 V {top - 6:.1f}" stroke="{INK}" stroke-dasharray="3 3"/>')
    body.append(_text(x + 5, 46, "16: the world's own pace", size=12, colour=PALE))
    body.append(_text(LEFT, 24, "Frames a second on an H200, by preset: 480×832 green, 320×576 blue", size=14))
    return _picture(body, top + 6)


def pictures() -> dict[str, str]:
    """Each file's content."""
    return {"prompt-switch.svg": prompt_switch(), "frame-rates.svg": frame_rates()}


def _picture(body: Sequence[str], height: float) -> str:
    wide = LEFT + WIDTH + RIGHT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {height:.0f}" font-family="sans-serif">'
    return "\n".join([head, _box(0, 0, wide, height, "#ffffff"), *body, "</svg>", ""])


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12, colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{text}</text>'


def _mark(x: float, top: float, text: str) -> str:
    line = f'<path d="M {x:.1f} {top - 6:.1f} V {top + ROW + 6:.1f}" stroke="{INK}" stroke-width="2"/>'
    return line + "\n" + _text(x, top + ROW + 20, text, "middle")


if __name__ == "__main__":
    for name, svg in pictures().items():
        (ROOT / "docs" / name).write_text(svg)
