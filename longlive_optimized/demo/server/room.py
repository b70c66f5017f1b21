"""One stream and those who watch it: everything between the viewers' messages and the pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import av
import numpy as np
from pydantic import ValidationError

from ...clip import MEDIA_TYPES, Format
from ...config import PRESETS, OptimizationConfig
from ...media import cover, decode_picture
from ...story import Story
from ..scope_integration import LatencyStats, ScopeOptimizationConfig
from ..scope_integration.prompt_box import Prompt, as_prompt
from ..scope_integration.replay import sized
from . import messages
from .access import Refused, TokenBucket
from .broadcast import Broadcast
from .encoding import SharedEncoder, ViewerTrack, fit_bitrate
from .feed import BlockMade, Feed, Status
from .inputs import Inputs, Role, Use
from .metrics import Metrics, StreamMetrics
from .offer import BadOffer
from .publishing import Outlet, Publisher
from .recording import Recorder
from .rtc import Peer
from .saved import Saved
from .settings import ServerSettings
from .worker import Worker

log = logging.getLogger(__name__)

OFFERS = 2.0, 10  # a second, and at once
DOWNLOADS = 0.5, 3
UPLOADS = 1.0, 5
MOST_PICTURE_PIXELS = 2**24  # of one that is sent
STATES = 10.0, 20  # that everyone is told; in a burst of changes the last one tells them all
CLOSE_SECONDS = 1.0  # that viewers may take at the end

_COSTLY = "denoising_steps", "local_attn_size", "precision"

NO_CONTROL = "the model here takes no control video and no pictures: start the server with --control"


class Host(Protocol):
    """What a room asks of whoever has many of them."""

    def room_changed(self, room: Room) -> None:
        """Viewers came or went, or its stream is doing differently."""

    def position(self, room: Room) -> int | None:
        """Its place among those that wait to be opened, from 1 on; None for one that is open."""

    def may_have(self, room: Room, config: ScopeOptimizationConfig) -> bool:
        """Whether the device can make its stream with this config beside the others."""
        ...

    def turns_loras(self, room: Room) -> bool:
        """Whether its viewers may turn LoRAs, which act in all streams."""
        ...

    def turn_loras(self, room: Room, scales: Mapping[str, float], by: str, story: bool = False) -> None:
        """Merge LoRAs at other scales, as one of a room's viewers says, or its story, and tell those of the others."""


class Another(NamedTuple):
    """Who changes something, and is no viewer; name: what viewers are told."""

    name: str


class Room:
    """Lets viewers in, does what they say, and tells all of them.

    Everyone may control, and the last word counts; everyone is told what was changed, and by whom.
    Belongs to one event loop, in which it is made.

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
        self._transition, self._preset = 1, None
        self._blend: Literal["linear", "slerp"] = "linear"
        self._stats = dataclasses.asdict(LatencyStats())
        self._effective, self._input = {}, {}
        self._replayed: tuple[int, int] | None = None
        self._sender: Peer | None = None
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
            waiting=lambda: self.feed.waiting,
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
            "preset": self._preset_name,
            "height": height,
            "width": width,
            "fps": self._broadcast.model_fps,
            "p99_interval_ms": round(self._broadcast.p99_ms, 1),
            "block_ms": self._stats["block_ms"],
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
        on = self._watch, self._greet, self._hear, self._take_frame, self._forget
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
        how = {"transition": self._transition, "blend": self._blend, "preset": self._preset}
        return Saved(
            self.feed.config_wished_for, self.feed.prompt, snapshot, self.feed.overlay, self.feed.paused, **how
        )

    def go_on_from(self, saved: Saved) -> None:
        """Before it is opened: go on where another server's stream was. The first block is made at once."""
        self._transition, self._blend, self._preset = saved.transition, saved.blend, saved.preset
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
        if not self._steerable:
            raise Refused(409, NO_CONTROL, "off")
        if not self._uploads.take():
            raise Refused(429, "too many pictures: try again in a moment", "busy")
        try:
            picture = await self._loop.run_in_executor(None, self._decode, await read())
        except ValueError as error:
            raise Refused(422, str(error), "bad picture") from None
        self.feed.end_replay()
        self.inputs.set_picture(role, picture)
        if role == "first_frame":
            self._begin_anew()
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

    @property
    def _steerable(self) -> bool:
        """Whether the model takes control video and pictures."""
        return self.worker.source.engine.control is not None

    @property
    def _preset_name(self) -> str:
        pipeline = self.feed.pipeline
        return pipeline.preset if pipeline else preset_of(self.config)

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
                "inputs": ["video", "control"] if self._steerable else ["video"],
                "pictures": ["reference", "first_frame"] if self._steerable else [],
                "resumed": self._resumed,
                "commands": self._commands(),
                "loras": self._loras(),
                "formats": [*MEDIA_TYPES],
            }
        )
        self.tell_state()

    def _commands(self) -> dict[str, list[str]]:
        """What this stream can be told."""
        commands = messages.commands()
        if not (self.worker.loras.merged and self._host.turns_loras(self)):
            commands["settings"].remove("loras")
        return commands

    def _loras(self) -> list[dict]:
        return [{"name": name, "scale": scale} for name, scale in self.worker.loras.wished.items()]

    def _hear(self, peer: Peer, message: str | bytes) -> None:
        command = None
        try:
            command = messages.parse(message)
            peer.send(self._obey(peer, command) | {"id": command.id})
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
            self._obey(Another(by), messages.parse(message))
        except messages.BadMessage:
            self._count("bad")
            raise
        self._count("obeyed")

    def _obey(self, peer: Peer | Another, command: messages.Command) -> dict:
        match command:
            case messages.GetLatencyStats():
                return {"type": "latency_stats", "stats": self._stats}
            case messages.SwitchPrompt(what=what, transition_blocks=blocks):
                number = self.feed.switch_prompt(self._prompt_of(what, blocks or self._transition))
                self.tell_state(changed=command.type, by=peer.name)
                return {"type": "done", "number": number}
            case messages.SetOptimizationPreset(preset=name):
                self._configure(name, **self.config.preset_fields(name))
                self._preset = name
            case messages.ChangeSettings(fields=fields, loras=scales):
                self._check_loras(scales)
                if fields:
                    self._configure(", ".join(f"{name} {value}" for name, value in sorted(fields.items())), **fields)
                if "denoising_steps" in fields:
                    self._preset = None
                if scales:
                    self._host.turn_loras(self, scales, peer.name)
            case messages.SetTransition(blocks=blocks, blend=blend):
                self._transition, self._blend = blocks, blend
            case messages.SetOverlay(enabled=enabled):
                self.feed.overlay = enabled
            case messages.SetPaused(paused=paused):
                self.feed.set_paused(paused)
                self._broadcast.wake()
            case messages.SetInput(use=use):
                if not isinstance(peer, Peer):
                    raise messages.BadMessage("only viewers send video")
                self._set_input(peer, use)
            case messages.SetStrength(noise_scale=noise, control_scale=control):
                self.inputs.noise_scale = self.inputs.noise_scale if noise is None else noise
                self.inputs.control_scale = self.inputs.control_scale if control is None else control
            case messages.RemovePicture(role=role):
                self.inputs.set_picture(role, None)
            case messages.Reset(fields=fields):
                self._begin_anew(fields)
            case messages.Replay(story=story):
                self._replay(story, peer.name)
            case messages.StopReplay():
                self.feed.end_replay()
        self.tell_state(changed=command.type, by=peer.name)
        return {"type": "done"}

    def _prompt_of(self, what: str | Sequence[tuple[str, float]], blocks: int) -> Prompt:
        """Raises BadMessage for more prompts than the blend takes."""
        try:
            return as_prompt(what, blend=self._blend, transition_blocks=blocks)
        except ValueError as error:
            raise messages.BadMessage(str(error)) from None

    def _configure(self, what: str, **fields) -> None:
        """Raises BadMessage for what cannot be, and where the others on the device would come too short."""
        try:
            config = self.feed.config_wished_for.changed(**fields)
        except ValidationError as error:
            raise messages.BadMessage(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        if not self._host.may_have(self, config):
            raise messages.BadMessage(
                f"the server has no room for {what} beside the other streams: it takes more of its time than what is "
                "in force"
            )
        self.feed.configure(**fields)
        self._effective |= self._shown_with() if self._effective else {}

    def _check_loras(self, scales: Mapping[str, float]) -> None:
        """Raises BadMessage where these cannot be had from here."""
        if not scales:
            return
        if not self.worker.loras.merged:
            raise messages.BadMessage("loras: none are served: start the server with --lora, which no cluster has")
        if not self._host.turns_loras(self):
            raise messages.BadMessage(f"loras: they act in all streams of the server, and {self._who_turns}")
        try:
            self.worker.loras.check(scales)
        except ValueError as error:
            raise messages.BadMessage(f"loras: {error}") from None

    @property
    def _who_turns(self) -> str:
        """Why this stream's viewers may turn no LoRAs."""
        if self.settings.private:
            return "none is shared: they stay as the server was started"
        return "only those who watch the shared one may turn them"

    def _begin_anew(self, fields: dict[str, int] | None = None) -> None:
        """fields: another seed or size. Raises BadMessage for a size that cannot be."""
        if fields:
            before, config = self.config.size, dataclasses.replace(self.feed.config_wished_for, **fields)
            usual = self.worker.source.config.size
            if math.prod(config.size) > math.prod(usual):
                raise messages.BadMessage(
                    f"height and width may have at most {usual[0]}x{usual[1]} pixels together, as the server's own"
                )
            if not self._host.may_have(self, config):
                raise messages.BadMessage("the server has no room for this size beside the other streams")
            if config.size != before:
                self._check_memory(config)
                self._forget_inputs()
        dropped = self.feed.begin_with(**fields) if fields else self.feed.reset()
        self._all.dropped.labels("reset").inc(dropped)

    def _check_memory(self, config: ScopeOptimizationConfig) -> None:
        """Raises BadMessage where a stream of this size does not fit beside those that are open."""
        if not self.worker.has_memory_for(config):
            size = "x".join(map(str, config.size))
            raise messages.BadMessage(f"the server has no memory for a stream of {size} beside the others")

    def _forget_inputs(self) -> None:
        """They were of another size."""
        if self._sender:
            self._set_input(self._sender, None)
        for role in ("reference", "first_frame"):
            self.inputs.set_picture(role, None)

    def _replay(self, story: Story, by: str) -> None:
        """Raises BadMessage where the story does not fit the stream, or the device beside the others."""
        try:
            story = self.worker.loras.ours(story)
            self._check(story)
            dropped = self.feed.replay(story)
        except ValueError as error:
            raise messages.BadMessage(str(error)) from None
        self._host.turn_loras(self, self.worker.loras.beginning(story), by, story=True)
        self._preset = None
        if sized(story, self.worker.source.engine).size != self.config.size:
            self._forget_inputs()
        elif self._sender:
            self._set_input(self._sender, None)
        self._all.dropped.labels("reset").inc(dropped)

    def _check(self, story: Story) -> None:
        """Raises BadMessage for what is too much here."""
        for name in ("denoising_steps", "local_attn_size"):
            most = max(_extent(config, name) for config in (self.config, *map(self._with_preset, PRESETS)))
            if any(_extent(config, name) > most for config in story.configs()):
                raise messages.BadMessage(f"story has more {name} than the presets and this stream, {most}")
        if max(map(len, story.texts)) > messages.LONGEST_PROMPT:
            raise messages.BadMessage(f"story has a prompt of more than {messages.LONGEST_PROMPT} characters")
        turns = self.worker.loras.beginning(story) != self.worker.loras.wished
        if (turns or any(change.loras for change in story.changes)) and not self._host.turns_loras(self):
            raise messages.BadMessage(
                f"story has other scales of LoRAs than are in force: they act in all streams, and {self._who_turns}"
            )
        (height, width), usual = sized(story, self.worker.source.engine).size, self.worker.source.config
        if height * width > math.prod(usual.size):
            most = "x".join(map(str, usual.size))
            raise messages.BadMessage(
                f"story may have at most {most} pixels, as the server's own, got {height}x{width}"
            )
        config = dataclasses.replace(self.config, height=height, width=width)
        if config.size != self.config.size:
            self._check_memory(config)
        costly = [{name: getattr(each, name) for name in _COSTLY} for each in story.configs()]
        if not all(self._host.may_have(self, config.changed(**fields)) for fields in costly):
            raise messages.BadMessage("the server has no room for this story beside the other streams")

    def _with_preset(self, name: str) -> ScopeOptimizationConfig:
        return self.config.changed(**self.config.preset_fields(name))

    def _set_input(self, peer: Peer, use: Use | None) -> None:
        """Raises BadMessage where it cannot be."""
        if use == "control" and not self._steerable:
            raise messages.BadMessage(NO_CONTROL)
        if use and not peer.intake.possible:
            raise messages.BadMessage("this connection sends no video: offer its video section as sendrecv")
        if self._sender and self._sender is not peer:
            self._sender.intake.want(False)
        self._sender = peer if use else None
        if use:
            self.feed.end_replay()
            self.inputs.start(use, peer.name)
        else:
            self.inputs.stop()
        peer.intake.want(bool(use))

    def _take_frame(self, peer: Peer, frame: av.VideoFrame) -> None:
        if peer is self._sender:
            self.inputs.offer(frame)

    def _forget(self, peer: Peer) -> None:
        self._peers.discard(peer)
        if peer is self._sender:
            self._set_input(peer, None)
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
            delay = 0.0 if self._states.take() else 1 / STATES[0]
            self._telling = self._loop.call_later(delay, self._say_state)

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
                "prompt": messages.words(self.feed.prompt.prompt),
                "prompts": None if isinstance(self.feed.prompt.prompt, str) else [*self.feed.prompt.prompt],
                "asked": self.feed.arrivals.asked,
                "shown": self.feed.arrivals.shown,
                "transition": {"blocks": self._transition, "blend": self._blend},
                "preset": self._preset or self._preset_name,
                "effective": (self._effective or self._in_force()) | {"loras": self.worker.loras.merged},
                "loras": self._loras(),
                "input": self.inputs.state(),
                "replaying": self._replaying(),
                "overlay": self.feed.overlay,
                "paused": self.feed.paused,
                "viewers": self.people,
                "model": self.settings.shown_model,
            }
        )

    def _take_status(self, status: Status) -> None:
        if self._closed:
            return
        if status.phase == "ready":
            self._stats, self._effective = self.feed.stats, self._in_force()
            self._preset = self._preset or self._preset_name
            self.inputs.size = self.config.size
            self._broadcast.set_rate(self._rate)
        if status.phase == "trouble":
            self.metrics.block_failed()
        self.tell_state()
        self._host.room_changed(self)

    def take_loras(self, fault: str) -> None:
        """Other scales were merged, or could not be: tell everyone, and why those who may turn them."""
        if fault and self._host.turns_loras(self):
            self._tell({"type": "error", "error": f"LoRAs: {fault}", "id": None})
        self.tell_state()

    def _take_block(self, block: BlockMade) -> None:
        if self._closed:
            return
        self._broadcast.wake()
        self.metrics.block_made(block.frames, block.stats["block_ms"])
        self._all.gpu_bytes.set(block.gpu_bytes)
        if block.stats["prompt_switch_ms"] not in (0.0, self._stats["prompt_switch_ms"]):
            self._all.switch_ms.observe(block.stats["prompt_switch_ms"])
        self._stats = block.stats
        in_force, inputs, replaying = self._in_force(), self.inputs.state(), self.feed.replaying
        if (in_force, inputs, replaying) != (self._effective, self._input, self._replayed):
            self._effective, self._input, self._replayed = in_force, inputs, replaying
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
        return int(self._stats["fallback_blocks"])

    def _replaying(self) -> dict | None:
        replaying = self.feed.replaying
        return replaying and {"block": replaying[0], "blocks": replaying[1]}

    def _in_force(self) -> dict:
        """What the last block was really made with; before the first, what it will be made with."""
        config = self.config
        names = ("denoising_steps", "local_attn_size", "target_fps", "drop_frames_on_lag", "height", "width", "seed")
        return (
            {name: getattr(config, name) for name in names}
            | self._shown_with()
            | {
                "preset": self._preset_name,
                "precision": self._stats["precision"] if self.feed.pipeline else config.precision,
                "cuda_graphs": self._stats["cuda_graphs_active"],
                "device": self.worker.device,
                "memory": self.worker.memory,
            }
        )

    def _shown_with(self) -> dict:
        """How frames are shown, which changes at once."""
        config = self.feed.config_wished_for
        names = "playback_speed", "interpolation", "shown_fps", "model_fps"
        return {name: getattr(config, name) for name in names}

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


def _extent(config: OptimizationConfig, name: str) -> int:
    """A setting that takes time, in a number: that of a list is its length."""
    value = getattr(config, name)
    return value if isinstance(value, int) else len(value)


def preset_of(config: ScopeOptimizationConfig) -> str:
    """The preset that a config is; ``custom`` if it is none."""

    def fits(name: str) -> bool:
        return all(getattr(config, field) == value for field, value in config.preset_fields(name).items())

    return next(filter(fits, PRESETS), "custom")
