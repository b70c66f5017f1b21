"""``noise_scale`` says how much of an input video is left, whatever the list of steps."""

import itertools

import pytest
import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.config import PRESETS

SCALES = (0.1, 0.3, 0.5, 0.7, 1.0)
LISTS = [*dict.fromkeys(preset["denoising_steps"] for preset in PRESETS.values()), (1000, 750), (1000,)]


@pytest.fixture(scope="module")
def full_size() -> LongLiveEngine:
    """The built-in model at the size that it was trained for."""
    return LongLiveEngine("tiny", OptimizationConfig(height=64, width=96), device="cpu")


def difference(engine: LongLiveEngine, schedule: str, **wishes) -> float:
    """Mean difference between what is made of a black and of a white video."""
    made = []
    for level in (0, 255):
        video = torch.full((13, 64, 96, 3), level, dtype=torch.uint8)
        request = BlockRequest("a red circle moves left over a green field", video=video, **wishes)
        made.append(engine.generate_block(request, engine.open_stream(step_schedule=schedule)).float())
    return (made[0] - made[1]).abs().mean().item()


@pytest.mark.parametrize("schedule", ["longlive", "scope"])
@pytest.mark.parametrize("steps", LISTS)
def test_the_input_fades_as_noise_scale_grows(full_size, steps, schedule):
    seen = [difference(full_size, schedule, noise_scale=scale, denoising_steps=steps) for scale in SCALES]
    assert all(a >= b for a, b in itertools.pairwise(seen)), seen
    assert seen[0] > 100 and seen[1] > 40 and seen[-1] == 0, seen


def test_scopes_own_arithmetic_loses_the_input_in_four_steps(full_size):
    """Why ``noise_steps`` is not ``scope`` unless scope is to be matched."""
    assert difference(full_size, "scope", noise_scale=0.1, noise_steps="scope") < 1
