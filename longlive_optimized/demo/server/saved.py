"""A stream of a server as it can be kept, and go on at another server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...engine.snapshot import Snapshot
from ..scope_integration import ScopeOptimizationConfig
from ..scope_integration.prompt_box import Prompt


@dataclass(frozen=True)
class Saved:
    """What its viewers have wished for, beside the video itself; it can be pickled. Not in it: input video, pictures
    and the recording.

    config: with what was wished for last. transition, blend: how later prompts are reached. preset: as it was named.
    """

    config: ScopeOptimizationConfig
    prompt: Prompt
    snapshot: Snapshot
    overlay: bool = False
    paused: bool = False
    transition: int = 1
    blend: Literal["linear", "slerp"] = "linear"
    preset: str | None = None
