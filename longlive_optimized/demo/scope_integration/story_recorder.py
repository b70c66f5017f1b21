"""Writes down what a stream's blocks are made with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from ...config import PRESETS, OptimizationConfig
from ...engine.request import BlockRequest
from ...keywords import PresetName
from ...story import MOST_BLOCKS, OF_STREAM, VERSION, Story

if TYPE_CHECKING:
    from ...engine.engine import LongLiveEngine
    from ...engine.stream import Stream

MOST_BYTES = 48 * 1024  # of prompts and changes: such a story still goes into a message to the server
_HELD = {  # beside the prompt, a request's fields that a story cannot hold
    "video": "video input",
    "control": "control video or pictures",
}


class StoryRecorder:
    """Of one stream, from its first block on. It is written to by whoever makes blocks, and read from any thread.

    The recording is bounded: behind MOST_BYTES of prompts and changes it says that it holds no more, and begins anew
    with the next video of the stream.
    """

    def __init__(self, engine: LongLiveEngine, stream: Stream):
        self._engine, self._stream = engine, stream
        self._unrecorded: list[dict] = []
        self._clear()

    def _clear(self) -> None:
        self.blocks = 0  # made so far
        self._header: dict[str, Any] = {}
        self._prompts: list[dict] = []
        self._changes: list[dict] = []
        self._unrecorded = []
        self._bytes, self._full = 0, False
        self._identity: tuple | None = None
        self._before: dict[str, Any] = {}
        self._loras: dict[str, float] = {}
        self._merges = 0

    def cannot_hold(self, what: str) -> None:
        """From the next block on the video is made from this, too."""
        if all(entry["what"] != what for entry in self._unrecorded):
            self._unrecorded.append({"block": self.blocks, "what": what})

    def begin_anew(self) -> None:
        """Forget all: the next block begins a video."""
        self._clear()

    def made(self, request: BlockRequest, begins: bool) -> None:
        """A block was made of this request, with the settings that the stream has now; begins: as a video's first."""
        if begins and self._full:
            self._clear()
        if not self.blocks:
            self._begin()
        if self._full:
            return
        for field, what in _HELD.items():
            if getattr(request, field) is not None:
                self.cannot_hold(what)
        self._note_change(begins and self.blocks > 0)
        if request.identity != self._identity:
            self._identity = request.identity
            self._add(self._prompts, _as_entry(request))
        if self._bytes > MOST_BYTES or self.blocks + 1 >= MOST_BLOCKS:
            self._full = True
            self.cannot_hold("more than a recording holds")
            return
        self.blocks += 1

    def story(self) -> Story | None:
        """All so far; None before the first block."""
        blocks = self.blocks  # first: a block may be made meanwhile
        if not blocks:
            return None
        lists = {"prompts": self._prompts, "changes": self._changes, "unrecorded": self._unrecorded}
        kept = {name: [*entries] for name, entries in lists.items()}
        if not self._full:
            kept = {name: [entry for entry in kept[name] if entry["block"] < blocks] for name in kept}
        else:
            blocks += 1  # the one that it does not hold
        return Story.read({**self._header, "blocks": blocks, **kept})

    def _begin(self) -> None:
        self._before, self._loras, self._merges = self._now(), self._scales(), self._engine.merges
        preset: PresetName = _preset_of(self._before) or "balanced"
        usual = dataclasses.asdict(OptimizationConfig.preset(preset))
        settings = {name: value for name, value in self._before.items() if value != usual[name] and name != "seed"}
        height, width = self._stream.settings.size
        self._header = {
            "version": VERSION,
            "model": self._engine.model_name,
            "seed": self._before["seed"],
            "preset": preset,
            "height": height,
            "width": width,
            "settings": settings | of_engine(self._engine),
            "loras": self._loras,
        }

    def _note_change(self, restart: bool) -> None:
        now, scales, merges = self._now(), self._scales(), self._engine.merges
        changed = {name: value for name, value in now.items() if value != self._before[name]}
        entry: dict[str, Any] = {"seed": changed.pop("seed")} if "seed" in changed else {}
        preset = _preset_of(now)
        if preset and preset != _preset_of(self._before):
            entry["preset"] = preset
            changed = {name: value for name, value in changed.items() if name not in PRESETS[preset]}
        if changed:
            entry["settings"] = changed
        if scales and merges != self._merges:  # the window is computed anew, also where the scales are as they were
            others = {path: scale for path, scale in scales.items() if self._loras.get(path) != scale}
            entry["loras"] = others or scales
        if restart:
            entry["restart"] = True
        self._before, self._loras, self._merges = now, scales, merges
        if entry:
            self._add(self._changes, entry)

    def _add(self, entries: list[dict], entry: dict) -> None:
        entries.append({"block": self.blocks, **entry})
        self._bytes += len(json.dumps(entries[-1], ensure_ascii=False).encode(errors="replace"))

    def _now(self) -> dict[str, Any]:
        settings = self._stream.settings
        listed = {name: getattr(settings, name) for name in (*OF_STREAM, "seed")}
        return listed | {"vae_type": self._stream.networks.vae_type}

    def _scales(self) -> dict[str, float]:
        return {str(lora.path): float(lora.scale) for lora in self._engine.loras}


def of_engine(engine: LongLiveEngine) -> dict[str, Any]:
    """The settings that an engine's streams share, where they are not the usual ones, or depend on the device."""
    config, usual = engine.config, OptimizationConfig()
    names = "text_precision", "model_dtype"
    settings = {name: value for name in names if (value := getattr(config, name)) != getattr(usual, name)}
    if config.low_memory:
        settings["low_memory"] = True
    if config.vae_type == "wan" and (engine.device.type == "cuda" or config.vae_precision != "auto"):
        settings["vae_precision"] = "int8" if engine.codec.precision == "int8" else "bf16"
    return settings


def _preset_of(settings: Mapping[str, Any]) -> PresetName | None:
    """The preset that sets these; of those that differ in pace alone, balanced."""

    def fits(name: str) -> bool:
        return all(settings[field] == value for field, value in PRESETS[name].items() if field in settings)

    return cast(PresetName | None, next(filter(fits, ("balanced", *PRESETS)), None))


def _as_entry(request: BlockRequest) -> dict[str, Any]:
    one = isinstance(request.prompt, str)
    entry: dict[str, Any] = {"prompt": request.prompt} if one else {"prompts": [*map(list, request.pairs)]}
    if request.blend != "linear":
        entry["blend"] = request.blend
    if request.transition_blocks > 1:
        entry["transition_blocks"] = request.transition_blocks
    return entry
