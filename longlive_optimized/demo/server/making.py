"""An open stream's blocks: made, and brought to the host."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...engine.host_copy import HostCopy
from ...engine.ranks import RankError
from ...video_time import BLOCK_PIXEL_FRAMES
from ..scope_integration import OptimizedScopePipeline
from .feed import BlockMade, Feed, Resize, Status, first_line

if TYPE_CHECKING:
    from .worker import Worker

log = logging.getLogger(__name__)

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds after an error, doubled each time


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


class Making:
    """Makes a feed's blocks with a pipeline, from when it is opened until it is closed. Where the VAE has a GPU of its
    own, a block may begin while the one before is decoded, whose frames the worker's other thread waits for.

    pipeline: the stream; another one once it is of another size. begun: the last of the feed's videos that has a block.
    All methods are the worker's thread's.
    """

    def __init__(self, feed: Feed, worker: Worker, pipeline: OptimizedScopePipeline):
        self._feed, self._worker, self._changed = feed, worker, worker.changed
        self.pipeline, self.begun = pipeline, -1
        self._decoding: deque[Future[None]] = deque()  # blocks whose frames are waited for
        self._video = self._failures = 0

    def close(self) -> None:
        """Wait for what is being decoded, which nobody will see."""
        with contextlib.suppress(Exception):
            self._finish_decoding(0)

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
            self._feed.say(Status("ready"))

    def _make_block(self) -> None:
        feed = self._feed
        if resize := feed.resize:
            self._change_size(resize)
        self._finish_decoding(1)
        pipeline, started, video, kind = self.pipeline, time.perf_counter(), feed.video, feed.kind
        replays = pipeline.replaying is not None
        if video != self._video:
            if not replays:
                pipeline.reset(feed.take_seed())
            self._video = video
        begins = video != self.begun
        source: dict = {} if replays else feed.of_block(begins)
        block = pipeline.next_block(**source)
        if replays:
            feed.follow_replay(kind)
        self.begun = video
        feed.blocks += 1
        if feed.overlay and pipeline.overlay:
            pipeline.overlay.apply(block, pipeline.get_latency_stats())
        made, devices = _Made(HostCopy(block), video, begins, started, started), pipeline.engine.devices
        with self._changed:
            made.prompt = feed.frames.arrivals.number(pipeline.prompt)
        if not devices.async_vae:
            self._show(made)
            return
        made.coming = len(block)
        with self._changed:
            feed.frames.coming += made.coming
        self._decoding.append(self._worker.reader.submit(self._show, made))
        _wait_for(devices.model)  # not for the VAE's
        made.denoised = time.perf_counter()

    def _change_size(self, resize: Resize) -> None:
        """Go on with a stream of another size, which may begin as a story does."""
        self._finish_decoding(0)
        pipeline = self._worker.source.open(resize.config)
        if resize.story:
            pipeline.replay(resize.story)
        with self._changed:
            if not self._feed.take_size(resize, pipeline):
                return
            self.pipeline = pipeline
        self._worker.give_back()
        self._feed.say(Status("ready"))

    def _finish_decoding(self, left: int) -> None:
        """Wait until no more than so many blocks are waited for. Raises what went wrong with them."""
        while self._decoding and (len(self._decoding) > left or self._decoding[0].done()):
            self._decoding.popleft().result()

    def _show(self, made: _Made) -> None:
        """Let a block's frames be taken, once they are there; not those of a video that has been given up."""
        feed, frames = self._feed, self._feed.frames
        try:
            pictures = made.copy.frames()
        except BaseException:
            with self._changed:
                self._has_come(made)
            raise
        now = time.perf_counter()
        with self._changed:
            self._has_come(made)
            if made.video != feed.video:
                return
            self._note_times(made, now, len(pictures))
            # With another number of frames the decoder has begun anew.
            frames.add(pictures, made.prompt, made.begins or len(pictures) != BLOCK_PIXEL_FRAMES)
            waiting = len(frames)
        feed.on_frames(pictures)
        feed.stats = self.pipeline.get_latency_stats()
        gpus = [device for device in self.pipeline.engine.devices.all if device.type == "cuda"]
        gpu_bytes = sum(map(torch.cuda.memory_allocated, gpus))
        feed.on_block(BlockMade(len(pictures), waiting, feed.stats, gpu_bytes, made.prompt))

    def _has_come(self, made: _Made) -> None:
        self._feed.frames.coming -= made.coming
        self._changed.notify()

    def _note_times(self, made: _Made, now: float, frames: int) -> None:
        halves = made.denoised - made.started, now - max(made.denoised, self._worker.decoded_at)
        self._worker.decoded_at = now
        feed = self._feed
        seconds = feed.pace.block_took(sum(halves), frames, max(halves))
        if feed.pace.settled:
            self._worker.costs.note(feed.kind, seconds)
        self._worker.share_out()

    def _stumble(self, error: Exception) -> None:
        self._failures += 1
        delay = min(FIRST_DELAY * 2 ** (self._failures - 1), LONGEST_DELAY)
        log.error("a block failed, the next try is in %g s", delay, exc_info=error)
        # A second failure is no passing fault: what the stream remembers is given up.
        self._feed.rest(delay, anew=self._failures > 1)
        self._feed.say(Status("trouble", first_line(error), retry_in=delay))


def _wait_for(device: torch.device) -> None:
    """Until what this thread has enqueued there is done; without burning the core that the encoders need."""
    if device.type != "cuda":
        return
    done = torch.cuda.Event(blocking=True)
    done.record(torch.cuda.current_stream(device))
    done.synchronize()
