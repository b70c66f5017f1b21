"""What whoever opens a stream may choose for it."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ...config import Size, preset_name
from ..scope_integration import ScopeOptimizationConfig
from .messages import Prompt


class Wishes(BaseModel):
    """A stream's prompt, preset, size in pixels and seed; None leaves it to the server."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Prompt | None = None
    preset: Annotated[str, AfterValidator(preset_name)] | None = None
    height: Size | None = None
    width: Size | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None

    def config(self, usual: ScopeOptimizationConfig) -> ScopeOptimizationConfig:
        """The stream's config; usual: where nothing is wished for. Raises ValueError for more pixels than that has."""
        fields = {} if self.preset is None else usual.preset_fields(self.preset)
        own = {"height": self.height, "width": self.width, "seed": self.seed}
        fields |= {name: value for name, value in own.items() if value is not None}
        if not fields:
            return usual
        config = dataclasses.replace(usual, **fields)
        if math.prod(config.size) > math.prod(usual.size):
            height, width = usual.size
            raise ValueError(f"height and width may have at most {height}x{width} pixels together, as the server's own")
        return config

    def differ_from(self, config: ScopeOptimizationConfig) -> list[str]:
        """The wishes, by name, that a stream which is open with this config does not fulfil."""
        fixed = "height", "width", "seed"
        return [name for name in fixed if getattr(self, name) not in (None, getattr(config, name))]
