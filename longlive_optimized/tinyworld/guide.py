"""What the built-in model's page tells those who write prompts: its world in words, and prompts that it knows."""

from __future__ import annotations

from collections.abc import Iterable

from ..weights.locate import TINY
from .render import NATIVE
from .vocabulary import known_to
from .world import GROUND_WORDS, MAX_SHAPES

SUGGESTIONS = (
    "a red circle and a blue square move left over a green field",
    "a yellow triangle drifts up over a black night",
    "a white cross, a red disc and a green box glide right across a grey road",
    "a purple square rests on a blue sea",
    "a green circle and a white triangle slide down over a brown desert",
    "over a black sky, a yellow disc and a purple cross move right",
)
SIZES = (NATIVE,)


def help_text() -> str:
    """What a prompt of this world is made of."""
    known = known_to(TINY)
    grounds = [f"{ground} {GROUND_WORDS[ground][0]}" for ground in known.grounds]
    return (
        f"This model is a small one, for trying things out. It knows one to {MAX_SHAPES} shapes "
        f"({_list(known.forms)}) in {_list(known.colours)}, over a ground ({_list(grounds)}), that move left, right, "
        "up or down, or rest. Other words mean little to it, nor can it paint pictures of other sizes than "
        f"{NATIVE[1]} × {NATIVE[0]}."
    )


def _list(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"
