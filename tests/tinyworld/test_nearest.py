"""What any text is read as."""

from random import Random

import pytest

from longlive_optimized.tinyworld.nearest import captions, nearest, sample_text, wordings
from longlive_optimized.tinyworld.vocabulary import LONGEST, UNKNOWN, ids
from longlive_optimized.tinyworld.world import MORE_GROUND_WORDS, MORE_MOTION_WORDS, THINGS, caption, sample_scene


@pytest.mark.parametrize(
    ("text", "scene"),
    [
        ("", "yellow circle | grey | right"),
        ("lorem ipsum dolor", "yellow circle | grey | right"),
        ("something purple", "purple circle | grey | right"),
        ("a fox runs through the snow", "red triangle | white | right"),
        ("a purple fox runs through the snow", "purple triangle | white | right"),
        ("two foxes jump", "red triangle | grey | up"),
        ("a sun sinks into the ocean", "yellow circle | blue | down"),
        ("a cross over a dune", "yellow cross | brown | right"),
        ("a big, shiny red ball sleeps", "red circle | grey | still"),
        ("a green circle over a green field", "green circle | grey | right"),
        ("a red circle, a red square and a blue box", "blue square + red circle | grey | right"),
        ("a red, a blue, a green and a pink disc", "pink circle | grey | right"),
        ("a sun, a moon, a fish and a car rise, then fall", "cyan triangle + white circle + yellow circle | grey | up"),
        ("a black night over a sea", "yellow circle | black | right"),
        ("a grey circle", "yellow circle | grey | right"),
    ],
)
def test_what_is_said_holds_and_the_rest_is_filled_in(text, scene):
    assert str(nearest(text)) == scene


def test_what_is_read_into_nothing_is_learnt():
    assert not nearest("").held_out


def test_every_everyday_word_means_something():
    for thing, shape in THINGS.items():
        assert nearest(f"a {thing}").shapes == (shape,)
    for ground, names in MORE_GROUND_WORDS.items():
        assert {nearest(name).ground for name in names} == {ground}
    for motion, names in MORE_MOTION_WORDS.items():
        assert {nearest(name).motion for name in names} == {motion}


def test_captions_are_read_as_their_scene_however_loosened():
    dice, strange = Random(1), 0
    for _ in range(300):
        scene = sample_scene(dice, held_out=dice.random() < 0.5)
        assert nearest(caption(scene, dice)) == scene
        for text in captions(scene, 4, dice):
            assert nearest(text) == scene and len(ids(text)) <= LONGEST
            strange += UNKNOWN in ids(text)
    assert 150 < strange < 320  # most of those that are loosened, one in four, and no other


def test_texts_of_known_words_at_random_and_of_none():
    dice, empty, scenes = Random(2), 0, set()
    for _ in range(400):
        text, scene = sample_text(dice)
        assert nearest(text) == scene and not scene.held_out
        assert {nearest(other) for other in wordings(text, scene, 4, dice)} == {scene}
        empty += not text
        scenes.add(scene)
    assert 40 < empty < 120 and len(scenes) > 200
