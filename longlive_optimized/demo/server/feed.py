"""One stream as the worker sees it: its blocks, the frames of them that wait, and what is wished for."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Unpack

import numpy as np
import torch

from ...config import CHANGEABLE, StreamSettings
from ...engine.host_copy import HostCopy
from ...engine.ranks import RankError
from ...engine.snapshot import Snapshot
from ...keywords import ConfigFields
from ...story import Story
from ...video_time import BLOCK_PIXEL_FRAMES
from ..scope_integration import LatencyStats, OptimizedScopePipeline, ScopeOptimizationConfig
from ..scope_integration.prompt_box import Prompt
from ..scope_integration.replay import Replay, check_fits, sized
from .admission import Kind, share
from .arrivals import Arrivals
from .pacing import Pace

if TYPE_CHECKING:
    from .worker import Worker

log = logging.getLogger(__name__)

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds after an error, doubled each time
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


@dataclass
class _Made:
    """A block on its way to the host, of the video with this number, which it may begin. Where the VAE is beside it,
    the transformer was through with it at ``denoised``; else all its time counts as decoding."""

    copy: HostCopy
    video: int
    begins: bool
    started: float
    denoised: float
    coming: int = 0  # frames that another thread waits for
    prompt: int = 0  # its number


class Feed:
    """Makes a stream's blocks while someone watches, and keeps their frames until they are taken. Where the VAE has a
    GPU of its own, a block may begin while the one before is decoded, whose frames the worker's other thread waits for.

    config: of its pipeline; None is the source's, once that is loaded. prompt: the first one.
    on_status, on_block: called in the worker's threads; they must not block.
    on_frames: likewise, with the frames of each block of the video, uint8 [T, H, W, 3], as the engine made them,
        whether or not they will be shown; they must not be changed.
    of_block: called in the worker's thread before each block, with whether it is a video's first: what the block is
        made from beside the prompt, as fields of a BlockRequest. It must not wait.
    pipeline, stats: the stream and its figures of late, once it is open; before that None and zeros.
    scene: of the frame that was taken last; another one where the video has begun anew in between.

    ``open_with``, ``make_block`` and ``close_stream`` are the worker's thread's. All else may be called from any
    thread; none waits for the device or for a block.
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
        self._on_status, self._on_block, self._of_block, self._on_frames = on_status, on_block, of_block, on_frames
        self.config, self.status = config, Status("loading")
        self.stats = dataclasses.asdict(LatencyStats())
        self.pipeline: OptimizedScopePipeline | None = None
        self.overlay, self.pace = False, Pace()
        self._prompt, self.arrivals = prompt, Arrivals(prompt)
        self._follows = False  # what is wished for is what a story says that is being replayed
        self._resize: Resize | None = None
        self._seed: int | None = None  # with which the video is to begin anew
        self._story: Story | None = None  # of the stream before it was closed
        self.snapshot: Snapshot | None = None  # what it goes on from, once it is opened
        self.blocks = 0  # made so far
        self._wished: ScopeOptimizationConfig | None = None  # as it will be with the next block
        self._frames: deque[tuple[int, np.ndarray]] = deque()  # with the scene of each
        self.scene = self._scenes = 0
        self._decoding: deque[Future[None]] = deque()  # blocks whose frames are waited for
        self._coming = 0  # frames of these
        self._watched = self._paused = False
        self._video = self._video_shown = 0  # counts resets: those asked for, and those done
        self._begun = -1  # the last video that has a block
        self._failures, self._retry_at = 0, float("-inf")
        self._waits_since = self._taken_at = float("-inf")  # for its first frame; when the last one was taken
        self._shown = False  # whether a frame was taken since it is open and watched
        self._stood_still = False  # whether it goes on from a snapshot, and no frame was taken yet

    # --- what those who watch do

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
    def waiting(self) -> int:
        """Frames that can be taken."""
        return len(self._frames)

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
            if self._paused or not self._frames:
                return None
            self._taken_at, self._shown, self._stood_still = time.monotonic(), True, False
            self._changed.notify()
            self.arrivals.take()
            self.scene, frame = self._frames.popleft()
            return frame

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
            self._resize = self._seed = None
            if config.size == pipeline.config.size:
                pipeline.replay(story)
            else:
                self._resize = Resize(begins, story)
            self._follows, self._wished = True, begins
            return self._drop_all()

    def end_replay(self) -> None:
        """Go on with what is in force."""
        with self._changed:
            self._follows = False
            self._tell(lambda pipeline: pipeline.end_replay())

    def _tell(self, wish: Callable[[OptimizedScopePipeline], None]) -> None:
        """Wish for something of the pipeline, or of the one in its place, where it is to be of another size."""
        if self._resize:
            self._resize.later.append(wish)
        elif self.pipeline:
            wish(self.pipeline)

    def switch_prompt(self, prompt: Prompt) -> int:
        """Go over to ``prompt`` with the next block that begins; its number, as ``arrivals`` counts."""
        with self._changed:
            self._prompt, self._follows = prompt, False
            self._tell(self._ask_for_prompt)
            return self.arrivals.ask(prompt)

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
                self._waits_since, self._shown = time.monotonic(), False
            self._watched = watched
            self._worker.share_out()
            self._changed.notify()

    def set_paused(self, paused: bool) -> None:
        """Hold the video where it is: no frame is handed out, and none made."""
        with self._changed:
            self._paused, self._taken_at = paused, time.monotonic()
            self._worker.share_out()
            self._changed.notify()

    def reset(self) -> int:
        """Begin the video anew; how many frames that waited are dropped. A block under way is dropped too."""
        with self._changed:
            self.end_replay()
            return self._drop_all()

    def _drop_all(self) -> int:
        dropped = len(self._frames)
        self._frames.clear()
        self.arrivals.clear()
        self._video += 1
        self._changed.notify()
        return dropped

    def begin_with(self, **fields: int) -> int:
        """Begin the video anew with another seed, height or width; how many frames that waited are dropped."""
        with self._changed:
            config, pipeline = dataclasses.replace(self.config_wished_for, **fields), self.pipeline
            if pipeline is None:
                self.config = config
                return 0
            self._wished = config
            if config.size == pipeline.config.size:
                self._resize, self._seed = None, config.seed
            else:
                self._resize = Resize(config)
            return self.reset()

    def take_snapshot(self) -> Snapshot | None:
        """What the stream needs to go on elsewhere; None where it is not open, or has no block of its video yet. Waits
        for a block under way."""
        pipeline = self.pipeline
        return pipeline.stream.snapshot() if pipeline and self._begun == self._video else None

    # --- when its next block must begin; with the worker's lock

    def is_active(self, now: float) -> bool:
        """Whether it wants blocks."""
        return self._watched and not self._paused and now >= self._retry_at

    def is_time(self, others: Sequence[Feed]) -> bool:
        """Whether its next block should begin, before which those of the others may be made. Where one of theirs is a
        first one, and takes long, two blocks of frames may wait."""
        ahead = math.fsum(feed.block_seconds for feed in others)
        begins = any(feed.pace.longest is None for feed in others)
        most = BLOCK_PIXEL_FRAMES * (2 if begins else 1)
        return self.pace.is_time(len(self._frames), self._fps, self._coming, ahead, self._worker.share, most)

    @property
    def turns_loras(self) -> bool:
        """Whether its next block merges LoRAs at other scales."""
        return bool(self.replaying and self.pipeline and self.pipeline.turns_loras)

    @property
    def deadline(self) -> float:
        """When its next frame is late: those who watch have none left. The first ones are late after a while only, but
        those that go on from a snapshot at once: they were waited for elsewhere."""
        if not self._shown:
            return self._waits_since + (0.0 if self.snapshot or self._stood_still else PATIENCE)
        return self._taken_at + (len(self._frames) + self._coming + 1) * self.interval

    @property
    def retry_at(self) -> float:
        """When it may be tried again, after an error."""
        return self._retry_at

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

    # --- the worker's thread

    def say(self, status: Status) -> None:
        """Tell how it is doing."""
        self.status = status
        self._on_status(status)

    def open_with(self, pipeline: OptimizedScopePipeline) -> None:
        """Take a pipeline, whose video begins with the prompt and the pause in force."""
        with self._changed:
            self._stood_still = self.snapshot is not None
            self.pipeline, self.config, self.snapshot = pipeline, pipeline.config, None
            self._ask_for_prompt(pipeline)
            self._waits_since = time.monotonic()
            self.stats = pipeline.get_latency_stats()
        self.say(Status("ready"))

    def close_stream(self) -> None:
        """Let go of the pipeline and all frames; what was wished for stays."""
        with contextlib.suppress(Exception):  # of a block that nobody will see
            self._finish_decoding(0)
        with self._changed:
            if self.pipeline:
                self.config = self._wished or self.pipeline.config
                self._story = self.pipeline.recorder.story() or self._story
            self.pipeline, self.pace, self._shown = None, Pace(), False
            self._wished = self._resize = self._seed = None
            self._frames.clear()
            self.arrivals.clear()
            self._video_shown, self._begun = self._video, self._video - 1
            self._failures, self._retry_at = 0, float("-inf")

    def make_block(self) -> None:
        """Make a block; if that fails, those who watch are told, and it is tried again a while later. Raises RankError,
        after which there is no second try."""
        try:
            self._make_block()
        except RankError:
            raise
        except Exception as error:  # whatever it is: the next try may succeed, and other streams go on
            self._stumble(error)
            return
        if self._failures:
            self._failures = 0
            self.say(Status("ready"))

    def _make_block(self) -> None:
        pipeline = self.pipeline
        assert pipeline
        if self._resize:
            self._change_size(pipeline)
            pipeline = self.pipeline
            assert pipeline
        self._finish_decoding(1)
        started, video = time.perf_counter(), self._video
        replays, kind = pipeline.replaying is not None, self.kind
        if video != self._video_shown:
            if not replays:
                with self._changed:
                    seed, self._seed = self._seed, None
                pipeline.reset(seed)
            self._video_shown = video
        begins = video != self._begun
        source: dict = {} if replays else self._of_block(begins)
        block = pipeline.next_block(**source)
        if replays:
            self._follow_replay(pipeline, kind)
        self._begun = video
        self.blocks += 1
        if self.overlay and pipeline.overlay:
            pipeline.overlay.apply(block, pipeline.get_latency_stats())
        made, devices = _Made(HostCopy(block), video, begins, started, started), pipeline.engine.devices
        with self._changed:
            made.prompt = self.arrivals.number(pipeline.prompt)
        if not devices.async_vae:
            self._show(made)
            return
        made.coming = len(block)
        with self._changed:
            self._coming += made.coming
        self._decoding.append(self._worker.reader.submit(self._show, made))
        _wait_for(devices.model)  # not for the VAE's
        made.denoised = time.perf_counter()

    def _change_size(self, before: OptimizedScopePipeline) -> None:
        """Go on with a stream of another size, which may begin as a story does."""
        self._finish_decoding(0)
        with self._changed:
            resize = self._resize
        assert resize
        pipeline = self._worker.source.open(resize.config)
        if resize.story:
            pipeline.replay(resize.story)
        with self._changed:
            if self._resize is not resize:  # there is another wish
                return
            if resize.story is None:
                self._ask_for_prompt(pipeline)
            for wish in resize.later:
                wish(pipeline)
            self.pipeline, self._resize, self.pace = pipeline, None, Pace()
            self.stats = pipeline.get_latency_stats()
            self._worker.share_out()
        self._worker.give_back()
        self.say(Status("ready"))

    def _follow_replay(self, pipeline: OptimizedScopePipeline, kind: Kind) -> None:
        """Take for wished what a story has wished for, unless a viewer has wished for more."""
        with self._changed:
            if self._follows and (prompt := pipeline.wished):
                self._prompt, config = prompt, pipeline.config
                now = {name: getattr(config, name) for name in CHANGEABLE}
                self._wished = dataclasses.replace(self.config_wished_for, **now)
            if self.kind != kind:
                self.pace = Pace()
                self._worker.share_out()

    def _finish_decoding(self, left: int) -> None:
        """Wait until no more than so many blocks are waited for. Raises what went wrong with them."""
        while self._decoding and (len(self._decoding) > left or self._decoding[0].done()):
            self._decoding.popleft().result()

    def _show(self, made: _Made) -> None:
        """Let a block's frames be taken, once they are there; not those of a video that has been given up."""
        try:
            pictures = made.copy.frames()
        except BaseException:
            with self._changed:
                self._coming -= made.coming
                self._changed.notify()
            raise
        now, pipeline = time.perf_counter(), self.pipeline
        assert pipeline
        with self._changed:
            self._coming -= made.coming
            self._changed.notify()
            if made.video != self._video:
                return
            self._note_times(made, now, len(pictures))
            if made.begins or len(pictures) != BLOCK_PIXEL_FRAMES:  # the decoder has begun anew
                self._scenes += 1
            self._frames.extend((self._scenes, picture) for picture in pictures)
            self.arrivals.made(made.prompt, len(pictures))
            waiting = len(self._frames)
        self._on_frames(pictures)
        self.stats = pipeline.get_latency_stats()
        gpus = [device for device in pipeline.engine.devices.all if device.type == "cuda"]
        gpu_bytes = sum(map(torch.cuda.memory_allocated, gpus))
        self._on_block(BlockMade(len(pictures), waiting, self.stats, gpu_bytes, made.prompt))

    def _note_times(self, made: _Made, now: float, frames: int) -> None:
        halves = made.denoised - made.started, now - max(made.denoised, self._worker.decoded_at)
        self._worker.decoded_at = now
        seconds = self.pace.block_took(sum(halves), frames, max(halves))
        if self.pace.settled:
            self._worker.costs.note(self.kind, seconds)
        self._worker.share_out()

    def _stumble(self, error: Exception) -> None:
        self._failures += 1
        delay = min(FIRST_DELAY * 2 ** (self._failures - 1), LONGEST_DELAY)
        log.error("a block failed, the next try is in %g s", delay, exc_info=error)
        with self._changed:
            if self._failures > 1:
                self._video += 1  # it was not a passing fault: give up what the stream remembers
                self._resize = None
                self.end_replay()
            self._retry_at = time.monotonic() + delay
        self.say(Status("trouble", first_line(error), retry_in=delay))

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


def _wait_for(device: torch.device) -> None:
    """Until what this thread has enqueued there is done; without burning the core that the encoders need."""
    if device.type != "cuda":
        return
    done = torch.cuda.Event(blocking=True)
    done.record(torch.cuda.current_stream(device))
    done.synchronize()
