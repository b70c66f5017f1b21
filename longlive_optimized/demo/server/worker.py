"""The one thread that owns the engine, and with it the device."""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from ...engine.host_copy import HostCopy
from ...engine.loading import Progress
from ...engine.ranks import RankError
from ..scope_integration import OptimizedScopePipeline, ScopeOptimizationConfig
from .admission import Costs, Kind
from .feed import Feed, Status, first_line
from .loras import Loras
from .making import Making
from .pacing import shared_fps
from .source import Source

log = logging.getLogger(__name__)

MEASURED = 3  # blocks
ROOM = 1.1  # times the memory that streams of this size took, of which as much must be free for one more


class Worker:
    """Makes the blocks of all streams that someone watches: first that of the stream which would be late first.

    load: called in the thread with a progress callback.
    on_status: called in the thread when the engine's status changes; it must not block.
    on_loras: likewise, when other scales of LoRAs are merged; with what went wrong, if they could not be.
    source, device, memory: there when the status is ``ready``: the loaded model, its device's name, its memory plan.
    changed: the lock of all that feeds and worker share, notified when there may be something to do.
    share: frames a second of each stream that the device can keep up, now that so many are watched.
    costs: what streams take here. loras: the engine's.
    reader: the thread that waits for frames which another GPU decodes. decoded_at: when the last block could be shown.

    All methods may be called from any thread; none waits for the device or for a block, but ``stop``.
    """

    source: Source
    reader: ThreadPoolExecutor

    def __init__(
        self,
        load: Callable[[Progress], Source],
        on_status: Callable[[Status], None] = lambda status: None,
        on_loras: Callable[[str], None] = lambda fault: None,
    ):
        self._load, self._on_status, self._on_loras = load, on_status, on_loras
        self.device, self.memory = "", {}
        self.status, self.error = Status("loading"), None
        self.changed, self.costs, self.share = threading.Condition(), Costs(), math.inf
        self.loras, self._merges, self._turns = Loras(), 0, None
        self._feeds: list[Feed] = []
        self._leaving: list[Feed] = []
        self._spare: OptimizedScopePipeline | None = None  # one that is warmed up, and nobody's
        self._bytes_per_pixel = 0.0  # of the largest stream so far
        self._stopping, self.decoded_at = False, 0.0
        self._lost: RankError | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Load the model, then wait for someone to watch."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Stop after the block under way; whether it ended within ``timeout`` seconds."""
        with self.changed:
            self._stopping = True
            self.changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def give_up(self, error: RankError) -> None:
        """Fail: there is nothing left to make blocks with."""
        with self.changed:
            self._lost = error
            self.changed.notify()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def add(self, feed: Feed) -> None:
        """Open a feed's stream, soon, and make its blocks."""
        with self.changed:
            if feed in self._leaving:
                self._leaving.remove(feed)
            if feed not in self._feeds:
                self._feeds.append(feed)
            self.changed.notify()

    def remove(self, feed: Feed) -> None:
        """Close a feed's stream, soon, and give its memory back."""
        with self.changed:
            if feed in self._feeds:
                self._feeds.remove(feed)
                self._leaving.append(feed)
            self.share_out()
            self.changed.notify()

    def has(self, feed: Feed) -> bool:
        """Whether a feed's stream is open, or soon will be."""
        with self.changed:
            return feed in self._feeds

    def share_out(self) -> None:
        """Note who is watched, and so what each stream's share of the device is; with the lock."""
        now = time.monotonic()
        active = [feed for feed in self._feeds if feed.pipeline and feed.is_active(now)]
        self.share = shared_fps(feed.demand for feed in active)

    def turn_loras(self, scales: Mapping[str, float], feed: Feed | None = None) -> bool:
        """Merge these scales, by name, before the next block of any stream, soon; False where they are wished for
        already. It ends what streams replay, but for ``feed``, whose story has them."""
        with self.changed:
            before = self.loras.wished
            if {**before, **scales} == before:
                return False
            self.loras.wish(scales)
            self._turns = feed
            self._end_replays(feed)
            self.changed.notify()
            return True

    def has_memory_for(self, config: ScopeOptimizationConfig) -> bool:
        """Whether one more stream of this size will fit a GPU, going by those that were opened."""
        device = self.source.engine.device
        if device.type != "cuda" or self._spare:
            return True
        free, _ = torch.cuda.mem_get_info(device)
        if limit := config.memory_limit_gib:
            free = min(free, limit * 2**30 - torch.cuda.memory_reserved(device))
        return free >= ROOM * self._bytes_per_pixel * math.prod(config.size)

    def _run(self) -> None:
        try:
            self._begin()
        except Exception as error:
            log.error("cannot load: %s", error)
            self._fail(error)
            return
        with ThreadPoolExecutor(1, "frames") as self.reader:
            while self._do_next():
                pass
        if self.error is None:
            self._say(Status("stopped"))

    def _begin(self) -> None:
        self.source = self._load(self._progress)
        self.loras.serve(self.source.engine)
        self._merges = self.loras.merges
        if self._stopping:
            return
        device = self.source.engine.device
        self.device = device.type
        if device.type == "cuda":
            torch.cuda.set_device(device)  # for all that this thread does beside the engine
            self.device = torch.cuda.get_device_name(device)
            self._say(Status("warming up"))
        before = self._reserved()
        self._spare = self.source.open(self.source.config)
        if device.type == "cuda":
            self._spare.warmup()
        self._weigh(before, self.source.config)
        if device.type == "cuda":
            self._measure(self._spare)
        self._note_memory()
        for feed in [*self._feeds]:
            self._open(feed)
        self._say(Status("ready"))

    def _measure(self, pipeline: OptimizedScopePipeline) -> None:
        """Note what a stream's blocks take here, before anyone asks for a second one."""
        pipeline.switch_prompt("warm-up")
        for _ in range(MEASURED):
            started = time.perf_counter()
            pictures = HostCopy(pipeline.next_block()).frames()
            self.costs.note(Kind.of(self.source.config), (time.perf_counter() - started) / len(pictures))
        pipeline.reset()

    def _note_memory(self) -> None:
        self.memory = self.source.engine.memory_plan.as_json()  # another one once memory has run out

    def _progress(self, what: str, done: int, total: int) -> None:
        self.status = Status("loading", what, done, total)

    def _do_next(self) -> bool:
        """Wait for a task and do it, and keep nothing of it; False when it is time to stop."""
        try:
            task = self._next_task()
            if task is None:
                return False
            task()
        except RankError as error:  # only a new start helps
            self._fail(error)
            return False
        except Exception:  # of one stream: the others go on
            log.exception("a stream's task failed")
        self._note_memory()
        return True

    def _next_task(self) -> Callable[[], None] | None:
        """Wait until something is to be done; None when it is time to stop. Raises RankError where one is lost."""
        with self.changed:
            while not self._stopping:
                if self._lost:
                    raise self._lost
                now = time.monotonic()
                if self._leaving:
                    return functools.partial(self._close, self._leaving.pop())
                if self.loras.is_due(now):
                    return self._merge_loras
                feed = self._first_to_be_late(now)
                unopened = next((one for one in self._feeds if not one.pipeline), None)
                if unopened and (feed is None or unopened.deadline < now):
                    return functools.partial(self._open, unopened)
                if feed:
                    return functools.partial(self._make_block, feed)
                times = [feed.retry_at for feed in self._feeds if feed.watched and feed.retry_at > now]
                times += [self.loras.rests_until] if self.loras.rests_until > now else []
                self.changed.wait(min(times) - now if times else None)
        return None

    def _first_to_be_late(self, now: float) -> Feed | None:
        """Of the feeds whose next block should begin, the one with the earliest deadline."""
        active = [feed for feed in self._feeds if feed.pipeline and feed.is_active(now)]
        due = [feed for feed in active if feed.is_time([other for other in active if other is not feed])]
        if now < self.loras.rests_until:
            due = [feed for feed in due if not feed.turns_loras]
        return min(due, key=lambda feed: feed.deadline, default=None)

    def _make_block(self, feed: Feed) -> None:
        assert feed.making
        feed.making.make_block()
        self._follow_loras(feed)

    def _merge_loras(self) -> None:
        with self.changed:
            feed = self._turns
        try:
            self.loras.merge()
        except RankError:
            raise
        except Exception as error:
            log.error("other scales of LoRAs could not be merged: %s", error)
            self._on_loras(first_line(error))
            return
        self._follow_loras(feed)

    def _follow_loras(self, feed: Feed | None) -> None:
        """Where other scales were merged, by the story of ``feed`` or because they were wished for: what other streams
        replay would be another video."""
        if self.loras.merges != self._merges:
            self._merges = self.loras.merges
            with self.changed:
                self.loras.rest(sum(feed.watched for feed in self._feeds))
            self._end_replays(feed)
            self._on_loras("")

    def _end_replays(self, but: Feed | None) -> None:
        with self.changed:
            for feed in self._feeds:
                if feed is not but:
                    feed.end_replay()

    def _open(self, feed: Feed) -> None:
        try:
            config, before = feed.config_in_force, self._reserved()
            if feed.snapshot:
                pipeline = self.source.open(config, feed.snapshot)
            elif self._spare and config == self.source.config:
                pipeline, self._spare = self._spare, None
            else:
                self._spare = None
                pipeline = self.source.open(config)
                self._weigh(before, config)
            feed.open_with(Making(feed, self, pipeline))
        except RankError:
            raise
        except Exception as error:  # of this stream: the others go on
            wish = isinstance(error, ValueError)  # that cannot be: no fault of ours
            log.error("a stream could not be opened: %s", error, exc_info=None if wish else error)
            with self.changed:
                if feed in self._feeds:
                    self._feeds.remove(feed)
            feed.close_stream()
            feed.say(Status("failed", first_line(error)))
            return
        with self.changed:
            self.share_out()

    def _close(self, feed: Feed) -> None:
        feed.close_stream()
        self.give_back()

    def give_back(self) -> None:
        """Give memory back that a closed stream had; its thread's."""
        if self.source.engine.device.type == "cuda":
            self.source.engine.devices.release()

    def _weigh(self, before: int, config: ScopeOptimizationConfig) -> None:
        """Note what a stream took; graphs and buffers that come with its first blocks too, where it was warmed up."""
        taken = (self._reserved() - before) / math.prod(config.size)
        self._bytes_per_pixel = max(self._bytes_per_pixel, taken)

    def _reserved(self) -> int:
        """Bytes that the allocator holds, the pools of graphs among them."""
        device = self.source.engine.device
        return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0

    def _fail(self, error: Exception) -> None:
        self.error = error
        self._say(Status("failed", first_line(error)))

    def _say(self, status: Status) -> None:
        self.status = status
        self._on_status(status)
