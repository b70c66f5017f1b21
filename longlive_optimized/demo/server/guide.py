"""What a page tells those who write prompts: suggestions, help, sizes and limits, by the loaded model."""

from __future__ import annotations

import math

from ...config import PIXELS_PER_TOKEN
from ...tinyworld import guide as tiny
from ...weights.locate import TINY
from .messages import LONGEST_PROMPT, MOST_BLOCKS
from .source import Source

SUGGESTIONS = (
    "a red fox walks through fresh snow, morning light, film grain",
    "the fox leaps over a frozen stream in slow motion",
    "a paper boat drifts down a rainy street at night, neon reflections",
    "a hot air balloon rises over terraced green hills at dawn",
    "an astronaut tends a small garden inside a glass dome on Mars",
    "a koi pond seen from above, petals fall on the water",
)
HELP = (
    "Say who or what is seen, what it does, where, in which light, and how it is filmed. When you change the prompt, "
    "name the same things again: what is not named may go. One thing that moves works better than many."
)
SIZES = ((480, 832), (320, 576), (832, 480), (576, 320), (512, 512), (256, 448))  # height and width


def guide(source: Source) -> dict:
    """The guide of a loaded model. ``limits``: most characters of a prompt, blocks of a transition and pixels of a
    picture, whose sides are multiples of ``multiple``.
    """
    name, (height, width) = source.engine.model_name, source.config.size
    most, builtin = height * width, name == TINY
    sizes = [size for size in (tiny.SIZES if builtin else SIZES) if math.prod(size) <= most]
    return {
        "name": name,
        "builtin": builtin,
        "suggestions": [*(tiny.SUGGESTIONS if builtin else SUGGESTIONS)],
        "help": tiny.help_text() if builtin else HELP,
        "sizes": [[*size] for size in dict.fromkeys([(height, width), *sizes])],
        "limits": {
            "prompt": LONGEST_PROMPT,
            "transition_blocks": MOST_BLOCKS,
            "pixels": most,
            "multiple": PIXELS_PER_TOKEN,
        },
    }
