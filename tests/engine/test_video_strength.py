"""``noise_scale`` says how much of an input video is left, whatever the list of steps."""

import itertools

import pytest
import torch

from longlive_optimized import BlockRequest, LongLiveEngine
from longlive_optimized.config import PRESETS

SCALES = (0.1, 0.3, 0.5, 0.7, 1.0)
LISTS = [*dict.fromkeys(preset["denoising_steps"] for preset in PRESETS.values()), (1000, 750), (1000,)]


def difference(engine: LongLiveEngine, schedule: str, **wishes) -> float:
    """Mean difference between what is made of a black and of a white video."""
    made = []
    for level in (0, 255):
        video = torch.full((13, 32, 48, 3), level, dtype=torch.uint8)
        request = BlockRequest("a red circle moves left over a green field", video=video, **wishes)
        made.append(engine.generate_block(request, engine.open_stream(step_schedule=schedule)).float())
    return (made[0] - made[1]).abs().mean().item()


@pytest.mark.parametrize("schedule", ["longlive", "scope"])
@pytest.mark.parametrize("steps", LISTS)
def test_the_input_fades_as_noise_scale_grows(engine, steps, schedule):
    seen = [difference(engine, schedule, noise_scale=scale, denoising_steps=steps) for scale in SCALES]
    assert all(a >= b for a, b in itertools.pairwise(seen)), seen
    assert seen[0] > 100 and seen[1] > 40 and seen[-1] == 0, seen


def test_scopes_own_arithmetic_loses_the_input_in_four_steps(engine):
    """Why ``noise_steps`` is not ``scope`` unless scope is to be matched."""
    assert difference(engine, "scope", noise_scale=0.1, noise_steps="scope") < 1
