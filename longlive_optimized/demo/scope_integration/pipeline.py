"""OptimizedScopePipeline: the engine, one frame at a time."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Unpack, cast

import torch
from torch import Tensor

from ...config import CHANGEABLE, PRESETS, OptimizationConfig, StreamSettings
from ...engine.closing import Closable
from ...engine.engine import LongLiveEngine
from ...engine.latency import LatencyMeter
from ...engine.loading import Progress
from ...engine.ranks import Ranks
from ...engine.request import BlockRequest
from ...engine.snapshot import Snapshot
from ...engine.stream import Stream
from ...keywords import ConfigFields, FrameFields, PresetName, SourceFields, SwitchFields
from ...plain import did_you_mean, flag, whole
from ...story import Story
from ...video_time import BLOCK_PIXEL_FRAMES, LATENT_PIXEL_FRAMES
from .config import ScopeOptimizationConfig, whole_wish
from .frame_queue import FrameQueue
from .overlay import LatencyOverlay, create_latency_overlay
from .prompt_box import Prompt, PromptBox, as_prompt
from .replay import Replay, check_fits
from .story_recorder import StoryRecorder

_OVERLAY_FIELDS = ("enable_latency_overlay", "overlay_position", "overlay_opacity")


class OptimizedScopePipeline(Closable):
    """LongLive as a stream of frames, with prompts and presets that may change at any time, from any thread.

    model_path: a folder of LongLive's or scope's layout, or ``"tiny"``.
    config: ScopeOptimizationConfig; the default is the preset ``balanced``.
    device: None takes CUDA where there is one, else the CPU.
    progress: called as (what, done, total) while weights load.
    vae_device, text_device: other GPUs for the VAE and the text encoder, as LongLiveEngine's. Frames are then on
        ``vae_device``. A block is decoded beside the next one that is made, if that is asked for before the frames of
        the first are waited for.
    ranks: LongLiveEngine's; made with ``leads=True``, where rank 0 alone has a pipeline and the others follow.

    scene: of the frame that was handed out last; another number where the video has begun anew in between.

    Raises as LongLiveEngine does. A call to generate_frame makes a block of 9 or 12 frames when none is waiting, so a
    new prompt is seen after the frames that wait, in the first block that begins after it.
    """

    def __init__(
        self,
        model_path: str | PathLike,
        config: ScopeOptimizationConfig | None = None,
        device: str | torch.device | None = None,
        progress: Progress | None = None,
        vae_device: str | torch.device | None = None,
        text_device: str | torch.device | None = None,
        *,
        ranks: Ranks | None = None,
    ):
        config = _checked(config) or ScopeOptimizationConfig.preset_balanced()
        own = OptimizationConfig.of(config)
        engine = LongLiveEngine(
            model_path, own, device, progress, vae_device=vae_device, text_device=text_device, ranks=ranks
        )
        self._show(engine, engine.stream, config.sized(engine.config.size), owned=True)

    @classmethod
    def on(
        cls,
        engine: LongLiveEngine,
        config: ScopeOptimizationConfig | None = None,
        *,
        warm: bool = False,
        snapshot: Snapshot | None = None,
    ) -> OptimizedScopePipeline:
        """A pipeline with a stream of its own on an engine that is there: several pipelines may share one.

        ``config`` is the engine's own unless given. ``warm`` leaves out the warm-up before the first frame, for which
        other streams would wait: the first blocks then capture what they need. With ``snapshot``, another stream's, the
        video goes on where that was; fields that ``config`` has otherwise change with the next block. Raises ValueError
        naming the fields in which ``config`` is of another engine: vae_type, model_dtype and all else that is no
        StreamSettings.
        """
        if not isinstance(engine, LongLiveEngine):
            raise TypeError(f"engine must be a LongLiveEngine, got {type(engine).__name__}")
        theirs = dataclasses.asdict(engine.config)
        config = _checked(config) or ScopeOptimizationConfig(**theirs)
        config = config.sized(engine.config.size)
        settings = dataclasses.asdict(StreamSettings.of(config))
        mine = dataclasses.asdict(config)
        if config.low_memory is None:  # left to the engine's memory plan
            mine["low_memory"] = engine.config.low_memory
        if wrong := [name for name in theirs if name not in settings and mine[name] != theirs[name]]:
            raise ValueError(f"config must have the engine's {', '.join(wrong)}: they are the same for all its streams")
        pipeline = cls.__new__(cls)
        if snapshot is None:
            pipeline._show(engine, engine.open_stream(**settings), config)
        else:
            before = dataclasses.asdict(snapshot.settings)
            pipeline._show(engine, engine.open_stream(snapshot=snapshot), config)
            pipeline._changes = {name: settings[name] for name in CHANGEABLE if settings[name] != before[name]}
            pipeline.recorder.cannot_hold("another stream's snapshot")
        pipeline._warm |= flag("warm", warm) or snapshot is not None
        return pipeline

    def _show(
        self, engine: LongLiveEngine, stream: Stream, config: ScopeOptimizationConfig, owned: bool = False
    ) -> None:
        self.engine, self.stream, self.config, self._owned = engine, stream, config, owned
        self.overlay = self._new_overlay()
        self._queue, self._prompts = FrameQueue(), PromptBox()
        self._meter = LatencyMeter(engine, stream)
        self.recorder = StoryRecorder(engine, stream)
        self._replay: Replay | None = None
        self._seed: int | None = None  # with which the video is to begin anew
        self._delivered = 0
        self.scene = self._scenes = 0
        self._warm = engine.device.type != "cuda"
        self._changes: dict = {}  # of the config, from the next block on
        self._steps: Sequence[int] | None = None  # the last call's argument
        self._lock = threading.RLock()  # the stream: one frame is made or taken at a time
        self._mail = threading.RLock()  # what other threads leave for the next block

    def warmup(self, num_frames: int = 50) -> None:
        """Make at least ``num_frames`` frames, so that everything is compiled and captured, then start anew.

        On CUDA the first frame does this if it was not done before. Statistics leave it out.
        """
        self._warm_up(whole("num_frames", num_frames, 1))
        self.end_replay()

    def _warm_up(self, num_frames: int = 50) -> None:
        with self._lock:
            self._apply_config()
            self.engine.warmup(math.ceil(num_frames / BLOCK_PIXEL_FRAMES), self.stream)
            self._warm = True
            self._begin_anew()

    def generate_frame(self, prompt: str | Sequence[tuple[str, float]], **kwargs: Unpack[FrameFields]) -> Tensor:
        """The next frame, float32 [3, H, W] in [0, 1] on the device, without overlay.

        prompt: a text or (text, weight) pairs; it is a wish where it *changes*: repeating the old one does not undo a
        switch_prompt. kwargs: ``blend`` and ``transition_blocks`` of BlockRequest go with the prompt;
        ``denoising_steps`` are a ``configure`` where they change. Raises ValueError or TypeError naming a bad argument;
        the stream goes on.
        """
        self._ask(*_read(prompt, kwargs))
        return self.next_frame()

    def next_frame(self, fps: float | None = None) -> Tensor:
        """The next frame with the prompt in force, as ``generate_frame`` gives it. RuntimeError before any prompt.

        fps: frames a second at which the caller takes them, by which it is told whether it lags; None is
        ``target_fps``.
        """
        with self._lock:
            self._get_ready()
            if not self._queue:
                rest = self.stream.undecoded
                self._queue.put(self.engine.rest_of_block(self.stream) if rest else self._make_block(True))
            depth = self.config.max_queue_depth if self.config.drop_frames_on_lag else None
            frame = self._queue.get(time.monotonic(), fps or self.config.target_fps, depth)
            self._delivered += 1
            self.scene = self._scenes
            return frame.permute(2, 0, 1).float() / 255

    def generate_block(self, prompt: str | Sequence[tuple[str, float]], **kwargs: Unpack[FrameFields]) -> Tensor:
        """A whole block, uint8 [T, H, W, 3] on the device, T = 9 and then 12, without overlay: for callers with a queue
        of their own. Waits for the device as ``LongLiveEngine.generate_block`` does.

        Arguments and errors are generate_frame's. RuntimeError while frames of a block wait for generate_frame.
        """
        wishes = _read(prompt, kwargs)
        self._refuse_while_frames_wait()
        self._ask(*wishes)
        return self.next_block()

    def next_block(self, **source: Unpack[SourceFields]) -> Tensor:
        """The next block with the prompt in force, as ``generate_block`` gives it. RuntimeError before any prompt, and
        while frames of a block wait.

        source: what this block alone is made from: ``video``, ``noise_scale``, ``noise_from_motion`` and ``control`` of
        BlockRequest, whose errors it raises.
        """
        _only(dict(source), "video", "noise_scale", "noise_from_motion", "control")
        with self._lock:
            self._refuse_while_frames_wait()
            self._get_ready()
            block = self._make_block(**source)
            self._delivered += len(block)
            return block

    def switch_prompt(self, new_prompt: str | Sequence[tuple[str, float]], **kwargs: Unpack[SwitchFields]) -> None:
        """Go over to ``new_prompt`` with the next block; returns at once.

        kwargs: ``blend`` and ``transition_blocks`` of BlockRequest. Raises ValueError or TypeError naming the fault.
        """
        prompt = as_prompt(new_prompt, **_only(dict(kwargs), "blend", "transition_blocks"))
        with self._mail:
            self._replay = None
            self._prompts.switch(prompt, time.monotonic(), self._debounce)

    def get_latency_stats(self) -> dict[str, float]:
        """The fields of LatencyStats, as measured up to the last block that the device has finished."""
        own = {"frame_count": self._delivered, "dropped_frames": self._queue.dropped, "preset": self.preset}
        return dataclasses.asdict(self._meter.stats(**own))

    @property
    def prompt(self) -> str | Sequence[tuple[str, float]] | None:
        """What the last block was made with; None before the first."""
        current = self._prompts.current
        return current.prompt if current else None

    @property
    def wished(self) -> Prompt | None:
        """The prompt that was asked for last; None before any."""
        return self._prompts.wished

    @property
    def preset(self) -> str:
        """The preset in force; ``custom`` where the config is none of them."""
        config = self.config

        def fits(name: str) -> bool:
            return all(getattr(config, field) == value for field, value in config.preset_fields(name).items())

        return next(filter(fits, PRESETS), "custom")

    def set_optimization_preset(self, preset: PresetName) -> None:
        """Go over to a preset with the next block; weights, size and prompt stay, and so does the picture: a new window
        is recomputed from the frames already made. Raises ValueError listing the names; nothing has changed then.
        """
        self.configure(**cast(ConfigFields, self.config.preset_fields(preset)))

    def configure(self, **changes: Unpack[ConfigFields]) -> None:
        """Change fields of the config with the next block, from any thread: CHANGEABLE of a stream's settings, and all
        that ScopeOptimizationConfig adds. Raises ValueError for bad values, for what is no field, and for fields that
        are fixed at construction; nothing has changed then.
        """
        changes = whole_wish(changes)
        with self._mail:
            self.config.changed(**cast(ConfigFields, self._changes | changes))
            self._changes |= changes
            if any(name in CHANGEABLE for name in changes):
                self._replay = None

    def story(self) -> Story:
        """What the blocks so far were made from, since the stream was opened: see ``Story``. RuntimeError before the
        first one."""
        if story := self.recorder.story():
            return story
        raise RuntimeError("there is no story yet: no block has been made")

    def replay(self, story: Story | Mapping[str, Any]) -> None:
        """Begin anew with the next block and make the story's video again, with all that it says, the seed too; behind
        its end the video goes on with its last prompt. Any wish of prompt, preset or settings, and a reset, end it.

        ``blocks`` are then the story's bit for bit, on the same kind of device with the same software. Raises
        ValueError for what is no story, and naming what does not fit this stream, or cannot be made again; nothing has
        changed then.
        """
        read = Story.read(story)
        check_fits(read, self.engine, self.stream.settings, self.stream.networks.vae_type)
        replay = Replay(read)
        with self._mail:
            self._replay, self._seed = replay, read.seed
            self._changes |= replay.beginning
            self._prompts.play(replay.prompt)

    def end_replay(self) -> None:
        """Go on with what is in force now, or will be as the story begins."""
        with self._mail:
            self._replay = None

    @property
    def replaying(self) -> tuple[int, int] | None:
        """How many blocks of a story have been made again, and how many it has; None where none is being replayed."""
        replay = self._replay
        return replay and (replay.done, replay.blocks)

    @property
    def turns_loras(self) -> bool:
        """Whether the next block, of a story that is being replayed, begins with other scales of the engine's LoRAs."""
        replay = self._replay
        return replay is not None and bool(replay.moment.turned(self.engine))

    def reset(self, seed: int | None = None) -> None:
        """Start the stream, its statistics and the overlay anew, with the prompt and the preset that were wished for
        last, and with another seed if one is given; weights and prompt cache stay.
        """
        self.end_replay()
        if seed is not None:
            with self._mail:
                self._seed = seed
        if not self._begin_as_a_story():
            self._begin_anew()

    def _begin_anew(self, seed: int | None = None) -> None:
        with self._lock:
            self.engine.reset(self.stream, seed)
            self._meter.reset()
            self._queue.clear()
            self._prompts.hold_nothing_back()
            self._delivered = 0
            if self.overlay:
                self.overlay.reset()

    def close(self) -> None:
        """Give its memory back: the stream's, and the engine's if it has made that itself. Any other use of it is then
        a RuntimeError."""
        if self.closed:
            return
        with self._lock:
            (self.engine if self._owned else self.stream).close()
            self._let_go("_lock")

    @property
    def _debounce(self) -> float:
        return self.config.prompt_debounce_ms / 1e3

    def _ask(self, prompt: Prompt, steps: Sequence[int] | None) -> None:
        """Take a call's arguments for wishes where they changed; at once, so that what comes meanwhile is later."""
        with self._mail:
            if self._prompts.follow(prompt, time.monotonic(), self._debounce):
                self._replay = None
        if steps != self._steps:
            self._steps = steps
            if steps:
                self.configure(denoising_steps=steps)

    def _get_ready(self) -> None:
        if not self._warm:
            self._warm_up()
        self._begin_as_a_story()
        self._apply_config()

    def _refuse_while_frames_wait(self) -> None:
        if waiting := len(self._queue) + LATENT_PIXEL_FRAMES * self.stream.undecoded:
            raise RuntimeError(f"{waiting} frames wait: take them with generate_frame, or reset, first")

    def _make_block(self, first_latent_first: bool = False, **source: Unpack[SourceFields]) -> Tensor:
        """The next block; where the prompt is new, with ``first_latent_first`` what can be shown soonest of it."""
        now, replay = time.monotonic(), self._next_of_replay()
        prompt, wish = self._prompts.take(now, self._debounce)
        blocks = prompt.transition_blocks or self._smooth_blocks()
        switched, position = wish if self._delivered else None, self.stream.position
        try:
            request = replay.moment.request() if replay else BlockRequest(prompt.prompt, prompt.blend, blocks, **source)
            block = self.engine.generate_block(request, self.stream, bool(switched) and first_latent_first)
        except BaseException:
            if wish:
                self._prompts.give_back(wish)
            raise
        if position == 0 or self.stream.position <= position:
            self._scenes += 1
        if switched:
            self._meter.block_was_switch((now - switched.asked_at) * 1e3)
        self.recorder.made(request, position == 0)
        if replay:
            self._go_on(replay)
        return block

    def _begin_as_a_story(self) -> bool:
        """Begin anew where a story is to be replayed that has not begun; whether there was one, which may have ended
        since."""
        with self._mail:
            seed, self._seed = self._seed, None
            if self._replay:
                self._replay.begun = True
        if seed is None:
            return False
        self._begin_anew(seed)
        self.config = dataclasses.replace(self.config, seed=seed)
        self.recorder.begin_anew()
        return True

    def _next_of_replay(self) -> Replay | None:
        """Bring the stream to where the next block of a replay begins; None where there is none."""
        with self._mail:
            replay = self._replay
            if replay is None or not replay.begun:
                return None
            self._prompts.play(replay.prompt)
            self._changes |= replay.changes
        replay.moment.take_hold(self.engine, self.stream)
        self._apply_config()
        return replay

    def _go_on(self, replay: Replay) -> None:
        if not replay.go_on():
            with self._mail:
                if self._replay is replay:
                    self._replay = None

    def _smooth_blocks(self) -> int:
        """Blocks over which a new prompt is reached, where the caller does not say."""
        if not self.config.smooth_prompt_transition:
            return 1
        return max(2, math.ceil(self.config.transition_frames / BLOCK_PIXEL_FRAMES))

    def _apply_config(self) -> None:
        with self._mail:
            changes, self._changes = self._changes, {}
        if changes:
            config = self.config.changed(**changes)
            try:
                self.stream.configure(**{name: getattr(config, name) for name in CHANGEABLE if name in changes})
            except BaseException:  # memory may be short: the wish stands, unless there is a newer one
                with self._mail:
                    self._changes = changes | self._changes
                raise
            before, self.config = self.config, config
            if any(getattr(config, name) != getattr(before, name) for name in _OVERLAY_FIELDS):
                self.overlay = self._new_overlay()

    def _new_overlay(self) -> LatencyOverlay | None:
        if not self.config.enable_latency_overlay:
            return None
        return create_latency_overlay(position=self.config.overlay_position, opacity=self.config.overlay_opacity)


def _checked(config: ScopeOptimizationConfig | None) -> ScopeOptimizationConfig | None:
    if config is not None and not isinstance(config, ScopeOptimizationConfig):
        raise TypeError(f"config must be a ScopeOptimizationConfig, got {type(config).__name__}")
    return config


def _read(prompt: str | Sequence[tuple[str, float]], how: FrameFields) -> tuple[Prompt, Sequence[int] | None]:
    """The prompt and the denoising steps of a call, checked."""
    kwargs = dict(how)
    _only(kwargs, "blend", "transition_blocks", "denoising_steps")
    steps: Any = kwargs.pop("denoising_steps", None)
    wanted = as_prompt(prompt, **kwargs)
    if steps is not None:
        steps = BlockRequest(wanted.prompt, denoising_steps=steps).denoising_steps
    return wanted, steps


def _only(kwargs: dict, *names: str) -> dict:
    """``kwargs``, if there is nothing but ``names`` in them. Raises TypeError."""
    if unknown := kwargs.keys() - set(names):
        name = sorted(unknown)[0]
        raise TypeError(f"unexpected argument {name!r}{did_you_mean(name, names)}; {', '.join(names)} are known")
    return kwargs


def create_optimized_scope_pipeline(
    model_path: str | PathLike,
    preset: PresetName = "balanced",
    device: str | torch.device | None = None,
    vae_device: str | torch.device | None = None,
    text_device: str | torch.device | None = None,
    **changes: Unpack[ConfigFields],
) -> OptimizedScopePipeline:
    """A pipeline of the named preset, with ``changes`` to its config. Raises ValueError listing the presets."""
    config = ScopeOptimizationConfig.preset(preset, **changes)
    return OptimizedScopePipeline(model_path, config, device, vae_device=vae_device, text_device=text_device)
