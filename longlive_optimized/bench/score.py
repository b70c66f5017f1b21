"""What the built-in model's pictures show, by preset and precision: the gate for less precise arithmetic."""

from __future__ import annotations

from ..config import OptimizationConfig
from ..engine.engine import LongLiveEngine
from ..tinyworld.evaluate import Evaluation
from ..tinyworld.render import NATIVE
from ..weights.locate import TINY

WANTED = 0.9  # share of prompts whose every attribute is shown


def run(device: str | None, prompts: int, seconds: float) -> dict[str, dict[str, float]]:
    """Shares of attributes met, over videos of held-out prompts, for each preset's steps and windows and each dtype."""

    def evaluation(dtype: str) -> Evaluation:
        config = OptimizationConfig(height=NATIVE[0], width=NATIVE[1], model_dtype=dtype)
        return Evaluation(LongLiveEngine(TINY, config, device))

    table = evaluation("auto").presets(prompts, seconds)
    return table | {dtype: evaluation(dtype).adherence(prompts, seconds) for dtype in ("float32", "bfloat16")}


def failures(table: dict[str, dict[str, float]]) -> list[str]:
    """Rows that show too little. A window of 6 is not among them: three sinks and the block itself fill it, so the
    block does not see the one before it, and cannot go on with its motion."""
    return [name for name, row in table.items() if row["all"] < WANTED and "window 6" not in name]
