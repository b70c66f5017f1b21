"""How long videos look, in numbers."""

import math

import pytest
import torch

from longlive_optimized.tinyworld.adherence import look, spread


def test_even_frames_have_no_contrast_and_no_sharpness():
    assert look(torch.full((3, 4, 6, 3), 51, dtype=torch.uint8)) == pytest.approx(
        {"mean": 0.2, "contrast": 0.0, "sharpness": 0.0}, abs=1e-6
    )


def test_columns_of_black_and_white():
    frames = torch.zeros(2, 4, 6, 3, dtype=torch.uint8)
    frames[:, :, ::2] = 255
    found = look(frames)
    assert found["mean"] == pytest.approx(0.5)
    assert found["contrast"] == pytest.approx(0.5 * math.sqrt(24 / 23))
    assert found["sharpness"] == pytest.approx(0.5)  # every step along a row, none along a column


def test_a_brightness_that_changes_with_time_is_no_contrast():
    frames = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    frames[1] = 255
    assert look(frames)["contrast"] == 0


def test_spread_is_the_mean_and_its_standard_error():
    assert spread([{"mean": 1.0}, {"mean": 3.0}]) == pytest.approx({"mean": 2.0, "mean +-": 1 / math.sqrt(2)})
