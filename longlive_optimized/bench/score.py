"""What the built-in model's pictures show, by preset and precision: the gate for less precise arithmetic."""

from __future__ import annotations

from ..tinyworld.evaluate import Evaluation, precisions
from ..weights.locate import TINY

WANTED = 0.9  # share of prompts whose every attribute is shown


def run(device: str | None, prompts: int, seconds: float) -> dict[str, dict[str, float]]:
    """Shares of attributes met, over videos of held-out prompts, for each preset's steps and windows and each dtype."""
    presets = Evaluation.of(TINY, device).presets(prompts, seconds)
    return presets | precisions(TINY, prompts, seconds, device)


def failures(table: dict[str, dict[str, float]]) -> list[str]:
    """Rows that show too little. A window of 6 is not among them: three sinks and the block itself fill it, so the
    block does not see the one before it, and cannot go on with its motion."""
    return [name for name, row in table.items() if row["all"] < WANTED and "window 6" not in name]
