"""Frames against what a scene says, pixel by pixel."""

import pytest
import torch

from longlive_optimized.tinyworld.render import layouts, render, scale_of
from longlive_optimized.tinyworld.world import COLOURS, GROUNDS, MOTIONS, Scene, Shape

ONE = Scene((Shape("red", "square"),), "black", "right")


def centres(*places):
    return torch.tensor([[*places, *[(0, 0)] * (3 - len(places))]], dtype=torch.float32)


def clip(scene, places, frames=5, height=64, width=96, **more):
    return render([(scene,)], centres(*places), frames, height, width, **more)[0]


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_frame_is_the_one_before_it_moved(motion):
    """Sideways motion only rolls the frame: 2 pixels a frame at this size; up and down also cross the shading."""
    frames = clip(Scene(ONE.shapes, "black", motion), [(40, 48)], frames=100).float()
    step = [2 * s for s in MOTIONS[motion]]
    moved = torch.roll(frames[:-1], step, (1, 2))
    inside = (moved == torch.tensor(COLOURS["red"])).all(-1)  # the shape's inner pixels; the ground is shaded
    assert inside.flatten(1).any(1).all()
    assert torch.equal(moved[inside], frames[1:][inside])
    if motion in ("left", "right", "still"):
        assert torch.equal(moved, frames[1:])


def test_shapes_stand_where_they_should_over_the_ground():
    scene = Scene((Shape("red", "square"), Shape("white", "circle"), Shape("yellow", "cross")), "blue", "still")
    places = [(16, 16), (16, 72), (48, 44)]
    frame = clip(scene, places, frames=1)[0]
    for shape, (row, column) in zip(scene.shapes, places, strict=True):
        assert frame[row, column].tolist() == list(COLOURS[shape.colour])
    corner = frame[32, 95].float()
    assert (corner - torch.tensor(GROUNDS["blue"])).abs().max() <= 2
    assert frame[0, 95].sum() > frame[63, 95].sum()  # lighter at the top


@pytest.mark.parametrize(("form", "area"), [("circle", 2.78), ("square", 2.82), ("triangle", 1.91), ("cross", 2.26)])
def test_areas_of_forms(form, area):
    """White on black and anti-aliased: the mean brightness is the share that the shape covers."""
    size = {"height": 96, "width": 160}
    frame = clip(Scene((Shape("white", form),), "black", "still"), [(50.3, 70.7)], frames=1, **size)[0].float()
    ground = clip(Scene((Shape("white", form),), "black", "still"), [(10, 10)], frames=1, **size)[0].float()[48, 100]
    cover = ((frame[..., 0] - ground[0]) / (245 - ground[0])).clamp(0)
    cover[cover < 0.02] = 0  # shading
    assert cover.sum() / scale_of(96, 160).radius ** 2 == pytest.approx(area, rel=0.03)
    assert ((cover > 0.05) & (cover < 0.95)).sum() > 20  # edges are soft


def test_shapes_come_back_on_the_other_side():
    frames = clip(ONE, [(32, 88)], frames=49)
    assert frames[4, 32, 0].tolist() == list(COLOURS["red"]) == frames[4, 32, 95].tolist()
    assert torch.equal(frames[0], frames[48])  # 96 pixels at 2 a frame


def test_a_cut_keeps_the_places_and_takes_the_new_scene():
    after = Scene((Shape("yellow", "circle"), Shape("white", "cross")), "blue", "down")
    frames = render([(ONE, after)], centres((48, 80), (16, 32)), 13, 64, 96, cut=5)[0]
    assert torch.equal(frames[:5], clip(ONE, [(48, 80)], frames=5))
    assert frames[5, 18, 40].tolist() == list(COLOURS["yellow"])  # 4 steps to the right, then one down
    assert frames[12, 32, 40].tolist() == list(COLOURS["yellow"])
    assert frames[5, 50, 88].tolist() == list(COLOURS["white"])


@pytest.mark.parametrize("size", [(96, 160), (32, 48), (64, 64), (320, 576)])
def test_layouts_keep_shapes_apart(size):
    found = layouts(50, *size, torch.Generator().manual_seed(0))
    assert found.shape == (50, 3, 2) and (found % 8 == 0).all()
    gap = (found[:, :, None] - found[:, None]).abs()
    gap = torch.minimum(gap, torch.tensor(size) - gap).norm(dim=-1)
    assert gap[gap > 0].min() >= scale_of(*size).apart and (gap == 0).sum() == 150
    assert torch.equal(found, layouts(50, *size, torch.Generator().manual_seed(0)))


def test_a_batch_is_its_clips():
    other = Scene((Shape("green", "cross"), Shape("white", "triangle")), "grey", "up")
    together = render([(ONE,), (other,)], layouts(2, 64, 96, torch.Generator().manual_seed(1)), 6, 64, 96)
    alone = render([(other,)], layouts(2, 64, 96, torch.Generator().manual_seed(1))[1:], 6, 64, 96)
    assert together.shape == (2, 6, 64, 96, 3) and together.dtype == torch.uint8
    assert torch.equal(together[1:], alone)


@pytest.mark.parametrize(("size", "message"), [((16, 32), "height"), ((32, 40), "width"), ((48.0, 32), "height")])
def test_no_size(size, message):
    with pytest.raises(ValueError, match=f"{message} must be a multiple of 16 from 32 on"):
        scale_of(*size)
