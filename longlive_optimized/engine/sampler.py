"""The flow-matching schedule: timesteps and noise levels (docs/model.md 4). Its steps are ``x0_renoise``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TIMESTEP_SHIFT = 5.0
ScheduleKind = Literal["longlive", "scope"]
VideoSteps = Literal["cut", "scope"]


class Step(NamedTuple):
    """One denoising step: what the network is told, and the noise level by which its answer is read."""

    timestep: float
    sigma: float


@functools.cache
def schedule_table() -> tuple[Tensor, Tensor]:
    """The 1000 timesteps and noise levels, float32, from 1000 down to 4.98 (4.1)."""
    u = torch.linspace(1.0, 0.0, 1001, dtype=torch.float32, device="cpu")[:-1]
    sigmas = TIMESTEP_SHIFT * u / (1 + (TIMESTEP_SHIFT - 1) * u)
    return sigmas * 1000, sigmas


def sigma_at(timestep: float) -> float:
    """Noise level of the nearest table entry; the first of two that are equally near."""
    timesteps, sigmas = schedule_table()
    return sigmas[(timesteps.double() - timestep).abs().argmin()].item()


def make_schedule(nominal: Sequence[int], kind: ScheduleKind) -> list[Step]:
    """Steps for a nominal list such as (1000, 750, 500, 250).

    ``longlive`` warps the list by the timestep shift, as the model was distilled (1000, 937.5, 833.3, 625); ``scope``
    takes it as it stands.
    """
    if kind == "longlive":
        table = F.pad(schedule_table()[0], (0, 1))
        timesteps = [table[1000 - n].item() for n in nominal]
    else:
        timesteps = [float(n) for n in nominal]
    return [Step(t, sigma_at(t)) for t in timesteps]


def from_noise_scale(steps: Sequence[Step], scale: float, how: VideoSteps) -> list[Step]:
    """The steps of a block that starts from a video with the share ``scale`` of noise in it (4.6).

    ``cut`` begins at that noise level and goes on with what of the list lies below it: no step puts more noise over the
    video than ``scale`` says. ``scope`` replaces the first step by the timestep 1000 scale - 100 and keeps the others.
    """
    if how == "cut":
        return [Step(1000 * scale, scale), *(step for step in steps[1:] if step.sigma < scale)]
    return [step_at(int(1000 * scale) - 100), *steps[1:]]


def step_at(timestep: int) -> Step:
    """The step at a timestep as it stands."""
    return Step(float(timestep), sigma_at(float(timestep)))
