"""One stream and those who watch it: everything between the viewers' messages and the pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Literal

import av
import numpy as np

from ...config import PRESETS
from ...media import cover, decode_picture
from ..scope_integration import OptimizedScopePipeline
from ..scope_integration.prompt_box import Prompt, as_prompt
from . import messages
from .access import Refused, TokenBucket
from .broadcast import Broadcast, ViewerTrack
from .inputs import Inputs, Role, Use
from .metrics import Metrics
from .offer import BadOffer
from .recording import Recorder
from .rtc import Peer, allow_bitrate, fit_bitrate
from .settings import ServerSettings
from .worker import BlockMade, Progress, Status, Worker

log = logging.getLogger(__name__)

OFFERS = 2.0, 10  # a second, and at once
DOWNLOADS = 0.5, 3
UPLOADS = 1.0, 5
MOST_PICTURE_PIXELS = 2**24  # of one that is sent
STATES = 10.0, 20  # that everyone is told; in a burst of changes the last one tells them all
CLOSE_SECONDS = 1.0  # that viewers, and beside them the worker, may take at the end
HIGHEST_FPS = max(preset["target_fps"] for preset in PRESETS.values())  # what bits are fitted to


NO_CONTROL = "the model here takes no control video and no pictures: start the server with --control"


class Room:
    """Lets viewers in, does what they say, and tells all of them.

    Everyone may control, and the last word counts; everyone is told what was changed, and by whom.
    Belongs to one event loop, in which ``on_status`` is called when the stream's status changes.
    """

    def __init__(
        self,
        make_pipeline: Callable[[Progress], OptimizedScopePipeline],
        prompt: str,
        settings: ServerSettings,
        on_status: Callable[[Status], None] = lambda status: None,
    ):
        self.settings, self.metrics, self.on_status = settings, Metrics(), on_status
        self.inputs = Inputs(self.metrics)
        self.worker = Worker(
            make_pipeline,
            as_prompt(prompt, transition_blocks=1),
            self._from_thread(self._take_status),
            self._from_thread(self._take_block),
            self.inputs.of_block,
        )
        self.recorder = Recorder(settings.record_seconds) if settings.record_seconds else None
        self._peers: set[Peer] = set()
        self._names = itertools.count(1)
        self._transition, self._preset = 1, None
        self._blend: Literal["linear", "slerp"] = "linear"
        self._stats, self._effective, self._input = {}, {}, {}
        self._sender: Peer | None = None
        self._change, self._telling = (None, None), None

    async def open(self) -> None:
        """Begin to load the model."""
        self._loop = asyncio.get_running_loop()
        self._offers, self._downloads, self._uploads, self._states = (
            TokenBucket(*limit, self._loop.time) for limit in (OFFERS, DOWNLOADS, UPLOADS, STATES)
        )
        self._broadcast = Broadcast(self.worker, self.recorder.add if self.recorder else None)
        self._clock = asyncio.create_task(self._broadcast.run(), name="frame clock")
        self.metrics.viewers.set_function(lambda: len(self._peers))
        self.metrics.waiting.set_function(lambda: self.worker.waiting)
        self.metrics.tasks.set_function(lambda: len(asyncio.all_tasks(self._loop)))
        self.worker.start()

    async def close(self) -> None:
        """Say good-bye to everyone and stop. A block under way is waited for, but not long."""
        self._tell({"type": "bye"})
        if self._telling:
            self._telling.cancel()
        self._clock.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._clock
        stopped = self._loop.run_in_executor(None, self.worker.stop, CLOSE_SECONDS)
        if closing := [asyncio.ensure_future(peer.close()) for peer in self._peers]:
            await asyncio.wait(closing, timeout=CLOSE_SECONDS)
        if not await stopped:
            log.warning("a block is under way and not waited for")
        self.inputs.close()
        if self.recorder:
            self.recorder.close()

    @property
    def ready(self) -> bool:
        """Whether there is a video to watch."""
        return self.worker.alive and self.worker.status.phase == "ready"

    def status(self) -> dict:
        """What a page needs to know before it can watch."""
        return {
            **dataclasses.asdict(self.worker.status),
            "viewers": len(self._peers),
            "max_viewers": self.settings.max_viewers,
            "memory": self.worker.memory,
            "input": self.inputs.state(),
            "ice_servers": [dataclasses.asdict(server) for server in self.settings.ice_servers],
        }

    async def admit(self, sdp: str) -> str:
        """Let a viewer in: the answer to their offer. Raises Refused."""
        status = self.worker.status
        if status.phase not in ("ready", "trouble"):
            raise Refused(503, f"there is no video yet: {status.phase} {status.detail}".strip(), status.phase)
        if not self._offers.take():
            raise Refused(429, "too many viewers come at once: try again in a moment", "busy")
        if len(self._peers) >= self.settings.max_viewers:
            raise Refused(
                503, f"no seat is free, of {self.settings.max_viewers}: try again when someone has left", "busy"
            )
        track = ViewerTrack(self.worker.pipeline.config.max_queue_depth, self.metrics)
        on = self._watch, self._greet, self._hear, self._take_frame, self._forget
        peer = Peer(f"viewer {next(self._names)}", track, self.settings, *on)
        self._peers.add(peer)
        try:
            return await peer.answer(sdp)
        except BadOffer as error:
            await peer.close()
            raise Refused(400, str(error), "bad offer") from error

    async def recording(self, seconds: float) -> bytes:
        """The last seconds as mp4. Raises Refused where there is nothing."""
        if self.recorder is None:
            raise Refused(404, "this server keeps no recording: start it with --record-seconds", "off")
        if not self._downloads.take():
            raise Refused(429, "too many downloads: try again in a moment", "busy")
        data = await asyncio.wrap_future(self.recorder.mp4(seconds))
        if not data:
            raise Refused(404, "nothing has been shown yet: someone must watch first", "empty")
        return data

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
        self.inputs.set_picture(role, picture)
        if role == "first_frame":
            self._begin_anew()
        self._tell_state(changed="set_picture", by=peer.name)

    def _decode(self, data: bytes) -> np.ndarray:
        return cover(decode_picture(data, MOST_PICTURE_PIXELS), *self.inputs.size)

    @property
    def _steerable(self) -> bool:
        """Whether the model takes control video and pictures."""
        return self.worker.pipeline.engine.control is not None

    def _watch(self, peer: Peer) -> None:
        self._broadcast.join(peer.track)

    def _greet(self, peer: Peer) -> None:
        config = self.worker.pipeline.config
        peer.send(
            {
                "type": "hello",
                "you": peer.name,
                "presets": messages.presets(),
                "width": config.width,
                "height": config.height,
                "record_seconds": self.settings.record_seconds,
                "seat": peer.seat,
                "inputs": ["video", "control"] if self._steerable else ["video"],
                "pictures": ["reference", "first_frame"] if self._steerable else [],
            }
        )
        self._tell_state()

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

    def _obey(self, peer: Peer, command: messages.Command) -> dict:
        match command:
            case messages.GetLatencyStats():
                return {"type": "latency_stats", "stats": self._stats}
            case messages.SwitchPrompt(prompt=text, transition_blocks=blocks):
                self.worker.switch_prompt(Prompt(text, self._blend, blocks or self._transition))
            case messages.SetOptimizationPreset(preset=name):
                self.worker.set_optimization_preset(name)
                self._preset = name
            case messages.SetTransition(blocks=blocks, blend=blend):
                self._transition, self._blend = blocks, blend
            case messages.SetOverlay(enabled=enabled):
                self.worker.overlay = enabled
            case messages.SetPaused(paused=paused):
                self.worker.set_paused(paused)
                self._broadcast.wake()
            case messages.SetInput(use=use):
                self._set_input(peer, use)
            case messages.SetStrength(noise_scale=noise, control_scale=control):
                self.inputs.noise_scale = self.inputs.noise_scale if noise is None else noise
                self.inputs.control_scale = self.inputs.control_scale if control is None else control
            case messages.RemovePicture(role=role):
                self.inputs.set_picture(role, None)
            case messages.Reset():
                self._begin_anew()
        self._tell_state(changed=command.type, by=peer.name)
        return {"type": "done"}

    def _begin_anew(self) -> None:
        self.metrics.dropped.labels("reset").inc(self.worker.reset())

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
        self._tell_state()

    def _tell(self, message: dict) -> None:
        for peer in list(self._peers):
            peer.send(message)

    def _tell_state(self, changed: str | None = None, by: str | None = None) -> None:
        """Tell everyone, soon, how things stand, and who changed what."""
        if changed:
            self._change = changed, by
        if self._telling is None:
            delay = 0.0 if self._states.take() else 1 / STATES[0]
            self._telling = self._loop.call_later(delay, self._say_state)

    def _say_state(self) -> None:
        (changed, by), self._change, self._telling = self._change, (None, None), None
        self._tell(
            {
                "type": "state",
                "changed": changed,
                "by": by,
                "status": dataclasses.asdict(self.worker.status),
                "prompt": self.worker.prompt.prompt,
                "transition": {"blocks": self._transition, "blend": self._blend},
                "preset": self._preset,
                "effective": self._effective,
                "input": self.inputs.state(),
                "overlay": self.worker.overlay,
                "paused": self.worker.paused,
                "viewers": len(self._peers),
            }
        )

    def _take_status(self, status: Status) -> None:
        if status.phase == "ready" and self._preset is None:
            config = self.worker.pipeline.config
            self._preset, self._stats = self.worker.pipeline.preset, self.worker.stats
            allow_bitrate(self.settings.bitrate or fit_bitrate(*config.size, HIGHEST_FPS))
            self._effective = self._in_force()
            self.inputs.size = config.size
        if status.phase == "trouble":
            self.metrics.troubles.inc()
        self.on_status(status)
        self._tell_state()

    def _take_block(self, block: BlockMade) -> None:
        self._broadcast.wake()
        self.metrics.generated.inc(block.frames)
        self.metrics.block_ms.observe(block.stats["block_ms"])
        self.metrics.gpu_bytes.set(block.gpu_bytes)
        self.metrics.fallbacks.set(block.stats["fallback_blocks"])
        if block.stats["prompt_switch_ms"] not in (0.0, self._stats["prompt_switch_ms"]):
            self.metrics.switch_ms.observe(block.stats["prompt_switch_ms"])
        self._stats = block.stats
        in_force, inputs = self._in_force(), self.inputs.state()
        if (in_force, inputs) != (self._effective, self._input):
            self._effective, self._input = in_force, inputs
            self._tell_state()
        self._tell(
            {
                "type": "block",
                "frames": block.frames,
                "waiting": block.waiting,
                "shown_fps": self._broadcast.fps,
                "stats": block.stats,
            }
        )

    def _in_force(self) -> dict:
        """What the last block was really made with."""
        pipeline, stats = self.worker.pipeline, self._stats
        names = ("denoising_steps", "local_attn_size", "target_fps", "drop_frames_on_lag", "height", "width")
        return {name: getattr(pipeline.config, name) for name in names} | {
            "preset": pipeline.preset,
            "precision": stats["precision"],
            "cuda_graphs": stats["cuda_graphs_active"],
            "device": self.worker.device,
            "memory": self.worker.memory,
        }

    def _count(self, outcome: str) -> None:
        self.metrics.messages.labels(outcome).inc()

    def _from_thread(self, take: Callable) -> Callable:
        """``take``, for the worker's thread to call: it runs in the event loop."""

        def post(news: Status | BlockMade) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(take, news)

        return post
