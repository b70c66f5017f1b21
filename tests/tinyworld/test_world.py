"""The world's scenes and sentences."""

import itertools
import math
import re
from random import Random

import pytest

from longlive_optimized.tinyworld.world import (
    COLOURS,
    FORMS,
    GROUNDS,
    MOTIONS,
    Scene,
    Shape,
    caption,
    one_wrong,
    read_caption,
    sample_scene,
    words,
)

SAYS = {
    "circle": "circle|disc",
    "square": "square|box",
    "triangle": "triangle",
    "cross": "cross|plus",
    "ring": "ring|hoop",
    "left": "left|leftward",
    "right": "right|rightward",
    "up": "up|upward",
    "down": "down|downward",
    "still": "still|rests?|stays? in place",
}


def scenes(count, held_out=False, seed=0):
    random = Random(seed)
    return [sample_scene(random, held_out=held_out) for _ in range(count)]


def test_the_issue_s_own_sentence():
    scene = Scene((Shape("red", "circle"), Shape("blue", "square")), "green", "left")
    random = Random(0)
    said = {caption(scene, random) for _ in range(10000)}
    assert "a red circle and a blue square move left over a green field" in said
    assert "over a green field, a blue box and a red disc drift to the left." in said


def test_colours_are_told_apart():
    tables = [*COLOURS.items()], [*GROUNDS.items()]
    pairs = [*itertools.combinations(tables[0], 2), *itertools.combinations(tables[1], 2)]
    pairs += [(a, b) for a, b in itertools.product(*tables) if a[0] != b[0]]
    assert min(math.dist(a, b) for (_, a), (_, b) in pairs) > 85


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), "green", "left"), "shapes must number 1 to 3, got 0"),
        (((Shape("red", "circle"),) * 2, "green", "left"), "shapes must differ in colour"),
        (((Shape("green", "circle"),), "green", "left"), "and from the ground"),
        (((Shape("red", "circle"),), "red", "left"), "ground must be one of green"),
        (((Shape("red", "circle"),), "green", "sideways"), "motion must be one of left"),
    ],
)
def test_no_scene(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scene(*arguments)


def test_no_shape():
    with pytest.raises(ValueError, match=r"colour must be one of red.*got 'orange'"):
        Shape("orange", "circle")
    with pytest.raises(ValueError, match=r"form must be one of circle.*got 'star'"):
        Shape("red", "star")


def test_order_of_shapes_does_not_matter():
    a, b = Shape("white", "cross"), Shape("red", "circle")
    assert Scene((a, b), "black", "up") == Scene((b, a), "black", "up")


def test_held_out_combinations_never_occur_in_training():
    train, held = set(scenes(9000)), set(scenes(1000, held_out=True))
    assert not train & held and all(scene.held_out for scene in held)
    assert {len(scene.shapes) for scene in held} == {1, 2, 3}
    # One in five of all one-shape scenes, though every part of them is known from others.
    whole = [
        Scene((Shape(colour, form),), ground, motion)
        for colour, form, ground, motion in itertools.product(COLOURS, FORMS, GROUNDS, MOTIONS)
        if colour != ground
    ]
    assert 0.15 < sum(scene.held_out for scene in whole) / len(whole) < 0.25
    parts = {(s.colour, s.form, scene.ground, scene.motion) for scene in train for s in scene.shapes}
    assert {(s.colour, s.form, scene.ground, scene.motion) for scene in held for s in scene.shapes} <= parts


def test_captions_say_everything_in_known_words():
    random, known = Random(1), set(words())
    for scene in scenes(500):
        text = caption(scene, random)
        assert set(re.findall(r"\w+", text)) <= known, text
        for shape in scene.shapes:
            assert re.search(rf"a {shape.colour} ({SAYS[shape.form]})\b", text), text
        assert re.search(rf"(over|on|across) a {scene.ground} \w+", text), text
        assert re.search(rf"\b({SAYS[scene.motion]})\b", text), text
        assert text.count("a ") >= len(scene.shapes) + 1
        assert (re.search(r"\b(moves|drifts|glides|slides|stands|rests|stays)\b", text) is None) == (
            len(scene.shapes) > 1
        )


def test_one_wrong_changes_one_attribute_and_all_get_their_turn():
    random, kinds = Random(2), set()
    for scene in scenes(400):
        other = one_wrong(scene, random)
        a, b = set(scene.shapes), set(other.shapes)
        changed = []
        if scene.ground != other.ground:
            changed.append("ground")
        if scene.motion != other.motion:
            changed.append("motion")
        if len(a) != len(b):
            assert a < b or b < a
            changed.append("count")
        elif a != b:
            (old,), (new,) = a - b, b - a
            changed.append("colour" if old.form == new.form else "form")
            assert old.form == new.form or old.colour == new.colour
        assert len(changed) == 1, (scene, other)
        kinds |= set(changed)
    assert kinds == {"ground", "motion", "count", "colour", "form"}


def test_captions_are_read_back():
    random = Random(3)
    for _ in range(500):
        scene = sample_scene(random, held_out=random.random() < 0.5)
        text = caption(scene, random)
        assert read_caption(text) == scene == read_caption(text.upper()), text


@pytest.mark.parametrize(
    "text",
    ["", "a red fox in the snow", "a red circle moves left", "a red circle over a green field", "over a blue sea, up",
     "a red circle moves left and right over a green field"],
)  # fmt: skip
def test_what_is_no_caption_is_not_read(text):
    with pytest.raises(ValueError, match="no caption of this world"):
        read_caption(text)
