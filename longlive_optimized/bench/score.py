"""What the built-in model's pictures show, by preset and precision: the gate for less precise arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import PRESETS
from ..tinyworld.evaluate import Evaluation, precisions
from ..weights.locate import TINY

WANTED = 0.9  # share of prompts whose every attribute is shown
_LOST = 0.01  # of that share, what 8 bits may cost
_INT8 = ", int8"


def run(device: str | None, prompts: int, seconds: float, presets: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Shares of attributes met, over videos of held-out prompts, for each preset's steps and windows and each dtype;
    for those of ``presets`` that run in 8 bits also in these."""
    evaluation = Evaluation.of(TINY, device)
    table = evaluation.presets(prompts, seconds)
    for fields in (PRESETS[name] for name in presets):
        settings = {name: fields[name] for name in ("denoising_steps", "local_attn_size", "precision")}
        if fields["precision"] != "bf16":
            name = f"{len(fields['denoising_steps'])} steps, window {fields['local_attn_size']}"
            table[name + _INT8] = evaluation.adherence(prompts, seconds, **settings)
    return table | precisions(TINY, prompts, seconds, device)


def failures(table: dict[str, dict[str, float]]) -> list[str]:
    """Rows that show too little, a sentence each. A window of 6 is not among them: three sinks and the block itself
    fill it, so the block does not see the one before it, and cannot go on with its motion."""
    few = [name for name, row in table.items() if row["all"] < WANTED and "window 6" not in name]
    missed = [
        f"{name}: {table[name]['all']:.0%} of the prompts are shown, at least {WANTED:.0%} wanted" for name in few
    ]
    for name, row in table.items():
        plain = table.get(name.removesuffix(_INT8), row)
        if row["all"] < plain["all"] - _LOST:
            missed.append(f"{name}: {row['all']:.0%} of the prompts are shown, without 8 bits {plain['all']:.0%}")
    return missed
