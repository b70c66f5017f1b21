"""The one thread that owns the pipeline, and with it the device."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ...engine.host_copy import HostCopy
from ...engine.loading import Progress
from ...engine.ranks import RankError
from ..scope_integration import OptimizedScopePipeline
from ..scope_integration.prompt_box import Prompt
from .pacing import Pace

log = logging.getLogger(__name__)

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds after an error, doubled each time


@dataclass(frozen=True)
class Status:
    """How the stream is doing. ``trouble`` is passing, and ``retry_in`` says in how many seconds; ``failed`` is not.

    detail: what is loaded, or what went wrong; done, total: progress of that.
    """

    phase: Literal["loading", "warming up", "ready", "trouble", "failed", "stopped"]
    detail: str = ""
    done: int = 0
    total: int = 0
    retry_in: float = 0.0


@dataclass(frozen=True)
class BlockMade:
    """A block that can be shown: how many frames it has and now wait, and the pipeline's figures after it."""

    frames: int
    waiting: int
    stats: dict
    gpu_bytes: int


@dataclass
class _Made:
    """A block on its way to the host, of the video with this number. Where the VAE is beside it, the transformer was
    through with it at ``denoised``; else all its time counts as decoding."""

    copy: HostCopy
    video: int
    started: float
    denoised: float
    coming: int = 0  # frames that another thread waits for


class Worker:
    """Makes blocks while someone watches, and keeps their frames until they are taken. Where the VAE has a GPU of its
    own, a block may begin while the one before is decoded, whose frames another thread waits for.

    make_pipeline: called in the thread with a progress callback.
    on_status, on_block: called in these threads; they must not block.
    of_block: called in the thread before each block, with whether it is a video's first: what the block is made from
        beside the prompt, as fields of a BlockRequest. It must not wait.
    pipeline, device, memory, stats: there when the status is ``ready``: the pipeline, its device's name, its memory
    plan, its figures of late.

    All other methods may be called from any thread; none waits for the device or for a block, but ``stop``.
    """

    pipeline: OptimizedScopePipeline

    def __init__(
        self,
        make_pipeline: Callable[[Progress], OptimizedScopePipeline],
        prompt: Prompt,
        on_status: Callable[[Status], None],
        on_block: Callable[[BlockMade], None],
        of_block: Callable[[bool], dict] = lambda begins: {},
    ):
        self._make_pipeline, self._on_status, self._on_block = make_pipeline, on_status, on_block
        self._of_block = of_block
        self.device, self.memory, self.stats = "", {}, {}
        self.status, self.error = Status("loading"), None
        self.overlay = False
        self._prompt, self._pace = prompt, Pace()
        self._frames: deque[np.ndarray] = deque()
        self._decoding: deque[Future[None]] = deque()  # blocks whose frames are waited for
        self._coming, self._shown_at = 0, 0.0  # frames of these; when the last block could be shown
        self._watched = self._paused = self._stopping = False
        self._lost: RankError | None = None
        self._video = self._video_shown = 0  # counts resets: those asked for, and those done
        self._begun = -1  # the last video that has a block
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="pipeline", daemon=True)

    def start(self) -> None:
        """Load the model, then wait for someone to watch."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Stop after the block under way; whether it ended within ``timeout`` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def give_up(self, error: RankError) -> None:
        """Fail: there is nothing left to make blocks with."""
        with self._changed:
            self._lost = error
            self._changed.notify()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def interval(self) -> float:
        """Seconds between frames when they are shown evenly."""
        return self._pace.interval(self.pipeline.config.target_fps)

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
        return self._paused

    def take(self) -> np.ndarray | None:
        """The next frame, uint8 [H, W, 3]; None if none is ready or the video is paused."""
        with self._changed:
            if self._paused or not self._frames:
                return None
            self._changed.notify()
            return self._frames.popleft()

    def switch_prompt(self, prompt: Prompt) -> None:
        """Go over to ``prompt`` with the next block that begins."""
        self._prompt = prompt
        self.pipeline.switch_prompt(prompt.prompt, blend=prompt.blend, transition_blocks=prompt.transition_blocks)

    def set_optimization_preset(self, preset: str) -> None:
        """Go over to a preset with the next block that begins."""
        self.pipeline.set_optimization_preset(preset)  # pyright: ignore[reportArgumentType]  # a name by now

    def set_watched(self, watched: bool) -> None:
        """Blocks are made only while someone watches."""
        with self._changed:
            self._watched = watched
            self._changed.notify()

    def set_paused(self, paused: bool) -> None:
        """Hold the video where it is: no frame is handed out, and none made."""
        with self._changed:
            self._paused = paused
            self._changed.notify()

    def reset(self) -> int:
        """Begin the video anew; how many frames that waited are dropped. A block under way is dropped too."""
        with self._changed:
            dropped = len(self._frames)
            self._frames.clear()
            self._video += 1
            self._changed.notify()
            return dropped

    def _run(self) -> None:
        try:
            self._load()
        except Exception as error:
            log.error("cannot load: %s", error)
            self._fail(error)
            return
        failures = 0
        with ThreadPoolExecutor(1, "frames") as self._reader:
            while self._wait_for_turn():
                try:
                    self._make_block()
                except RankError as error:  # only a new start helps
                    self._fail(error)
                    return
                except Exception as error:  # whatever it is, viewers are told, and the next try may succeed
                    failures += 1
                    self._stumble(error, failures)
                else:
                    if failures:
                        failures = 0
                        self._say(Status("ready"))
        self._say(Status("stopped"))

    def _load(self) -> None:
        self.pipeline = self._make_pipeline(self._progress)
        if self._stopping:
            return
        device = self.pipeline.engine.device
        self.device = device.type
        if device.type == "cuda":
            torch.cuda.set_device(device)  # for all that this thread does beside the engine
            self.device = torch.cuda.get_device_name(device)
            self._say(Status("warming up"))
            self.pipeline.warmup()
        self.switch_prompt(self._prompt)
        self._note_figures()
        self._say(Status("ready"))

    def _note_figures(self) -> None:
        self.stats, self.memory = self.pipeline.get_latency_stats(), self.pipeline.engine.memory_plan.as_json()

    def _progress(self, what: str, done: int, total: int) -> None:
        self.status = Status("loading", what, done, total)

    def _wait_for_turn(self) -> bool:
        """Wait until a block should begin; False when it is time to stop."""
        with self._changed:
            self._changed.wait_for(self._is_time)
            return not self._stopping

    def _is_time(self) -> bool:
        if self._stopping or self._lost:
            return True
        waiting, fps = len(self._frames), self.pipeline.config.target_fps
        return self._watched and not self._paused and self._pace.is_time(waiting, fps, self._coming)

    def _make_block(self) -> None:
        if self._lost:
            raise self._lost
        self._finish_decoding(1)
        started, video = time.perf_counter(), self._video
        if video != self._video_shown:
            self.pipeline.reset()
            self._video_shown = video
        block = self.pipeline.next_block(**self._of_block(video != self._begun))
        self._begun = video
        if self.overlay and self.pipeline.overlay:
            self.pipeline.overlay.apply(block, self.pipeline.get_latency_stats())
        made, devices = _Made(HostCopy(block), video, started, started), self.pipeline.engine.devices
        if not devices.async_vae:
            self._show(made)
            return
        made.coming = len(block)
        with self._changed:
            self._coming += made.coming
        self._decoding.append(self._reader.submit(self._show, made))
        _wait_for(devices.model)  # not for the VAE's
        made.denoised = time.perf_counter()

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
        now = time.perf_counter()
        with self._changed:
            self._coming -= made.coming
            self._changed.notify()
            if made.video != self._video:
                return
            halves = made.denoised - made.started, now - max(made.denoised, self._shown_at)
            self._pace.block_took(sum(halves), len(pictures), max(halves))
            self._shown_at = now
            self._frames.extend(pictures)
            waiting = len(self._frames)
        self._note_figures()
        self._on_block(BlockMade(len(pictures), waiting, self.stats, self._gpu_bytes()))

    def _gpu_bytes(self) -> int:
        gpus = (device for device in self.pipeline.engine.devices.all if device.type == "cuda")
        return sum(map(torch.cuda.memory_allocated, gpus))

    def _fail(self, error: Exception) -> None:
        self.error = error
        self._say(Status("failed", _first_line(error)))

    def _stumble(self, error: Exception, failures: int) -> None:
        delay = min(FIRST_DELAY * 2 ** (failures - 1), LONGEST_DELAY)
        log.error("a block failed, the next try is in %g s", delay, exc_info=error)
        self._say(Status("trouble", _first_line(error), retry_in=delay))
        with self._changed:
            if failures > 1:
                self._video += 1  # it was not a passing fault: give up what the stream remembers
            self._changed.wait_for(lambda: self._stopping, delay)

    def _say(self, status: Status) -> None:
        self.status = status
        self._on_status(status)


def _wait_for(device: torch.device) -> None:
    """Until what this thread has enqueued there is done; without burning the core that the encoders need."""
    if device.type != "cuda":
        return
    done = torch.cuda.Event(blocking=True)
    done.record(torch.cuda.current_stream(device))
    done.synchronize()


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
