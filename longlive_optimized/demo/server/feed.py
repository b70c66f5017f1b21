"""One stream as the worker sees it: what is wished for, and when its next block must begin."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Unpack

import numpy as np

from ...config import CHANGEABLE, StreamSettings
from ...engine.snapshot import Snapshot
from ...keywords import ConfigFields
from ...story import Story
from ...video_time import BLOCK_PIXEL_FRAMES
from ..scope_integration import LatencyStats, OptimizedScopePipeline, ScopeOptimizationConfig
from ..scope_integration.prompt_box import Prompt
from ..scope_integration.replay import Replay, check_fits, sized
from .admission import Kind, share
from .frames import Frames
from .pacing import Pace

if TYPE_CHECKING:
    from .making import Making
    from .worker import Worker

PATIENCE = 2.0  # seconds that a stream's first frames may take, when those of others would be late
FIRST_BLOCK = 3.0  # times what a later block takes, at most: graphs are captured
UNKNOWN_BLOCK = 0.5  # seconds that a block is taken to need before any was measured


@dataclass(frozen=True)
class Status:
    """How a stream is doing. ``trouble`` is passing, and ``retry_in`` says in how many seconds; ``failed`` is not.

    detail: what is loaded, or what went wrong; done, total: progress of that.
    """

    phase: Literal["loading", "warming up", "ready", "trouble", "failed", "stopped"]
    detail: str = ""
    done: int = 0
    total: int = 0
    retry_in: float = 0.0


@dataclass(frozen=True)
class BlockMade:
    """A block that can be shown: how many frames it has and now wait, the pipeline's figures after it, and the number
    of the prompt that it was made with."""

    frames: int
    waiting: int
    stats: dict
    gpu_bytes: int
    prompt: int = 0


@dataclass
class Resize:
    """The config of a stream of another size, the story that it is to show, if any, and what was wished for since."""

    config: ScopeOptimizationConfig
    story: Story | None = None
    later: list[Callable[[OptimizedScopePipeline], None]] = field(default_factory=list)


class Feed:
    """What is wished for of a stream, whose blocks are made while someone watches, and its frames until they are taken.

    config: of its pipeline; None is the source's, once that is loaded. prompt: the first one.
    on_status, on_block: called in the worker's threads; they must not block.
    on_frames: likewise, with the frames of each block of the video, uint8 [T, H, W, 3], as the engine made them,
        whether or not they will be shown; they must not be changed.
    of_block: called in the worker's thread before each block, with whether it is a video's first: what the block is
        made from beside the prompt, as fields of a BlockRequest. It must not wait.
    making, stats: what makes its blocks and their figures of late, once it is open; before that None and zeros.
    frames: that wait. blocks: made so far. retry_at: when one may be tried again, after an error. pace: how long they
    take. video: counts how often it has begun anew since it was opened. resize: what it is to go on with, if that is of
    another size.

    What is below "the worker's thread" is that thread's. All else may be called from any thread; none waits for the
    device or for a block.
    """

    def __init__(
        self,
        worker: Worker,
        config: ScopeOptimizationConfig | None,
        prompt: Prompt,
        on_status: Callable[[Status], None],
        on_block: Callable[[BlockMade], None],
        of_block: Callable[[bool], dict] = lambda begins: {},
        on_frames: Callable[[np.ndarray], None] = lambda frames: None,
    ):
        self._worker, self._changed = worker, worker.changed
        self._on_status, self.on_block, self.of_block, self.on_frames = on_status, on_block, of_block, on_frames
        self.config, self.status = config, Status("loading")
        self.stats = dataclasses.asdict(LatencyStats())
        self.making: Making | None = None
        self.overlay, self.pace, self.frames = False, Pace(), Frames(prompt)
        self._prompt = prompt
        self._follows = False  # what is wished for is what a story says that is being replayed
        self.resize: Resize | None = None
        self._seed: int | None = None  # with which the video is to begin anew
        self._story: Story | None = None  # of the stream before it was closed
        self.snapshot: Snapshot | None = None  # what it goes on from, once it is opened
        self._wished: ScopeOptimizationConfig | None = None  # as it will be with the next block
        self._watched = self._paused = False
        self.blocks = self.video = 0
        self.retry_at = float("-inf")
        self._stood_still = False  # whether it goes on from a snapshot, and no frame was taken yet

    # --- what those who watch do

    @property
    def pipeline(self) -> OptimizedScopePipeline | None:
        """The stream; None where it is not open."""
        making = self.making
        return making and making.pipeline

    @property
    def config_in_force(self) -> ScopeOptimizationConfig:
        """The pipeline's config, or that which it will be opened with."""
        pipeline = self.pipeline
        return pipeline.config if pipeline else self.config or self._worker.source.config

    @property
    def config_wished_for(self) -> ScopeOptimizationConfig:
        """As it will be with the next block; how frames are shown changes at once."""
        return self._wished or self.config_in_force

    @property
    def interval(self) -> float:
        """Seconds between frames when they are shown evenly."""
        return self.pace.interval(self._fps, self._worker.share)

    @property
    def prompt(self) -> Prompt:
        """The prompt that was asked for last."""
        return self._prompt

    @property
    def paused(self) -> bool:
        """Whether the video is held where it is."""
        return self._paused

    @property
    def watched(self) -> bool:
        """Whether someone watches."""
        return self._watched

    def take(self) -> np.ndarray | None:
        """The next frame, uint8 [H, W, 3]; None if none is ready or the video is paused."""
        with self._changed:
            if self._paused or not self.frames:
                return None
            self._stood_still = False
            self._changed.notify()
            return self.frames.take()

    @property
    def replaying(self) -> tuple[int, int] | None:
        """How many blocks of a story have been made again, and how many it has; None where none is being replayed."""
        pipeline = self.pipeline
        return pipeline and pipeline.replaying

    def story(self) -> Story | None:
        """What the video was made from, since the stream was opened; None before its first block."""
        pipeline = self.pipeline
        return (pipeline and pipeline.recorder.story()) or self._story

    def replay(self, story: Story) -> int:
        """Begin the video anew as the story has it; how many frames that waited are dropped. Raises ValueError where it
        does not fit the stream, or that is not open."""
        with self._changed:
            pipeline = self.pipeline
            if pipeline is None:
                raise ValueError("the stream is not open yet")
            height, width = sized(story, pipeline.engine).size
            config = dataclasses.replace(self.config_wished_for, height=height, width=width)
            check_fits(story, pipeline.engine, StreamSettings.of(config), pipeline.stream.networks.vae_type)
            begins = dataclasses.replace(config, **Replay(story).beginning, seed=story.seed)
            self.resize = self._seed = None
            if config.size == pipeline.config.size:
                pipeline.replay(story)
            else:
                self.resize = Resize(begins, story)
            self._follows, self._wished = True, begins
            return self._drop_all()

    def end_replay(self) -> None:
        """Go on with what is in force."""
        with self._changed:
            self._follows = False
            self._tell(lambda pipeline: pipeline.end_replay())

    def _tell(self, wish: Callable[[OptimizedScopePipeline], None]) -> None:
        """Wish for something of the pipeline, or of the one in its place, where it is to be of another size."""
        if self.resize:
            self.resize.later.append(wish)
        elif self.pipeline:
            wish(self.pipeline)

    def switch_prompt(self, prompt: Prompt) -> int:
        """Go over to ``prompt`` with the next block that begins; its number, as ``arrivals`` counts."""
        with self._changed:
            self._prompt, self._follows = prompt, False
            self._tell(self._ask_for_prompt)
            return self.frames.arrivals.ask(prompt)

    def configure(self, **changes: Unpack[ConfigFields]) -> None:
        """Change the config with the next block that begins, how frames are shown at once. Raises ValueError as the
        pipeline's ``configure`` does."""
        with self._changed:
            before, wished = self.kind, self.config_wished_for.changed(**changes)
            self._follows &= not any(name in CHANGEABLE for name in changes)
            if self.pipeline:
                self._tell(lambda pipeline: pipeline.configure(**changes))
                self._wished = wished
            else:
                self.config = wished
            if self.kind != before:  # what its blocks took tells no more what they will take
                self.pace = Pace()
            self._worker.share_out()
            self._changed.notify()

    def share_with(self, config: ScopeOptimizationConfig) -> float | None:
        """The share of the device's time that it would take with another config; None where that is not known."""
        kind = Kind.of(config)
        return share(self.frame_seconds if kind == self.kind else self._worker.costs.of(kind), config.model_fps)

    def set_watched(self, watched: bool) -> None:
        """Blocks are made only while someone watches."""
        with self._changed:
            if watched and not self._watched:
                self.frames.are_awaited(self._patience)
            self._watched = watched
            self._worker.share_out()
            self._changed.notify()

    def set_paused(self, paused: bool) -> None:
        """Hold the video where it is: no frame is handed out, and none made."""
        with self._changed:
            self._paused = paused
            self.frames.hold()
            self._worker.share_out()
            self._changed.notify()

    def reset(self) -> int:
        """Begin the video anew; how many frames that waited are dropped. A block under way is dropped too."""
        with self._changed:
            self.end_replay()
            return self._drop_all()

    def _drop_all(self) -> int:
        self.video += 1
        self._changed.notify()
        return self.frames.drop()

    def begin_with(self, **fields: int) -> int:
        """Begin the video anew with another seed, height or width; how many frames that waited are dropped."""
        with self._changed:
            config, pipeline = dataclasses.replace(self.config_wished_for, **fields), self.pipeline
            if pipeline is None:
                self.config = config
                return 0
            self._wished = config
            if config.size == pipeline.config.size:
                self.resize, self._seed = None, config.seed
            else:
                self.resize = Resize(config)
            return self.reset()

    def take_snapshot(self) -> Snapshot | None:
        """What the stream needs to go on elsewhere; None where it is not open, or has no block of its video yet. Waits
        for a block under way."""
        making = self.making
        return making.pipeline.stream.snapshot() if making and making.begun == self.video else None

    # --- when its next block must begin; with the worker's lock

    def is_active(self, now: float) -> bool:
        """Whether it wants blocks."""
        return self._watched and not self._paused and now >= self.retry_at

    def is_time(self, others: Sequence[Feed]) -> bool:
        """Whether its next block should begin, before which those of the others may be made. Where one of theirs is a
        first one, and takes long, two blocks of frames may wait."""
        ahead = math.fsum(feed.block_seconds for feed in others)
        begins = any(feed.pace.longest is None for feed in others)
        most = BLOCK_PIXEL_FRAMES * (2 if begins else 1)
        return self.pace.is_time(len(self.frames), self._fps, self.frames.coming, ahead, self._worker.share, most)

    @property
    def turns_loras(self) -> bool:
        """Whether its next block merges LoRAs at other scales."""
        return bool(self.replaying and self.pipeline and self.pipeline.turns_loras)

    @property
    def deadline(self) -> float:
        """When its next frame is late: those who watch have none left."""
        return self.frames.late_at(self.interval)

    @property
    def frame_seconds(self) -> float | None:
        """Seconds that a frame takes to make, as measured, or of others of its kind."""
        return self.pace.frame_seconds if self.pace.settled else self._worker.costs.of(self.kind)

    @property
    def share(self) -> float | None:
        """The share of the device's time that it takes while it is watched; None where that is not known."""
        return share(self.frame_seconds, self._fps)

    @property
    def demand(self) -> tuple[float, float]:
        """``frame_seconds``, or the best guess that there is, and how many frames a second it wants."""
        return self.frame_seconds or self.pace.frame_seconds or 0.0, self._fps

    @property
    def kind(self) -> Kind:
        """What its costs depend on: of the config that was wished for last."""
        return Kind.of(self.config_wished_for)

    @property
    def block_seconds(self) -> float:
        """Seconds that its next block may take."""
        if (longest := self.pace.longest) is not None:
            return longest
        frame = self._worker.costs.of(self.kind)
        return UNKNOWN_BLOCK if frame is None else FIRST_BLOCK * BLOCK_PIXEL_FRAMES * frame

    @property
    def _patience(self) -> float:
        """Seconds after which the first frames are late: a while, but of a stream that goes on from a snapshot, where
        they were waited for elsewhere, none."""
        return 0.0 if self.snapshot or self._stood_still else PATIENCE

    # --- the worker's thread

    def say(self, status: Status) -> None:
        """Tell how it is doing."""
        self.status = status
        self._on_status(status)

    def open_with(self, making: Making) -> None:
        """Make blocks with a pipeline, whose video begins with the prompt and the pause in force."""
        pipeline = making.pipeline
        with self._changed:
            self._stood_still = self.snapshot is not None
            self.making, self.config, self.snapshot = making, pipeline.config, None
            self._ask_for_prompt(pipeline)
            self.frames.are_awaited(self._patience)
            self.stats = pipeline.get_latency_stats()
        self.say(Status("ready"))

    def close_stream(self) -> None:
        """Let go of the pipeline and all frames; what was wished for stays."""
        making = self.making
        if making:
            making.close()
        with self._changed:
            if making:
                self.config = self._wished or making.pipeline.config
                self._story = making.pipeline.recorder.story() or self._story
            self.making, self.pace, self.video = None, Pace(), 0
            self._wished = self.resize = self._seed = None
            self.frames.drop()
            self.retry_at = float("-inf")

    def take_seed(self) -> int | None:
        """The seed with which the video is to begin anew; None is that in force."""
        with self._changed:
            seed, self._seed = self._seed, None
            return seed

    def take_size(self, resize: Resize, pipeline: OptimizedScopePipeline) -> bool:
        """Go on with a pipeline of another size, and with later wishes; False where another size is wished for."""
        with self._changed:
            if self.resize is not resize:
                return False
            if resize.story is None:
                self._ask_for_prompt(pipeline)
            for wish in resize.later:
                wish(pipeline)
            self.resize, self.pace = None, Pace()
            self.stats = pipeline.get_latency_stats()
            self._worker.share_out()
            return True

    def rest(self, seconds: float, anew: bool) -> None:
        """Make no block for so many seconds; ``anew``: and then begin anew."""
        with self._changed:
            if anew:
                self.video += 1
                self.resize = None
                self.end_replay()
            self.retry_at = time.monotonic() + seconds

    def follow_replay(self, kind: Kind) -> None:
        """Take for wished what a story has wished for, unless a viewer has wished for more; kind: before that."""
        pipeline = self.pipeline
        assert pipeline
        with self._changed:
            if self._follows and (prompt := pipeline.wished):
                self._prompt, config = prompt, pipeline.config
                now = {name: getattr(config, name) for name in CHANGEABLE}
                self._wished = dataclasses.replace(self.config_wished_for, **now)
            if self.kind != kind:
                self.pace = Pace()
                self._worker.share_out()

    def _ask_for_prompt(self, pipeline: OptimizedScopePipeline) -> None:
        prompt = self._prompt
        pipeline.switch_prompt(prompt.prompt, blend=prompt.blend, transition_blocks=prompt.transition_blocks)

    @property
    def _fps(self) -> float:
        return self.config_wished_for.model_fps


def first_line(error: Exception) -> str:
    """What an error says, shortened."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
