"""A story that a stream makes again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...config import CHANGEABLE, PRESETS, OptimizationConfig, StreamSettings
from ...story import OF_ENGINE, OF_STREAM, Story
from ...weights.locate import native_size
from .prompt_box import Prompt
from .story_recorder import of_engine

if TYPE_CHECKING:
    from ...engine.engine import LongLiveEngine


class Replay:
    """How far it is. moment: what the next block is made with. beginning: fields of the config that it begins with.
    begun: whether the stream has begun anew for it. done, blocks: how many are made, and how many there are."""

    def __init__(self, story: Story):
        self.story, self.begun, self.done = story, False, 0
        self.blocks = story.length
        config = story.config()
        self.beginning: dict[str, Any] = {**PRESETS[story.preset]}
        self.beginning |= {name: getattr(config, name) for name in CHANGEABLE if name in OF_STREAM}
        self._moments = story.moments()
        first = next(self._moments)
        vae = {"vae_type": config.vae_type} if story.changes_vae else {}  # the stream may be where such a story ended
        self.moment = first._replace(loras=story.loras | first.loras, settings=vae | first.settings)

    @property
    def prompt(self) -> Prompt:
        """The next block's."""
        prompt = self.moment.prompt
        return Prompt(prompt.what, prompt.blend, prompt.transition_blocks)

    @property
    def changes(self) -> dict[str, Any]:
        """Fields of the config that change with the next block."""
        moment = self.moment
        fields = {**PRESETS[moment.preset]} if moment.preset else {}
        return fields | {name: value for name, value in moment.settings.items() if name in CHANGEABLE}

    def go_on(self) -> bool:
        """The next block has been made; whether there is one more."""
        self.done += 1
        moment = next(self._moments, None)
        if moment is None:
            return False
        self.moment = moment
        return True


def check_fits(story: Story, engine: LongLiveEngine, settings: StreamSettings, vae_type: str) -> None:
    """Raises ValueError where an engine's stream of these settings, which have a size, cannot make the story's video
    again."""
    story.check_recorded()
    if story.model != engine.model_name:
        raise ValueError(f"story must be of the model that is loaded, {engine.model_name!r}, got {story.model!r}")
    config = sized(story, engine)
    if config.size != settings.size:
        (height, width), (here, wide) = config.size, settings.size
        raise ValueError(f"story must be of this stream's size, {here}x{wide}, got {height}x{width}")
    fixed = {name: getattr(settings, name) for name in OF_STREAM if name not in CHANGEABLE}
    usual, shared = type(config)(), of_engine(engine)
    fixed |= {name: shared.get(name, getattr(usual, name)) for name in OF_ENGINE if name in story.settings}
    if "vae_precision" in fixed and "vae_precision" not in shared:
        fixed["vae_precision"] = "bf16"
    for name, value in fixed.items():
        if getattr(config, name) != value:
            got = getattr(config, name)
            raise ValueError(f"story must have the stream's {name}, {value!r}, in its settings, got {got!r}")
    if config.vae_type != vae_type:
        raise ValueError(f"story must have the stream's vae_type, {vae_type!r}, got {config.vae_type!r}")
    merged = [str(lora.path) for lora in engine.loras]
    if sorted(merged) != sorted(story.loras):
        got, here = ", ".join(story.loras) or "none", ", ".join(merged) or "none"
        raise ValueError(f"story must have the engine's loras, {here}, got {got}: make an engine with them")


def sized(story: Story, engine: LongLiveEngine) -> OptimizationConfig:
    """A story's config, with the model's own size where it has none."""
    return story.config().sized(native_size(engine.model_name))
