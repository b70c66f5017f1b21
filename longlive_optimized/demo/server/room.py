"""One stream and those who watch it: they are let in, heard, and told."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Protocol

import numpy as np

from ...clip import MEDIA_TYPES, Format
from ...media import cover, decode_picture
from ..scope_integration import ScopeOptimizationConfig
from ..scope_integration.prompt_box import Prompt
from . import messages
from .access import Refused, TokenBucket
from .broadcast import Broadcast
from .commands import NO_CONTROL, Another, Commands, Others
from .encoding import SharedEncoder, ViewerTrack, fit_bitrate
from .feed import BlockMade, Feed, Status
from .inputs import Inputs, Role
from .metrics import Metrics, StreamMetrics
from .offer import BadOffer
from .publishing import Outlet, Publisher
from .recording import Recorder
from .rtc import Peer
from .saved import Saved
from .settings import ServerSettings
from .state import State
from .worker import Worker

log = logging.getLogger(__name__)

OFFERS = 2.0, 10  # a second, and at once
DOWNLOADS = 0.5, 3
UPLOADS = 1.0, 5
MOST_PICTURE_PIXELS = 2**24  # of one that is sent
STATES = 10.0, 20  # that everyone is told; in a burst of changes the last one tells them all
CLOSE_SECONDS = 1.0  # that viewers may take at the end


class Host(Others, Protocol):
    """What a room asks of whoever has many of them."""

    def room_changed(self, room: Room) -> None:
        """Viewers came or went, or its stream is doing differently."""

    def position(self, room: Room) -> int | None:
        """Its place among those that wait to be opened, from 1 on; None for one that is open."""


class Room:
    """Lets viewers in, has done what they say, and tells all of them.

    Everyone is told what was changed, and by whom. Belongs to one event loop, in which it is made.

    name: of the stream. link: the page's address, below the server's, for those who are to see this stream alone.
    label: what it is called in figures. opened_by: the client whose stream it counts as. was_watched: whether anyone's
    connection has ever stood.
    config, prompt: what the stream begins with; without a config, with that of the model, which is still to be loaded.
    """

    def __init__(
        self,
        name: str,
        worker: Worker,
        settings: ServerSettings,
        metrics: Metrics,
        config: ScopeOptimizationConfig | None,
        prompt: Prompt,
        host: Host,
        link: str = "",
        label: str = "",
        opened_by: str | None = None,
    ):
        self.name, self.link, self.label, self.opened_by = name, link, label or name, opened_by
        self.settings, self.worker, self._host = settings, worker, host
        self.metrics = StreamMetrics(metrics, self.label)
        self._all = metrics
        self.inputs = Inputs(metrics)
        self.inputs.size = config.size if config else (0, 0)
        self.recorder = Recorder(settings.record_seconds) if settings.record_seconds else None
        self.feed = Feed(
            worker,
            config,
            prompt,
            self._from_thread(self._take_status),
            self._from_thread(self._take_block),
            self.inputs.of_block,
            self._keep_frames,
        )
        self._peers: set[Peer] = set()
        self._names = itertools.count(1)
        self.commands = Commands(self.feed, self.inputs, worker, host, metrics)
        self._state = State(self.feed, self.inputs, self.commands, worker)
        self._switch_ms = 0.0  # of the last prompt that was counted
        self._publisher: Publisher | None = None
        self._change, self._telling = (None, None), None
        self._loop = asyncio.get_running_loop()
        self._offers, self._downloads, self._uploads, self._states = (
            TokenBucket(*limit, self._loop.time) for limit in (OFFERS, DOWNLOADS, UPLOADS, STATES)
        )
        self._broadcast = Broadcast(self.feed, self.metrics, self._new_encoder, self._say_shown)
        self._clock = asyncio.create_task(self._broadcast.run(), name=f"frame clock of {self.label}")
        self._closed = self.was_watched = self._resumed = False
        self.metrics.follow(
            viewers=lambda: self.people,
            waiting=lambda: len(self.feed.frames),
            fps=lambda: self._broadcast.model_fps,
            p99_ms=lambda: self._broadcast.p99_ms,
        )

    async def close(self) -> None:
        """Say good-bye to everyone and stop."""
        self._closed = True
        failed = self.feed.status.phase == "failed"
        self._tell({"type": "bye", "reason": self.feed.status.detail if failed else ""})
        if self._telling:
            self._telling.cancel()
        if self._publisher:
            await self._publisher.close()
        self._clock.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._clock
        if closing := [asyncio.ensure_future(peer.close()) for peer in self._peers]:
            await asyncio.wait(closing, timeout=CLOSE_SECONDS)
        self.inputs.close()
        if self.recorder:
            self.recorder.close()
        self.metrics.forget()

    @property
    def people(self) -> int:
        """How many watch, or are about to; where it is published, that is one of them."""
        return len(self._peers) + self.published

    @property
    def published(self) -> bool:
        """Whether it is published elsewhere now."""
        return self._publisher is not None and self._publisher.active

    @property
    def config(self) -> ScopeOptimizationConfig:
        """The stream's config, or that which it will have where it is not open; once the model is loaded."""
        return self.feed.config_in_force

    @property
    def doing(self) -> dict:
        """How it is doing: the engine's status until that is ready, then the stream's; ``queued`` while it waits."""
        status = self.worker.status if self.worker.status.phase != "ready" else self.feed.status
        phase = {"phase": "queued"} if self._host.position(self) else {}
        return dataclasses.asdict(status) | phase

    def status(self) -> dict:
        """What a page needs to know before it can watch."""
        return {
            **self.doing,
            "stream": self.label,
            "viewers": self.people,
            "max_viewers": self.settings.max_viewers,
            "queue": self._host.position(self),
            "memory": self.worker.memory,
            "input": self.inputs.state(),
            "publish": self._publisher.status() if self._publisher else None,
            "ice_servers": ice_servers(self.settings),
        }

    def figures(self) -> dict:
        """How it is doing, in one line for whoever runs the server."""
        height, width = self.config.size
        return {
            "stream": self.label,
            "phase": self.doing["phase"],
            "queue": self._host.position(self),
            "viewers": self.people,
            "preset": self._state.preset_name,
            "height": height,
            "width": width,
            "fps": self._broadcast.model_fps,
            "p99_interval_ms": round(self._broadcast.p99_ms, 1),
            "block_ms": self.feed.stats["block_ms"],
        }

    async def admit(self, sdp: str) -> str:
        """Let a viewer in: the answer to their offer. Raises Refused."""
        if not self._offers.take():
            raise Refused(429, "too many viewers come at once: try again in a moment", "busy")
        if len(self._peers) >= self.settings.max_viewers:
            raise Refused(
                503, f"no seat is free, of {self.settings.max_viewers}: try again when someone has left", "busy"
            )
        track = ViewerTrack(self._all)
        on = self._watch, self._greet, self._hear, self.commands.take_frame, self._forget
        peer = Peer(f"viewer {next(self._names)}", track, self.settings, *on)
        self._peers.add(peer)
        self._host.room_changed(self)
        try:
            return await peer.answer(sdp)
        except BadOffer as error:
            await peer.close()
            raise Refused(400, str(error), "bad offer") from error

    def save(self) -> Saved | None:
        """The stream as it is, to go on elsewhere; None before its first block. Waits for a block under way: not for
        the event loop."""
        snapshot = self.feed.take_snapshot()
        if snapshot is None:
            return None
        feed, commands = self.feed, self.commands
        how = {"transition": commands.transition, "blend": commands.blend, "preset": commands.preset}
        return Saved(feed.config_wished_for, feed.prompt, snapshot, feed.overlay, feed.paused, **how)

    def go_on_from(self, saved: Saved) -> None:
        """Before it is opened: go on where another server's stream was. The first block is made at once."""
        commands = self.commands
        commands.transition, commands.blend, commands.preset = saved.transition, saved.blend, saved.preset
        self._resumed = True
        self.feed.snapshot, self.feed.overlay = saved.snapshot, saved.overlay
        self.feed.set_paused(saved.paused)
        self.feed.set_watched(True)

    def say_moved(self) -> None:
        """Tell everyone that the stream goes on at another place: who connects anew is led there."""
        self._tell({"type": "moved"})

    async def clip(self, seconds: float, form: Format, scale: int) -> bytes:
        """The last seconds as a file, each pixel enlarged. Raises Refused where there is nothing, and for what would be
        too large."""
        if self.recorder is None:
            raise Refused(404, "this server keeps no recording: start it with --record-seconds", "off")
        if self.recorder.busy or not self._downloads.take():
            raise Refused(429, "too many downloads: try again in a moment", "busy")
        try:
            data = await asyncio.wrap_future(self.recorder.clip(seconds, form, scale))
        except ValueError as error:
            raise Refused(422, str(error), "parameter") from None
        if not data:
            raise Refused(404, "nothing has been made yet: someone must watch first", "empty")
        return data

    def story(self) -> dict:
        """What the video was made from, as a story has it. Raises Refused where there is nothing."""
        if story := self.feed.story():
            return self.worker.loras.told(story).as_dict()
        raise Refused(404, "nothing has been made yet: someone must watch first", "empty")

    async def set_picture(self, seat: str, role: Role, read: Callable[[], Awaitable[bytes]]) -> None:
        """Use a picture that a viewer sends, a PNG, JPEG or WebP file, which is read if it is wanted; a first frame
        begins the video anew. Raises Refused.
        """
        peer = next(
            (peer for peer in self._peers if secrets.compare_digest(peer.seat.encode(), seat.encode(errors="replace"))),
            None,
        )
        if peer is None:
            raise Refused(403, "pictures are for viewers to send: 'hello' tells each of them their seat", "seat")
        if not self.commands.steerable:
            raise Refused(409, NO_CONTROL, "off")
        if not self._uploads.take():
            raise Refused(429, "too many pictures: try again in a moment", "busy")
        try:
            picture = await self._loop.run_in_executor(None, self._decode, await read())
        except ValueError as error:
            raise Refused(422, str(error), "bad picture") from None
        self.commands.use_picture(role, picture)
        self.tell_state(changed="set_picture", by=peer.name)

    def publish(self, outlet: Outlet) -> None:
        """Publish the stream there from now on, beside its viewers; once the model is loaded."""
        if self._publisher is None:
            on = self._watch_for_others, self._forget_others
            self._publisher = Publisher(outlet, lambda: self._rate, lambda: ViewerTrack(self._all), *on)

    @property
    def _rate(self) -> int:
        """Bits per second that the picture asks for."""
        return self.settings.bitrate or fit_bitrate(*self.config.size)

    def _new_encoder(self, codec: str) -> SharedEncoder:
        return SharedEncoder(codec, self.config.max_queue_depth, self._rate, self._all)

    def _watch_for_others(self, track: ViewerTrack) -> None:
        self.was_watched = True
        self._broadcast.join(track)
        self.tell_state()
        self._host.room_changed(self)

    def _forget_others(self, track: ViewerTrack) -> None:
        self._broadcast.leave(track)
        self.tell_state()
        self._host.room_changed(self)

    def _decode(self, data: bytes) -> np.ndarray:
        return cover(decode_picture(data, MOST_PICTURE_PIXELS), *self.inputs.size)

    def _say_shown(self, number: int, pts: int) -> None:
        """Tell everyone which picture is the first one of a prompt, by the RTP time stamp that their browser sees."""
        for peer in list(self._peers):
            peer.send({"type": "shown", "number": number, "rtp": peer.track.rtp_time(pts)})

    def _watch(self, peer: Peer) -> None:
        self.was_watched = True
        self._broadcast.join(peer.track)

    def _greet(self, peer: Peer) -> None:
        config = self.config
        peer.send(
            {
                "type": "hello",
                "you": peer.name,
                "stream": self.name,
                "link": self.link,
                "presets": messages.presets(),
                "width": config.width,
                "height": config.height,
                "record_seconds": self.settings.record_seconds,
                "seat": peer.seat,
                "inputs": ["video", "control"] if self.commands.steerable else ["video"],
                "pictures": ["reference", "first_frame"] if self.commands.steerable else [],
                "resumed": self._resumed,
                "commands": self.commands.known(),
                "loras": self._state.loras(),
                "formats": [*MEDIA_TYPES],
            }
        )
        self.tell_state()

    def _hear(self, peer: Peer, message: str | bytes) -> None:
        command = None
        try:
            command = messages.parse(message)
            peer.send(self._obey(command, peer) | {"id": command.id})
            self._count("obeyed")
        except messages.BadMessage as error:
            self._count("bad")
            peer.send({"type": "error", "error": str(error), "id": command.id if command else error.id})
        except Exception:  # or it would end the connection's own task
            log.exception("a message could not be obeyed")
            self._count("failed")
            peer.send({"type": "error", "error": "the server failed to do this", "id": command and command.id})

    def obey(self, message: str, by: str) -> None:
        """Do what is said by another way than a viewer's connection: which, is told to all. Raises BadMessage."""
        try:
            self._obey(messages.parse(message), Another(by))
        except messages.BadMessage:
            self._count("bad")
            raise
        self._count("obeyed")

    def _obey(self, command: messages.Command, by: Peer | Another) -> dict:
        answer = self.commands.obey(command, by)
        if isinstance(command, messages.SetPaused):
            self._broadcast.wake()
        if not isinstance(command, messages.GetLatencyStats):
            self.tell_state(changed=command.type, by=by.name)
        return answer

    def _forget(self, peer: Peer) -> None:
        self._peers.discard(peer)
        self.commands.forget(peer)
        self._broadcast.leave(peer.track)
        self.tell_state()
        self._host.room_changed(self)

    def _tell(self, message: dict) -> None:
        for peer in list(self._peers):
            peer.send(message)

    def tell_state(self, changed: str | None = None, by: str | None = None) -> None:
        """Tell everyone, soon, how things stand, and who changed what."""
        if changed:
            self._change = changed, by
        if self._telling is None and not self._closed:
            self._telling = self._loop.call_later(self._states.reserve(), self._say_state)

    def _say_state(self) -> None:
        (changed, by), self._change, self._telling = self._change, (None, None), None
        if not self._peers:  # nor need there be a model, whose config would be told
            return
        self._tell(
            {
                "type": "state",
                "changed": changed,
                "by": by,
                "status": self.doing,
                "queue": self._host.position(self),
                **self._state.as_json(),
                "viewers": self.people,
                "model": self.settings.shown_model,
            }
        )

    def _take_status(self, status: Status) -> None:
        if self._closed:
            return
        if status.phase == "ready":
            self._state.is_news()
            self.inputs.size = self.config.size
            self._broadcast.set_rate(self._rate)
        if status.phase == "trouble":
            self.metrics.block_failed()
        self.tell_state()
        self._host.room_changed(self)

    def take_loras(self, fault: str) -> None:
        """Other scales were merged, or could not be: tell everyone, and why those who may turn them."""
        if fault and not self._host.why_no_loras(self.feed):
            self._tell({"type": "error", "error": f"LoRAs: {fault}", "id": None})
        self.tell_state()

    def _take_block(self, block: BlockMade) -> None:
        if self._closed:
            return
        self._broadcast.wake()
        self.metrics.block_made(block.frames, block.stats["block_ms"])
        self._all.gpu_bytes.set(block.gpu_bytes)
        switch_ms, self._switch_ms = self._switch_ms, block.stats["prompt_switch_ms"]
        if self._switch_ms not in (0.0, switch_ms):
            self._all.switch_ms.observe(self._switch_ms)
        if self._state.is_news():
            self.tell_state()
        self._tell(
            {
                "type": "block",
                "frames": block.frames,
                "waiting": block.waiting,
                "shown_fps": self._broadcast.shown_fps,
                "model_fps": self._broadcast.model_fps,
                "prompt": block.prompt,
                "stats": block.stats,
            }
        )

    @property
    def fallback_blocks(self) -> int:
        """Blocks that were made again without 8 bits since the last reset."""
        return int(self.feed.stats["fallback_blocks"])

    def _keep_frames(self, frames: np.ndarray) -> None:
        if self.recorder:
            self.recorder.add(frames)

    def _count(self, outcome: str) -> None:
        self._all.messages.labels(outcome).inc()

    def _from_thread(self, take: Callable) -> Callable:
        """``take``, for the worker's thread to call: it runs in the event loop."""

        def post(news: Status | BlockMade) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(take, news)

        return post


def ice_servers(settings: ServerSettings) -> list[dict]:
    """The STUN and TURN servers for a page to use."""
    return [dataclasses.asdict(server) for server in settings.ice_servers]
