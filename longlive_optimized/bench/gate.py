"""The gate: may a preset run in 8 bits? Its figures by preset, and which of them miss their bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import StreamSettings
from ..engine.engine import LongLiveEngine
from ..weights.locate import TINY
from . import score
from .quality import ForwardErrors, decoder_errors, int8_figures
from .teacher import error_by_part, figures, forced_pairs, picture, prompts_of

MEDIAN_DB, WORST_DB = 40.0, 35.0  # PSNR of teacher-forced blocks against bf16's, at least
VAE_MEDIAN_DB = 38.0  # of the same latents decoded by the VAE in int8; the worst as above


def run(
    engine: LongLiveEngine,
    model: str,
    presets: Sequence[str],
    seeds: int,
    blocks: int,
    tell: Callable[[str], object],
    by_part: bool = False,
) -> tuple[dict[str, Any], Tensor | None]:
    """Figures of each preset, and a picture of those in 8 bits, if there are any. ``tell`` is told what begins.

    The engine's positions must be ``base``, its own stream's; the blocks are made with relative ones. Turns TF32 off.
    """
    forward, table, pictures = ForwardErrors(engine), {}, []
    prompts = prompts_of(model)
    for name in presets:
        tell(f"errors of {name}")
        fields = engine.config.preset_fields(name)
        engine.configure(**fields)
        row = table[name] = {"precision": engine.stream.precision, **forward.measure(seeds)}
        if fields["precision"] == "bf16":
            continue
        settings = dataclasses.replace(StreamSettings.of(engine.config), positions="relative")
        pairs = forced_pairs(engine, settings, prompts, blocks)
        row |= figures(pairs)
        pictures.append(picture(pairs))
        if by_part:
            row["change_by_part"] = error_by_part(engine, settings, prompts[0])
    tell("errors of the VAE")
    report = {"presets": table, "decoder": decoder_errors(engine, seeds), "vae_int8": int8_figures(engine, blocks)}
    return report, torch.cat(pictures) if pictures else None


def scores(model: str, device: str | None, presets: Sequence[str], prompts: int, seconds: float) -> dict[str, dict]:
    """What the built-in model's pictures show, by steps, window and dtype, and for presets in 8 bits."""
    return score.run(device, prompts, seconds, presets) if model == TINY and prompts else {}


def failures(report: dict[str, Any]) -> list[str]:
    """What misses its bound, a sentence each."""
    missed = []
    rows = [(name, row, MEDIAN_DB) for name, row in report["presets"].items()]
    for name, row, median in [*rows, ("vae_int8", report.get("vae_int8", {}), VAE_MEDIAN_DB)]:
        for figure, least in (("psnr_median_db", median), ("psnr_worst_db", WORST_DB)):
            if row.get(figure, least) < least:
                missed.append(f"{name}: {figure} is {row[figure]:.1f}, at least {least:.0f} wanted")
        if row.get("not_finite_int8"):
            missed.append(f"{name}: {row['not_finite_int8']} of {row['measurements']} tensors are not finite in 8 bits")
        if row.get("fallback_blocks"):
            missed.append(f"{name}: {row['fallback_blocks']} of {row['blocks']} blocks are not finite in 8 bits")
    return missed + score.failures(report.get("scores", {}))
