"""Any text as the nearest scene: what is said of shapes, ground and motion holds, the rest is filled in.

The rule that models are trained on, in words: a colour belongs to the next thing named; a thing whose colour is not
said has its own, or is yellow; a second thing of a colour, or a fourth, is left out; where none is named there is a
circle. The first ground and the first motion named hold; without them things move right over a grey ground, which is
also what lies under a thing of the ground's colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from random import Random

from .vocabulary import LONGEST, ids, known_words
from .world import (
    COLOURS,
    DIRECTION_WORDS,
    FORM_WORDS,
    GROUND_WORDS,
    GROUNDS,
    MAX_SHAPES,
    MORE_GROUND_WORDS,
    MORE_MOTION_WORDS,
    RESTS,
    THINGS,
    Scene,
    Shape,
    caption,
)

_COLOUR, _FORM, _GROUND, _MOTION = "yellow", "circle", "grey", "right"  # where nothing is said
_STRANGE = "q"  # no known word begins so
_EMPTY = 0.2  # share of texts with no known word
_MOST_WORDS, _MOST_STRANGE = 9, 14


def nearest(text: str) -> Scene:
    """The scene that a text is read as."""
    colour = ground = motion = None
    shapes: dict[str, Shape] = {}
    for word in known_words(text):
        if word in COLOURS or word in GROUNDS:
            colour = word
        elif thing := _things().get(word):
            shape = Shape(colour if colour in COLOURS else thing.colour, thing.form)
            if len(shapes) < MAX_SHAPES:
                shapes.setdefault(shape.colour, shape)
            colour = None
        elif named := _grounds().get(word):
            ground, colour = ground or (colour if colour in GROUNDS else named), None
        else:
            motion = motion or _motions().get(word)
    if not shapes:
        shape = Shape(colour if colour in COLOURS else _COLOUR, _FORM)
        shapes[shape.colour] = shape
    if ground is None or ground in shapes:
        ground = _GROUND
    return Scene(tuple(shapes.values()), ground, motion or _MOTION)


def sample_text(random: Random) -> tuple[str, Scene]:
    """Known words at random, or none, and the scene that they are read as: one of the training combinations."""
    while True:
        count = 0 if random.random() < _EMPTY else random.randint(1, _MOST_WORDS)
        text = " ".join(random.choice(random.choice(_kinds())) for _ in range(count))
        scene = nearest(text)
        if not scene.held_out:
            return text, scene


def wordings(text: str, scene: Scene, count: int, random: Random) -> list[str]:
    """``count`` texts that are read as ``scene``: ``text`` with strange words in it and others left out."""
    return [_loosened(text, scene, random) for _ in range(count)]


def captions(scene: Scene, count: int, random: Random) -> list[str]:
    """Sentences that mean ``scene``, the last of them loosened as ``wordings`` are."""
    return [
        *(caption(scene, random) for _ in range(count - 1)),
        _loosened(caption(scene, random), scene, random),
    ]


def _loosened(text: str, scene: Scene, random: Random, tries: int = 4) -> str:
    for _ in range(tries):
        left_out = random.choice((0.0, 0.1, 0.3))
        made = [word for word in text.split() if random.random() >= left_out]
        for _ in range(random.randint(0, _MOST_STRANGE)):
            made.insert(random.randint(0, len(made)), _STRANGE)
        loose = " ".join(made)
        if nearest(loose) == scene and len(ids(loose)) <= LONGEST:
            return loose
    return text


@cache
def _things() -> Mapping[str, Shape]:
    forms = {word: Shape(_COLOUR, form) for form, words in FORM_WORDS.items() for word in words}
    return forms | THINGS


@cache
def _grounds() -> Mapping[str, str]:
    return {
        word: ground
        for words_of in (GROUND_WORDS, MORE_GROUND_WORDS)
        for ground, words in words_of.items()
        for word in words
    }


@cache
def _motions() -> Mapping[str, str]:
    said = {word: motion for motion, words in MORE_MOTION_WORDS.items() for word in words}
    said |= {word: motion for motion, ways in DIRECTION_WORDS.items() for word in ways if " " not in word}
    return said | {verb.split()[0]: "still" for verbs in (("still",), *RESTS) for verb in verbs}


@cache
def _kinds() -> Sequence[Sequence[str]]:
    """Known words by kind, for random texts: colours and things more often than others."""
    kinds = [*COLOURS], [*_things()], [*_grounds()], [*_motions()], [*GROUNDS], ["a", "and", "over"]
    return [kinds[i] for i in (0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5)]
