"""docs/model.md 4: exact float32 values, and the formulas in float64."""

import itertools

import pytest
import torch

from longlive_optimized.bench.baseline import predict_x0, renoise
from longlive_optimized.config import PRESETS
from longlive_optimized.engine.sampler import from_noise_scale, make_schedule, schedule_table


def test_table():
    timesteps, sigmas = schedule_table()
    assert len(timesteps) == 1000 and timesteps.dtype == torch.float32
    assert timesteps[0] == 1000 and sigmas[0] == 1
    assert sigmas[1].item() == pytest.approx(0.9997998, abs=5e-8)
    assert sigmas[999].item() == pytest.approx(0.00498008, abs=5e-9)
    assert timesteps[999].item() == pytest.approx(4.98008, abs=5e-6)


def test_warped_steps_are_the_published_ones():
    steps = make_schedule((1000, 750, 500, 250), "longlive")
    assert [s.timestep for s in steps] == [1000.0, 937.5, 833.3333129882812, 625.0]
    assert [s.sigma for s in steps] == pytest.approx([1.0, 0.9375, 0.8333333134651184, 0.625], abs=1e-9)


def test_raw_steps_are_scopes():
    steps = make_schedule((1000, 750, 500, 250), "scope")
    assert [s.timestep for s in steps] == [1000.0, 750.0, 500.0, 250.0]
    assert [s.sigma for s in steps] == pytest.approx([1.0, 0.7500000596, 0.5005995631, 0.2515974343], abs=5e-11)


@pytest.mark.parametrize("kind", ["longlive", "scope"])
def test_scopes_first_video_step_is_never_warped(kind):
    steps = make_schedule((1000, 750), kind)
    first, second = from_noise_scale(steps, 0.7, "scope")
    assert first.timestep == 600.0 and first.sigma == pytest.approx(0.6, abs=5e-4) and second == steps[1]


@pytest.mark.parametrize("kind", ["longlive", "scope"])
@pytest.mark.parametrize("nominal", [*{preset["denoising_steps"] for preset in PRESETS.values()}, (1000,), (750, 500)])
def test_no_video_step_has_more_noise_than_was_mixed_in(kind, nominal):
    steps = make_schedule(nominal, kind)
    for scale in (0.1, 0.3, 0.5, 0.625, 0.7, 0.9, 0.99, 1.0):
        cut = from_noise_scale(steps, scale, "cut")
        assert cut[0] == (pytest.approx(1000 * scale), scale) and 1 <= len(cut) <= len(steps)
        assert all(a.sigma > b.sigma and a.timestep > b.timestep for a, b in itertools.pairwise(cut))
        assert {*cut[1:]} == {step for step in steps[1:] if step.sigma < scale}
    if nominal[0] == 1000:
        assert from_noise_scale(steps, 1.0, "cut") == steps  # nothing of the video: text mode's


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_formulas_round_once(dtype):
    x, flow, noise = (torch.randn(64, dtype=torch.float64).to(dtype) for _ in range(3))
    assert torch.equal(predict_x0(x, flow, 0.625), (x.double() - 0.625 * flow.double()).to(dtype))
    truth = (0.375 * x.double() + 0.625 * noise.double()).to(dtype)
    torch.testing.assert_close(
        renoise(x, noise, 0.625), truth, rtol=8e-3 if dtype == torch.bfloat16 else 1e-6, atol=1e-7
    )
