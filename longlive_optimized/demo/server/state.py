"""How things stand with a stream, as its viewers are told."""

from __future__ import annotations

from ...config import PRESETS
from ..scope_integration import ScopeOptimizationConfig
from . import messages
from .commands import Commands
from .feed import Feed
from .inputs import Inputs
from .worker import Worker

_MADE_WITH = "denoising_steps", "local_attn_size", "target_fps", "drop_frames_on_lag", "height", "width", "seed"
_SHOWN_WITH = "playback_speed", "interpolation", "shown_fps", "model_fps"


class State:
    """Of one stream: what is wished for, what its last block was really made with, and what it is made from. Belongs to
    one event loop."""

    def __init__(self, feed: Feed, inputs: Inputs, commands: Commands, worker: Worker):
        self._feed, self._inputs, self._commands, self._worker = feed, inputs, commands, worker
        self._last: tuple = ()  # what was so with the last block

    def as_json(self) -> dict:
        """The fields of ``state``, without those of the room."""
        feed, commands = self._feed, self._commands
        prompt, replaying = feed.prompt.prompt, feed.replaying
        made_with = self._last[0] if self._last else self._made_with()
        return {
            "prompt": messages.words(prompt),
            "prompts": None if isinstance(prompt, str) else [*prompt],
            "asked": feed.frames.arrivals.asked,
            "shown": feed.frames.arrivals.shown,
            "transition": {"blocks": commands.transition, "blend": commands.blend},
            "preset": commands.preset or self.preset_name,
            "effective": made_with | self._at_once(),
            "loras": self.loras(),
            "input": self._inputs.state(),
            "replaying": replaying and {"block": replaying[0], "blocks": replaying[1]},
            "overlay": feed.overlay,
            "paused": feed.paused,
        }

    def is_news(self) -> bool:
        """Note what is so now that a block has been made, or can be; whether something is otherwise than before."""
        before, self._last = self._last, (self._made_with(), self._inputs.state(), self._feed.replaying)
        return self._last != before

    def loras(self) -> list[dict]:
        """As they are wished for."""
        return [{"name": name, "scale": scale} for name, scale in self._worker.loras.wished.items()]

    @property
    def preset_name(self) -> str:
        """The preset in force, or that which will be."""
        pipeline = self._feed.pipeline
        return pipeline.preset if pipeline else preset_of(self._feed.config_in_force)

    def _made_with(self) -> dict:
        """What the last block was really made with; before the first, what it will be made with."""
        config, stats = self._feed.config_in_force, self._feed.stats
        return {name: getattr(config, name) for name in _MADE_WITH} | {
            "preset": self.preset_name,
            "precision": stats["precision"] if self._feed.pipeline else config.precision,
            "cuda_graphs": stats["cuda_graphs_active"],
            "device": self._worker.device,
            "memory": self._worker.memory,
        }

    def _at_once(self) -> dict:
        """What changes without a block: how frames are shown, and all streams' LoRAs."""
        config = self._feed.config_wished_for
        return {name: getattr(config, name) for name in _SHOWN_WITH} | {"loras": self._worker.loras.merged}


def preset_of(config: ScopeOptimizationConfig) -> str:
    """The preset that a config is; ``custom`` if it is none."""

    def fits(name: str) -> bool:
        return all(getattr(config, field) == value for field, value in config.preset_fields(name).items())

    return next(filter(fits, PRESETS), "custom")
