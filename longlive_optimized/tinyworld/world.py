"""The tiny world: a few coloured shapes drift over a coloured ground, and a sentence says so.

Everything the shipped model knows is in this file and in ``render``. A scene has no randomness of its own: where its
shapes stand is a layout, drawn beside it, so one sentence has many videos.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

RGB = tuple[int, int, int]

# Far enough apart that blur, noise and a codec's chroma cannot turn one into another: any two of a table, and any
# colour and a ground of another name, are at least 85 apart in RGB.
COLOURS: dict[str, RGB] = {
    "red": (225, 40, 40),
    "yellow": (250, 220, 40),
    "green": (40, 200, 70),
    "blue": (50, 80, 235),
    "purple": (150, 40, 170),
    "white": (245, 245, 245),
    "pink": (250, 140, 190),
    "cyan": (60, 210, 230),
}
GROUNDS: dict[str, RGB] = {
    "green": (60, 110, 55),
    "blue": (25, 60, 120),
    "grey": (125, 125, 130),
    "brown": (205, 140, 80),
    "black": (20, 20, 30),
    "white": (222, 228, 235),
}
FORMS = ("circle", "square", "triangle", "cross", "ring")
MOTIONS: dict[str, tuple[int, int]] = {  # (rows, columns) per frame, in units of the world's speed
    "left": (0, -1),
    "right": (0, 1),
    "up": (-1, 0),
    "down": (1, 0),
    "still": (0, 0),
}
MAX_SHAPES = 3

FORM_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
}
GROUND_WORDS = {
    "green": ("field", "meadow"),
    "blue": ("sea", "lake"),
    "grey": ("road", "floor"),
    "brown": ("desert", "dune"),
    "black": ("night", "sky"),
    "white": ("snow", "ice"),
}
# Everyday words, read as the nearest that the world has (``nearest``).
MORE_GROUND_WORDS = {
    "green": ("grass", "forest", "garden", "park"),
    "blue": ("water", "ocean", "river", "rain"),
    "grey": ("street", "city", "stone", "fog"),
    "brown": ("sand", "beach", "earth", "wood"),
    "black": ("space", "dark", "cave"),
    "white": ("winter", "cloud", "paper"),
}
MORE_MOTION_WORDS = {
    "up": ("rise", "rising", "fly", "flies", "climb", "jump", "leap"),
    "down": ("fall", "sink", "drop"),
    "still": ("sit", "sleep", "stop", "wait"),
}
DIRECTION_WORDS = {
    "left": ("left", "to the left", "leftward"),
    "right": ("right", "to the right", "rightward"),
    "up": ("up", "upward"),
    "down": ("down", "downward"),
}
_MOVES = (("moves", "move"), ("drifts", "drift"), ("glides", "glide"), ("slides", "slide"))
RESTS = (("stands still", "stand still"), ("rests", "rest"), ("stays in place", "stay in place"))
_PLACES = ("over", "on", "across")
_HELD_OUT = 5  # one combination in so many


@dataclass(frozen=True, order=True)
class Shape:
    """One shape, by the names of COLOURS and FORMS. Raises ValueError naming the field."""

    colour: str
    form: str

    def __post_init__(self) -> None:
        _expect("colour", self.colour, COLOURS)
        _expect("form", self.form, FORMS)


@dataclass(frozen=True)
class Scene:
    """What a clip shows: one to three shapes of different colours, the ground, and how all of them move.

    Shapes are kept sorted, so that equal scenes are equal whatever order they were named in. No shape has the colour
    name of the ground. Raises ValueError naming the field.
    """

    shapes: tuple[Shape, ...]
    ground: str
    motion: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", tuple(sorted(self.shapes)))
        _expect("ground", self.ground, GROUNDS)
        _expect("motion", self.motion, MOTIONS)
        colours = [shape.colour for shape in self.shapes]
        if not 1 <= len(colours) <= MAX_SHAPES:
            raise ValueError(f"shapes must number 1 to {MAX_SHAPES}, got {len(colours)}")
        if len({*colours, self.ground}) <= len(colours):
            raise ValueError(f"shapes must differ in colour from each other and from the ground, got {self}")

    def __str__(self) -> str:
        return f"{' + '.join(f'{s.colour} {s.form}' for s in self.shapes)} | {self.ground} | {self.motion}"

    @property
    def held_out(self) -> bool:
        """Whether this combination never occurs in training."""
        return zlib.crc32(str(self).encode()) % _HELD_OUT == 0


def _expect(name: str, value: str, known) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


THINGS = {
    "sun": Shape("yellow", "circle"),
    "moon": Shape("white", "circle"),
    "star": Shape("yellow", "cross"),
    "ball": Shape("red", "circle"),
    "apple": Shape("red", "circle"),
    "fox": Shape("red", "triangle"),
    "fire": Shape("red", "triangle"),
    "tree": Shape("green", "triangle"),
    "fish": Shape("cyan", "triangle"),
    "boat": Shape("white", "triangle"),
    "bird": Shape("white", "cross"),
    "flower": Shape("pink", "cross"),
    "cat": Shape("purple", "square"),
    "house": Shape("pink", "square"),
    "car": Shape("blue", "square"),
    "wheel": Shape("white", "ring"),
    "bubble": Shape("cyan", "ring"),
}


class Known(NamedTuple):
    """A part of the world: what a model knows of it."""

    colours: tuple[str, ...] = tuple(COLOURS)
    grounds: tuple[str, ...] = tuple(GROUNDS)
    forms: tuple[str, ...] = FORMS


WHOLE = Known()


def known_by(vocabulary: Container[str]) -> Known:
    """The part of the world that can be named with these words alone."""
    return Known(
        tuple(name for name in COLOURS if name in vocabulary),
        tuple(name for name in GROUNDS if all(word in vocabulary for word in (name, *GROUND_WORDS[name]))),
        tuple(name for name in FORMS if all(word in vocabulary for word in FORM_WORDS[name])),
    )


def sample_scene(random: Random, *, held_out: bool, known: Known = WHOLE) -> Scene:
    """A scene of the training combinations, or of those held out: any count, ground, colours, forms and motion."""
    while True:
        ground = random.choice(known.grounds)
        colours = random.sample([name for name in known.colours if name != ground], random.randint(1, MAX_SHAPES))
        shapes = tuple(Shape(colour, random.choice(known.forms)) for colour in colours)
        scene = Scene(shapes, ground, random.choice(list(MOTIONS)))
        if scene.held_out == held_out:
            return scene


def one_wrong(scene: Scene, random: Random) -> Scene:
    """``scene`` with exactly one attribute changed: ground, motion, count, a colour or a form."""
    shapes, ground = list(scene.shapes), scene.ground
    used = {ground, *(shape.colour for shape in shapes)}
    spare = [name for name in COLOURS if name not in used]
    i = random.randrange(len(shapes))
    match random.choice(("ground", "motion", "count", "colour", "form")):
        case "ground":
            ground = random.choice([name for name in GROUNDS if name not in used])
        case "motion":
            return Scene(scene.shapes, ground, random.choice([name for name in MOTIONS if name != scene.motion]))
        case "count" if len(shapes) == MAX_SHAPES or (len(shapes) > 1 and random.random() < 0.5):
            del shapes[i]
        case "count":
            shapes.append(Shape(random.choice(spare), random.choice(FORMS)))
        case "colour":
            shapes[i] = Shape(random.choice(spare), shapes[i].form)
        case "form":
            shapes[i] = Shape(shapes[i].colour, random.choice([name for name in FORMS if name != shapes[i].form]))
    return Scene(tuple(shapes), ground, scene.motion)


def caption(scene: Scene, random: Random) -> str:
    """One of the sentences that mean ``scene``."""
    shapes = random.sample(scene.shapes, len(scene.shapes))
    things = [f"a {shape.colour} {random.choice(FORM_WORDS[shape.form])}" for shape in shapes]
    subject = " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)
    several = len(things) > 1
    if scene.motion == "still":
        verb = random.choice(RESTS)[several]
    else:
        verb = f"{random.choice(_MOVES)[several]} {random.choice(DIRECTION_WORDS[scene.motion])}"
    place = f"{random.choice(_PLACES)} a {scene.ground} {random.choice(GROUND_WORDS[scene.ground])}"
    sentence = f"{place}, {subject} {verb}" if random.random() < 0.3 else f"{subject} {verb} {place}"
    return sentence + random.choice(("", "."))


def read_caption(text: str) -> Scene:
    """The scene that a caption means; ValueError where it means none."""
    found = re.findall("[a-z]+", text.lower())
    pairs = list(itertools.pairwise(found))
    shapes = [Shape(a, form) for a, b in pairs for form, names in FORM_WORDS.items() if a in COLOURS and b in names]
    grounds = [
        ground for pair in pairs for ground, names in GROUND_WORDS.items() if pair[0] == ground and pair[1] in names
    ]
    still = {word for verbs in RESTS for verb in verbs for word in verb.split()} & set(found)
    named = {"left", "right", "up", "down"} & {word.removesuffix("ward") for word in found}
    motions = ["still"] if still and not named else sorted(named)
    if not shapes or len(grounds) != 1 or len(motions) != 1:
        raise ValueError(f"no caption of this world: {text!r}")
    return Scene(tuple(shapes), grounds[0], motions[0])


def words() -> list[str]:
    """Every word that is known, sorted."""
    phrases: Iterator[str] = itertools.chain(
        ("a", "and"), COLOURS, GROUNDS, _PLACES, *FORM_WORDS.values(), *GROUND_WORDS.values(),
        *DIRECTION_WORDS.values(), *_MOVES, *RESTS, THINGS, *MORE_GROUND_WORDS.values(), *MORE_MOTION_WORDS.values(),
    )  # fmt: skip
    return sorted({word for phrase in phrases for word in phrase.split()})
