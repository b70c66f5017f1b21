"""The score on clips whose truth is known: ``python -m longlive_optimized.tinyworld.study`` is the same, larger."""

import pytest
import torch

from longlive_optimized.tinyworld import Scene, Shape, score
from longlive_optimized.tinyworld.render import NATIVE, SIZES, render
from longlive_optimized.tinyworld.study import DAMAGES, examples, study
from longlive_optimized.tinyworld.vocabulary import known_to
from longlive_optimized.tinyworld.world import WHOLE

TWO = Scene((Shape("red", "circle"), Shape("white", "square")), "green", "left")


def clip(scene=TWO, frames=17, after=None, cut=None):
    places = torch.tensor([[[40.0, 40.0], [64.0, 112.0], [16.0, 88.0]]])
    return render([(scene, after or scene)], places, frames, 96, 160, cut)[0]


@pytest.mark.parametrize(("size", "known"), [(SIZES[0], WHOLE), (NATIVE, known_to("tiny"))], ids=["whole", "tiny"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_reliability(damage, size, known):
    """Of the world at its size, and of what the built-in model knows of it at that model's."""
    found = study(damage, 20, frames=13, size=size, known=known)
    print(f"{damage}: {found}")
    assert found.accepted / found.true >= 0.99, found
    assert found.wrong_rejected / found.clips >= 0.95, found
    assert found.noise_rejected == found.clips, found


@pytest.mark.parametrize("size", [(64, 64), (160, 96), (192, 320)])
def test_other_sizes(size):
    found = study("as rendered", 6, frames=13, size=size)
    assert found.accepted == found.true and found.wrong_rejected == found.clips, found


@pytest.mark.parametrize(
    ("wanted", "missed"),
    [
        (Scene(TWO.shapes, "black", "left"), {"ground"}),
        (Scene(TWO.shapes, "green", "up"), {"motion"}),
        (Scene(TWO.shapes, "green", "still"), {"motion"}),
        (Scene((Shape("red", "triangle"), Shape("white", "square")), "green", "left"), {"form 1"}),
        (Scene((Shape("red", "circle"), Shape("yellow", "square")), "green", "left"), {"colour 2"}),
        (Scene((Shape("red", "circle"),), "green", "left"), {"count"}),
        (Scene((*TWO.shapes, Shape("blue", "cross")), "green", "left"), {"count", "colour 1", "form 1"}),
    ],
)
def test_the_attribute_that_is_wrong_is_named(wanted, missed):
    found = score(clip(), wanted)
    assert {name for name, met in found.attributes.items() if not met} == missed
    assert not found.met and score(clip(), TWO).met


def test_nothing_is_met_by_noise_and_the_ground_alone():
    torch.manual_seed(0)
    found = score(torch.randint(0, 256, (17, 96, 160, 3), dtype=torch.uint8), TWO)
    assert not any(found.attributes.values())
    empty = torch.tensor([60, 110, 55], dtype=torch.uint8).expand(17, 96, 160, 3)
    assert [name for name, met in score(empty, TWO).attributes.items() if met] == ["ground"]


def test_most_of_the_time_is_not_always():
    other = Scene((Shape("blue", "cross"),), "grey", "down")
    assert score(clip(frames=81, after=other, cut=77), TWO).met
    found = score(clip(frames=81, after=other, cut=45), TWO)
    assert not any(found.attributes.values())


def test_a_jerk_is_no_motion():
    frames = clip(frames=17)
    assert score(frames, TWO).motion
    assert not score(frames[[0, 3, 1, 9, 4, 16, 2, 8, 5, 12, 6, 15, 7, 10, 11, 13, 14]], TWO).motion


def test_the_picture_may_be_of_any_brightness_a_little():
    scene, frames = next(examples(1, 5, 17, (96, 160)))
    assert score((frames * 0.93).to(torch.uint8), scene).met
    assert not score(frames // 3, scene).met


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(17, 96, 160, 3),
        torch.zeros(4, 96, 160, 3, dtype=torch.uint8),
        torch.zeros(17, 3, 96, 160, dtype=torch.uint8),
    ],
)
def test_no_frames(frames):
    with pytest.raises(ValueError, match=r"frames must be uint8 \[T > 4, H, W, 3\], got"):
        score(frames, TWO)
