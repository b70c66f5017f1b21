"""A video in one call, and frames in one loop: ``longlive_optimized.generate`` and ``longlive_optimized.stream``."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any, Unpack, cast

import numpy as np
import torch

from .config import StreamSettings
from .demo.scope_integration import OptimizedScopePipeline, ScopeOptimizationConfig
from .demo.scope_integration.prompt_box import as_prompt
from .demo.scope_integration.replay import check_fits
from .engine.closing import Closable
from .engine.engine import LongLiveEngine
from .engine.host_copy import HostCopy
from .engine.loading import Progress
from .engine.stream import Stream
from .keywords import ConfigFields, PresetName, SwitchFields
from .story import SETTINGS, VERSION, Story
from .video import Video
from .weights.locate import TINY

Prompt = str | Sequence[tuple[str, float]]
Model = str | PathLike[str] | LongLiveEngine
SECONDS = 5.0  # of a video, where nothing says another
_OWN = "seed", "height", "width"


def stream(
    prompt: Prompt,
    *,
    model: Model = TINY,
    preset: PresetName = "balanced",
    device: str | torch.device | None = None,
    **settings: Unpack[ConfigFields],
) -> FrameStream:
    """Frames without end, each as soon as it is made: ``for frame in stream("a fox"): ...``

    prompt: a text, or (text, weight) pairs. model: ``"tiny"``, the built-in one, a folder, or a LongLiveEngine, which
    several streams may share. device: None takes CUDA where there is one. settings: fields of ScopeOptimizationConfig,
    ``seed``, ``height``, ``width`` among them. Raises as OptimizedScopePipeline does, naming the argument.
    """
    first = as_prompt(prompt)
    shown: dict[str, Any] = {"prompt_debounce_ms": 0, "enable_latency_overlay": False, **settings}
    if isinstance(model, LongLiveEngine):
        _no_device(device)
        fields = ScopeOptimizationConfig.preset_fields(preset)
        config = ScopeOptimizationConfig(**{**dataclasses.asdict(model.config), **fields, **shown})
        pipeline = OptimizedScopePipeline.on(model, config)
    else:
        pipeline = OptimizedScopePipeline(model, ScopeOptimizationConfig.preset(preset, **cast(Any, shown)), device)
    pipeline.switch_prompt(first.prompt)
    return FrameStream(pipeline)


class FrameStream(Closable):
    """An iterator of frames, RGB, uint8 NumPy arrays [H, W, 3]; made by ``stream``.

    A new ``prompt``, from any thread, is seen from the next block of 12 frames on. ``close`` it, or use it as a
    context, where the memory is wanted for something else.

    pipeline: what makes the blocks.
    """

    def __init__(self, pipeline: OptimizedScopePipeline):
        self.pipeline = pipeline
        self._frames: deque[np.ndarray] = deque()

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        if not self._frames:
            self._frames.extend(HostCopy(self.pipeline.next_block()).frames())
        return self._frames.popleft()

    @property
    def prompt(self) -> Prompt:
        """What was wished for last."""
        wished = self.pipeline.wished
        assert wished  # since it was opened
        return wished.prompt

    @prompt.setter
    def prompt(self, prompt: Prompt) -> None:
        self.send(prompt)

    def send(self, prompt: Prompt, **how: Unpack[SwitchFields]) -> None:
        """Go over to another prompt; how: ``blend`` and ``transition_blocks`` of BlockRequest. Raises ValueError or
        TypeError naming the fault."""
        self.pipeline.switch_prompt(prompt, **how)

    @property
    def story(self) -> Story:
        """What the frames so far were made from, for ``generate`` or ``Story.save``; RuntimeError before the first."""
        return self.pipeline.story()

    def close(self) -> None:
        """Give the memory back; an engine that was given stays."""
        if not self.closed:
            self.pipeline.close()
            self._let_go()


def generate(
    prompt: Prompt | Story,
    seconds: float | None = None,
    *,
    model: Model | None = None,
    preset: PresetName | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    **settings: Unpack[ConfigFields],
) -> Video:
    """Make a video: ``generate("a fox", seconds=5).save("fox.mp4")``.

    prompt: a text, (text, weight) pairs, or a Story, which says all but model and device. seconds: 5 by default.
    model: ``"tiny"``, the built-in one, a folder, or a LongLiveEngine that is there; None is the story's. preset:
    ``balanced`` by default. device: None takes CUDA where there is one. progress: called as (what, done, total) while
    weights load, then after each block, of ``"frames"``; what it raises ends the work. settings: fields of
    OptimizationConfig, ``seed``, ``height``, ``width`` among them. Raises as LongLiveEngine does, and ValueError for
    what no story can be.
    """
    given = dict(settings)
    if isinstance(prompt, Story):
        beside = {"seconds": seconds, "preset": preset, **given}
        if wrong := [name for name, value in beside.items() if value is not None]:
            raise ValueError(f"{', '.join(wrong)} must not be given beside a story, which says what it is made with")
        story, more = prompt, {}
        story.check_recorded()
    else:
        more = {name: value for name, value in given.items() if name not in (*SETTINGS, *_OWN)}
        story = _story(prompt, SECONDS if seconds is None else seconds, preset or "balanced", given)
    with contextlib.ExitStack() as opened:
        engine = model
        if isinstance(engine, LongLiveEngine):
            _no_device(device)
            if more:
                raise ValueError(f"{', '.join(more)} must be the engine's: they are the same for all its streams")
        else:
            config, loras = story.config(**more), story.user_loras()
            engine = LongLiveEngine(engine or story.model, config, device, progress, loras)
            opened.enter_context(engine)
        own = dataclasses.asdict(StreamSettings.of(story.config().sized(engine.config.size)))
        made = opened.enter_context(engine.open_stream(**own))
        height, width = made.settings.size
        story = story.model_copy(update={"model": engine.model_name, "height": height, "width": width})
        check_fits(story, engine, made.settings, made.networks.vae_type)
        return Video(_frames(story, engine, made, progress or (lambda what, done, total: None)), story)


def _story(prompt: Prompt, seconds: float, preset: str, settings: dict[str, Any]) -> Story:
    what = as_prompt(prompt).prompt
    entry = {"prompt": what} if isinstance(what, str) else {"prompts": [[text, weight] for text, weight in what]}
    own = {name: value for name, value in settings.items() if name in _OWN and value is not None}
    held = {name: value for name, value in settings.items() if name in SETTINGS}
    fields = {"preset": preset, "settings": held, "prompts": [{"block": 0, **entry}], **own}
    return Story.read({"version": VERSION, "seconds": seconds, **fields})


def _frames(story: Story, engine: LongLiveEngine, made: Stream, progress: Progress) -> np.ndarray:
    """All of a story's frames [T, H, W, 3]. A block is waited for when the next one is under way."""
    blocks: list[np.ndarray] = []
    waiting: deque[HostCopy] = deque()
    total = story.frames or sum(moment.frames for moment in story.moments())
    for moment in story.moments():
        moment.take_hold(engine, made)
        waiting.append(HostCopy(engine.generate_block(moment.request(), made)[: moment.frames]))
        if len(waiting) > 1:
            blocks.append(waiting.popleft().frames())
            progress("frames", sum(map(len, blocks)), total)
    progress("frames", total, total)
    return np.concatenate([*blocks, *(copy.frames() for copy in waiting)])


def _no_device(device: object) -> None:
    if device is not None:
        raise ValueError(f"device must be none beside an engine, which has its own, got {str(device)!r}")
