"""A server's LoRAs: how strongly each acts in all of its streams, and what stories call them."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Mapping

from ...engine.engine import LongLiveEngine
from ...engine.ranks import RankError
from ...plain import did_you_mean
from ...story import Story
from ...weights.user_lora import UserLora
from .messages import MOST_LORA_SCALE

REST = 1.0  # seconds between two merges, for each stream that is watched: each computes its window anew
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds after a merge that failed half-way, doubled each time


def served(scales: Mapping[str, float]) -> list[UserLora]:
    """LoRAs that can be served, of their files' paths and scales. Raises ValueError for two of one name and for a scale
    out of bounds, and what UserLora raises."""
    loras = [UserLora(path, scale) for path, scale in scales.items()]  # pyright: ignore[reportArgumentType]
    names = [name_of(lora) for lora in loras]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two files are called {name!r}, by which viewers and stories name a LoRA: rename one")
    for lora in loras:
        _check_scale(name_of(lora), lora.scale)
    return loras


class Loras:
    """Of an engine whose streams all have its weights. Scales are by name: a file's, without folder and ending.

    It is guarded by whoever has it, but for ``merge``, which is the worker's thread's, and what is merged.

    rests_until: when the next merge may be (time.monotonic).
    """

    def __init__(self) -> None:
        self._engine: LongLiveEngine | None = None
        self._wish: dict[str, float] | None = None
        self._failures, self.rests_until = 0, float("-inf")

    def serve(self, engine: LongLiveEngine) -> None:
        """Those of an engine that is loaded now; before that there are none."""
        self._engine = engine

    @property
    def files(self) -> tuple[UserLora, ...]:
        """As they are merged."""
        return self._engine.loras if self._engine else ()

    @property
    def merges(self) -> int:
        """How often other scales were merged."""
        return self._engine.merges if self._engine else 0

    @property
    def merged(self) -> dict[str, float]:
        """With what blocks that begin now are made."""
        return {name_of(lora): lora.scale for lora in self.files}

    @property
    def wished(self) -> dict[str, float]:
        """As they will be merged."""
        return self.merged | (self._wish or {})

    def check(self, scales: Mapping[str, float]) -> None:
        """Raises ValueError where one of these is not served."""
        names = [*self.merged]
        for name in scales:
            if name not in names:
                raise ValueError(f"no LoRA {name[:70]!r} is served{did_you_mean(name, names)}; {', '.join(names)} are")

    def wish(self, scales: Mapping[str, float]) -> None:
        """Merge these, and the others as they were wished for, in place of what was wished for and is not merged."""
        self._wish = {**self.wished, **scales}

    def is_due(self, now: float) -> bool:
        """Whether something is to be merged now; the worker's thread's."""
        if self._wish == self.merged:
            self._wish = None
        return self._wish is not None and now >= self.rests_until

    def merge(self) -> None:
        """Merge what is wished for. Raises what ``set_loras`` raises: where that has changed nothing the wish is given
        up, otherwise it stands, to be tried again."""
        wish, engine = self._wish, self._engine
        assert wish is not None and engine
        try:
            engine.set_loras([dataclasses.replace(lora, scale=wish[name_of(lora)]) for lora in engine.loras])
        except RankError:
            raise
        except (ValueError, OSError):
            self._forget(wish)
            raise
        except Exception:
            delay = min(FIRST_DELAY * 2**self._failures, LONGEST_DELAY)
            self._failures, self.rests_until = self._failures + 1, time.monotonic() + delay
            raise
        self._forget(wish)

    def rest(self, watched: int) -> None:
        """Some have been merged; watched: how many streams are, all of which now compute their windows anew."""
        self._failures, self.rests_until = 0, time.monotonic() + REST * max(1, watched)

    def _forget(self, wish: dict[str, float]) -> None:
        if self._wish is wish:  # there is no newer one
            self._wish = None

    # --- stories

    def told(self, story: Story) -> Story:
        """A story as viewers are told: files without their folders."""
        return _renamed(story, _file_name)

    def ours(self, story: Story) -> Story:
        """A story that names files, with those that are served here in their place; those that it does not name act not
        at all. Raises ValueError with the names of those that are not served."""
        paths = {lora.path.name: str(lora.path) for lora in self.files}
        names = [_file_name(path) for path in story.loras]
        if unknown := [name for name in names if name not in paths]:
            here = f", but {', '.join(paths)}" if paths else ": start the server with --lora"
            raise ValueError(f"story has LoRAs that are not served here, {', '.join(unknown)}{here}")
        if len({*names}) < len(names):
            raise ValueError(f"story must name each LoRA's file once, got {', '.join(names)}")
        for scales in (story.loras, *(change.loras or {} for change in story.changes)):
            for path, scale in scales.items():
                _check_scale(f"story's {_file_name(path)}", scale)
        story = _renamed(story, lambda path: paths[_file_name(path)])
        return story.model_copy(update={"loras": dict.fromkeys(paths.values(), 0.0) | story.loras})

    def beginning(self, story: Story) -> dict[str, float]:
        """The scales that one of ``ours`` begins with."""
        return {name_of(lora): story.loras[str(lora.path)] for lora in self.files}


def name_of(lora: UserLora) -> str:
    """What viewers call it."""
    return lora.path.stem


def _check_scale(what: str, scale: float) -> None:
    if not abs(scale) <= MOST_LORA_SCALE:
        raise ValueError(f"{what} must have a scale from -{MOST_LORA_SCALE:g} to {MOST_LORA_SCALE:g}, got {scale:g}")


def _file_name(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]


def _renamed(story: Story, name: Callable[[str], str]) -> Story:
    def new(loras: Mapping[str, float]) -> dict[str, float]:
        return {name(path): scale for path, scale in loras.items()}

    changes = tuple(each.model_copy(update={"loras": each.loras and new(each.loras)}) for each in story.changes)
    return story.model_copy(update={"loras": new(story.loras), "changes": changes})
