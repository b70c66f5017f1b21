"""All streams of a server: which are open, which wait for a place, and when they are closed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import secrets
from collections.abc import Callable, Container, Mapping

from ...engine.loading import Progress
from ..scope_integration import ScopeOptimizationConfig
from ..scope_integration.prompt_box import Prompt, as_prompt
from .access import ClientBuckets, Refused, stream_token
from .admission import Admission, Kind, load, share
from .encoding import allow_bitrate, fit_bitrate
from .feed import Feed, Status
from .metrics import Metrics
from .publishing import Outlet
from .room import Room, ice_servers
from .saved import Saved
from .settings import ServerSettings
from .source import Source
from .wishes import Wishes
from .worker import Worker

log = logging.getLogger(__name__)

MAIN = "main"  # the stream that all share
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
PRIVATE = "p-"  # how names begin that only those know who were told
OPENINGS = 0.5, 8  # of streams, for each client: a second, and at once
QUEUE_KEEP = 10.0  # seconds that a stream keeps its place among those that wait, though nobody is there
RESUMED_KEEP = 30.0  # seconds that one which goes on from elsewhere waits for its viewers
FAILED_KEEP = 5.0  # seconds that a stream which could not be opened is there to say why
TICK = 0.5  # seconds between two looks at whether one that waits can be opened
CLOSE_SECONDS = 1.0  # that the block under way may take at the end


class Sessions:
    """Opens a stream for whoever names a new one, as many as the device can make; others wait in a queue.

    load: makes the model, with the config of streams that wish for nothing else. prompt: of these; raises ValueError
        where it holds no text. outlet: where the shared stream is published, beside its viewers; raises ValueError
        where the server has none.
    Belongs to one event loop, in which ``on_status`` is called when the engine's status changes.
    """

    def __init__(
        self,
        load: Callable[[Progress], Source],
        prompt: str,
        settings: ServerSettings,
        on_status: Callable[[Status], None] = lambda status: None,
        outlet: Outlet | None = None,
    ):
        if outlet and settings.private:
            raise ValueError("what is published is the stream that all share: a server with private ones has none")
        self.settings, self.metrics, self.on_status = settings, Metrics(), on_status
        self.overlay = False  # whether streams begin with the latency panel
        self.worker = Worker(load, self._from_thread(self._take_status), self._from_thread(self._take_loras))
        self._prompt, self._outlet = as_prompt(prompt, transition_blocks=1), outlet
        self._admission = Admission(settings.sessions)
        self._rooms: dict[str, Room] = {}
        self._queue: list[Room] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._resting: set[str] = set()  # rooms that nobody watches, and that may be closed if others wait
        self._closing: set[asyncio.Task] = set()
        self._labels = itertools.count(1)
        self._ticking: asyncio.Task | None = None

    async def open(self) -> None:
        """Begin to load the model."""
        self._loop = asyncio.get_running_loop()
        self._openings = ClientBuckets(*OPENINGS, self._loop.time)
        figures = self.metrics
        figures.viewers.set_function(lambda: sum(room.people for room in self._rooms.values()))
        figures.waiting.set_function(lambda: sum(len(room.feed.frames) for room in self._rooms.values()))
        figures.fallbacks.set_function(lambda: sum(room.fallback_blocks for room in self._rooms.values()))
        figures.tasks.set_function(lambda: len(asyncio.all_tasks(self._loop)))
        figures.open.set_function(lambda: len(self._opened()))
        figures.queued.set_function(lambda: len(self._queue))
        figures.load.set_function(self._load)
        figures.publishing.set_function(lambda: sum(room.published for room in self._rooms.values()))
        if not self.settings.private:
            self.worker.add(self._new_room(MAIN, None, self._prompt).feed)
            self._resting.add(MAIN)
        self._ticking = asyncio.create_task(self._tick(), name="queue")
        self.worker.start()

    async def close(self) -> None:
        """Say good-bye to everyone and stop. A block under way is waited for, but not long."""
        for timer in self._timers.values():
            timer.cancel()
        assert self._ticking
        self._ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticking
        stopped = self._loop.run_in_executor(None, self.worker.stop, CLOSE_SECONDS)
        rooms, self._rooms, self._queue = [*self._rooms.values()], {}, []
        await asyncio.gather(*(room.close() for room in rooms), *self._closing)
        if not await stopped:
            log.warning("a block is under way and not waited for")

    @property
    def main(self) -> Room:
        """The stream that all share. Raises Refused where there is none."""
        return self.room(MAIN)

    @property
    def ready(self) -> bool:
        """Whether there is something to watch: the model is there."""
        return self.worker.alive and self.worker.status.phase == "ready"

    @property
    def free(self) -> bool:
        """Whether one more stream, with nothing wished for, would be opened at once."""
        return self.ready and not self._queue and self._fits(self.worker.source.config, self._resting)

    def room(self, name: str) -> Room:
        """The stream of this name. Raises Refused where none is open or waits."""
        if room := self._rooms.get(name):
            return room
        raise Refused(404, f"no stream {name[:70]!r} is open: whoever watches it first opens it", "no stream")

    def status(self, name: str | None = None) -> dict:
        """What a page needs to know before it can watch a stream, which may not be open yet; None is the shared one.
        Without a name also how all streams are doing. Raises Refused for what is no name.
        """
        if name:
            check_name(name)
        room = self._rooms.get(name or MAIN)
        status = room.status() if room else self._status_of_none()
        everyone = {
            "limit": self.settings.sessions,
            "open": len(self._opened()),
            "queued": len(self._queue),
            "load": round(self._load(), 3),
        }
        status |= {"sessions": everyone}
        figures = [room.figures() for room in self._rooms.values()] if self.ready else []
        return status if name else status | {"streams": figures}

    async def admit(self, sdp: str, name: str | None, wishes: Wishes, client: str) -> tuple[str, Room]:
        """Let a viewer into a stream, which is opened if it is new: the answer to their offer, and the stream.

        name: None is the shared stream, or a new one of the viewer's own where the server has private ones. wishes: for
        a new one. client: the address that asks. Raises Refused.
        """
        status = self.worker.status
        if status.phase != "ready":
            raise Refused(503, f"there is no video yet: {status.phase} {status.detail}".strip(), status.phase)
        name = name or (private_name() if self.settings.private else MAIN)
        room = self._rooms.get(name)
        new = room is None
        if room is None:
            room = self._open_room(name, wishes, client)
        elif room.feed.status.phase == "failed":
            raise Refused(503, f"the stream could not be opened: {room.feed.status.detail}", "failed")
        elif differs := wishes.differ_from(room.config):
            others = " and ".join(differs)
            raise Refused(409, f"this stream is open with another {others}: wish for none, or name a new one", "open")
        try:
            return await room.admit(sdp), room
        except Refused:
            if new and not room.people and self._rooms.get(name) is room:
                self._close_room(room)
            raise

    @property
    def names(self) -> list[str]:
        """Of all streams that are open or wait."""
        return [*self._rooms]

    def resume(self, name: str, saved: Saved) -> Room:
        """Open a stream that goes on where it was at another server, and make its first block, though nobody watches
        yet. Where it is there already it stays as it is. Raises Refused for a bad name."""
        check_name(name)
        if room := self._rooms.get(name):
            return room
        room = self._new_room(name, saved.config, saved.prompt)
        room.go_on_from(saved)
        self.worker.add(room.feed)
        self.room_changed(room)
        return room

    def end(self, name: str) -> None:
        """Close a stream now, whoever watches it."""
        if room := self._rooms.get(name):
            self._close_room(room)

    # --- what rooms ask

    def room_changed(self, room: Room) -> None:
        """Close it a while after the last viewer has left; put it into the queue when one comes and it is closed."""
        if self._rooms.get(room.name) is not room:
            return
        if room.feed.status.phase == "failed":  # those who are about to connect are told, too
            if room.name not in self._timers:
                self._timers[room.name] = self._loop.call_later(FAILED_KEEP, self._close_room, room)
            return
        if timer := self._timers.pop(room.name, None):
            timer.cancel()
        if room.people:
            self._resting.discard(room.name)
            if not self._is_open(room) and room not in self._queue:
                self._queue.append(room)
                self._open_next()
        elif room.name not in self._resting:
            unseen = RESUMED_KEEP if room.feed.watched else 0.0
            seconds = self.settings.keep_seconds if room.was_watched else unseen
            seconds = min(seconds, QUEUE_KEEP) if room in self._queue else seconds
            self._timers[room.name] = self._loop.call_later(seconds, self._rest, room)

    def position(self, room: Room) -> int | None:
        """Its place in the queue, from 1 on; None for one that does not wait."""
        return self._queue.index(room) + 1 if room in self._queue else None

    def may_have(self, feed: Feed, config: ScopeOptimizationConfig) -> bool:
        """Whether the device can make a stream with this config beside the others."""
        others = [other.feed.share for other in self._opened() if other.feed is not feed]
        return self._admission.may_change(others, feed.share, feed.share_with(config))

    def why_no_loras(self, feed: Feed) -> str:
        """Why its viewers may turn no LoRAs: those of the shared stream may, and nobody where there is none."""
        if self.settings.private:
            return "none is shared: they stay as the server was started"
        shared = self._rooms.get(MAIN)
        return "" if shared and shared.feed is feed else "only those who watch the shared one may turn them"

    def turn_loras(self, feed: Feed, scales: Mapping[str, float], by: str, story: bool = False) -> None:
        """Merge LoRAs at other scales, as a viewer of the shared stream says, or its story, and tell those of the
        others."""
        if self.worker.turn_loras(scales, feed if story else None):
            for room in self._rooms.values():
                if room.feed is not feed:
                    room.tell_state(changed="loras", by=f"{by} of {MAIN}")

    # --- opening and closing

    def _open_room(self, name: str, wishes: Wishes, client: str) -> Room:
        try:
            return self._new_session(name, wishes, client)
        except Refused as refused:
            self.metrics.refused.labels(refused.code).inc()
            raise

    def _new_session(self, name: str, wishes: Wishes, client: str) -> Room:
        check_name(name)
        try:
            config = wishes.config(self.worker.source.config)
        except ValueError as error:
            raise Refused(422, str(error), "bad wish") from None
        most = self.settings.sessions_per_client
        if sum(room.opened_by == client for room in self._rooms.values()) >= most:
            raise Refused(
                429, f"you have {most} streams, and may have no more: close one, and wait until it ends", "too many"
            )
        if (self._queue or not self._fits(config, self._resting)) and len(self._queue) >= self.settings.max_queued:
            waiting = f", and {len(self._queue)} streams wait for one" if self._queue else ""
            raise Refused(503, f"all places are taken{waiting}: try again later", "full")
        if not self._openings.take(client):
            raise Refused(429, "you open too many streams at once: try again in a moment", "busy")
        prompt = as_prompt(wishes.prompt, transition_blocks=1) if wishes.prompt else self._prompt
        return self._new_room(name, config, prompt, client)

    def _new_room(
        self, name: str, config: ScopeOptimizationConfig | None, prompt: Prompt, client: str | None = None
    ) -> Room:
        label = f"private {next(self._labels)}" if name.startswith(PRIVATE) else name
        token = self.settings.token
        link = f"s/{name}/" + (f"#token={stream_token(token, name)}" if token else "")
        room = Room(name, self.worker, self.settings, self.metrics, config, prompt, self, link, label, client)
        room.feed.overlay = self.overlay
        self._rooms[name] = room
        self._publish()
        return room

    def _publish(self) -> None:
        """Begin to publish the shared stream, once it and the model are there."""
        room = self._rooms.get(MAIN)
        if self._outlet and room and self.worker.status.phase == "ready":
            room.publish(self._outlet)

    def _open_next(self) -> None:
        """Open those that have waited longest, as far as there are places."""
        while self._queue and self._make_place_for(self._queue[0].config):
            room = self._queue[0]
            self.worker.add(room.feed)
            room.tell_state()
            self._leave_queue(room)

    def _leave_queue(self, room: Room) -> None:
        if room in self._queue:
            self._queue.remove(room)
            for other in self._queue:
                other.tell_state()

    def _make_place_for(self, config: ScopeOptimizationConfig) -> bool:
        """Whether there is a place; one that nobody watches, and that may be closed, is given up for it."""
        if not self._fits(config):
            for room in self._opened():
                if room.name in self._resting:
                    self.worker.remove(room.feed)
        return self._fits(config)

    def _fits(self, config: ScopeOptimizationConfig, besides: Container[str] = ()) -> bool:
        """Whether a stream can be opened beside those that are; besides: names that do not count."""
        others = [room.feed.share for room in self._opened() if room.name not in besides]
        fits = self._admission.fits(others, share(self.worker.costs.of(Kind.of(config)), config.model_fps))
        return fits and self.worker.has_memory_for(config)

    def _opened(self) -> list[Room]:
        return [room for room in self._rooms.values() if self._is_open(room)]

    def _is_open(self, room: Room) -> bool:
        return self.worker.has(room.feed)

    def _load(self) -> float:
        return load(room.feed.share or 0.0 for room in self._opened() if room.people)

    def _rest(self, room: Room) -> None:
        """Nobody has come back: close it, or let others have its place if it is the shared one."""
        self._timers.pop(room.name, None)
        if room.name == MAIN and not self.settings.private and room.feed.status.phase != "failed":
            self._resting.add(MAIN)
            self._leave_queue(room)
        else:
            self._close_room(room)
        self._open_next()

    def _close_room(self, room: Room) -> None:
        del self._rooms[room.name]
        self._resting.discard(room.name)
        if timer := self._timers.pop(room.name, None):
            timer.cancel()
        self._leave_queue(room)
        self.worker.remove(room.feed)
        task = asyncio.create_task(room.close(), name=f"end of {room.label}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _tick(self) -> None:
        """What streams cost changes as they are measured, and memory comes free a while after a stream is closed."""
        while True:
            await asyncio.sleep(TICK)
            try:
                self._open_next()
            except Exception:  # or nobody would be taken from the queue any more
                log.exception("a stream that waits could not be opened")

    def _status_of_none(self) -> dict:
        """Of a stream that is not open."""
        worker = self.worker
        return {
            "phase": worker.status.phase,
            "detail": worker.status.detail,
            "done": worker.status.done,
            "total": worker.status.total,
            "retry_in": 0.0,
            "stream": None,
            "viewers": 0,
            "max_viewers": self.settings.max_viewers,
            "queue": None,
            "memory": worker.memory,
            "publish": None,
            "ice_servers": ice_servers(self.settings),
        }

    def _take_status(self, status: Status) -> None:
        if status.phase == "ready":
            size = self.worker.source.config.size
            allow_bitrate(self.settings.bitrate or fit_bitrate(*size))
            self._publish()
        self.on_status(status)
        for room in self._rooms.values():
            room.tell_state()

    def _take_loras(self, fault: str) -> None:
        for room in self._rooms.values():
            room.take_loras(fault)

    def _from_thread(self, take: Callable) -> Callable:
        """``take``, for the worker's thread to call: it runs in the event loop."""

        def post(news: Status | str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(take, news)

        return post


def private_name() -> str:
    """A new name that nobody can guess."""
    return PRIVATE + secrets.token_urlsafe(12)


def check_name(name: str) -> None:
    """Raise Refused for what is no stream's name."""
    if not NAME.fullmatch(name):
        raise Refused(422, f"a stream's name is of 1 to 64 letters, digits, - and _, got {name[:70]!r}", "bad name")
