"""What viewers say to a stream, checked and done."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import av
import numpy as np
from pydantic import ValidationError

from ...config import PRESETS, OptimizationConfig
from ...story import Story
from ..scope_integration import ScopeOptimizationConfig
from ..scope_integration.prompt_box import Prompt, as_prompt
from ..scope_integration.replay import sized
from . import messages
from .feed import Feed
from .inputs import Inputs, Role, Use
from .messages import BadMessage
from .metrics import Metrics
from .rtc import Peer
from .worker import Worker

_COSTLY = "denoising_steps", "local_attn_size", "precision"

NO_CONTROL = "the model here takes no control video and no pictures: start the server with --control"


class Others(Protocol):
    """What is asked of whoever has the device's other streams."""

    def may_have(self, feed: Feed, config: ScopeOptimizationConfig) -> bool:
        """Whether the device can make a stream with this config beside the others."""
        ...

    def why_no_loras(self, feed: Feed) -> str:
        """Why its viewers may turn no LoRAs, which act in all streams; nothing where they may."""
        ...

    def turn_loras(self, feed: Feed, scales: Mapping[str, float], by: str, story: bool = False) -> None:
        """Merge LoRAs at other scales, as one of its viewers says, or their story, and tell those of the others."""


class Another(NamedTuple):
    """Who says something, and is no viewer; name: what viewers are told."""

    name: str


class Commands:
    """Of one stream, whose viewers all may control it: the last word counts. Belongs to one event loop.

    transition, blend: how later prompts are reached. preset: the one that was named last; None where other settings
    were wished for since.
    """

    def __init__(self, feed: Feed, inputs: Inputs, worker: Worker, others: Others, metrics: Metrics):
        self._feed, self._inputs, self._worker, self._others, self._metrics = feed, inputs, worker, others, metrics
        self.transition = 1
        self.blend: Literal["linear", "slerp"] = "linear"
        self.preset: str | None = None
        self._sender: Peer | None = None

    def known(self) -> dict[str, list[str]]:
        """What the stream can be told: the fields of each type of message."""
        commands = messages.commands()
        if not self._worker.loras.merged or self._others.why_no_loras(self._feed):
            commands["settings"].remove("loras")
        return commands

    @property
    def steerable(self) -> bool:
        """Whether the model takes control video and pictures."""
        return self._worker.source.engine.control is not None

    def obey(self, command: messages.Command, by: Peer | Another) -> dict:
        """Do what is said: the answer. Raises BadMessage, and does nothing then."""
        match command:
            case messages.GetLatencyStats():
                return {"type": "latency_stats", "stats": self._feed.stats}
            case messages.SwitchPrompt(what=what, transition_blocks=blocks):
                number = self._feed.switch_prompt(self._prompt_of(what, blocks or self.transition))
                return {"type": "done", "number": number}
            case messages.SetOptimizationPreset(preset=name):
                self._configure(name, **self._config.preset_fields(name))
                self.preset = name
            case messages.ChangeSettings():
                self._change_settings(command, by.name)
            case messages.SetTransition(blocks=blocks, blend=blend):
                self.transition, self.blend = blocks, blend
            case messages.SetOverlay(enabled=enabled):
                self._feed.overlay = enabled
            case messages.SetPaused(paused=paused):
                self._feed.set_paused(paused)
            case messages.SetInput(use=use):
                if not isinstance(by, Peer):
                    raise BadMessage("only viewers send video")
                self._set_input(by, use)
            case messages.SetStrength(noise_scale=noise, control_scale=control):
                self._inputs.noise_scale = self._inputs.noise_scale if noise is None else noise
                self._inputs.control_scale = self._inputs.control_scale if control is None else control
            case messages.RemovePicture(role=role):
                self._inputs.set_picture(role, None)
            case messages.Reset(fields=fields):
                self._begin_anew(fields)
            case messages.Replay(story=story):
                self._replay(story, by.name)
            case messages.StopReplay():
                self._feed.end_replay()
        return {"type": "done"}

    @property
    def _config(self) -> ScopeOptimizationConfig:
        return self._feed.config_in_force

    def _prompt_of(self, what: str | Sequence[tuple[str, float]], blocks: int) -> Prompt:
        """Raises BadMessage for more prompts than the blend takes."""
        try:
            return as_prompt(what, blend=self.blend, transition_blocks=blocks)
        except ValueError as error:
            raise BadMessage(str(error)) from None

    # --- settings

    def _change_settings(self, command: messages.ChangeSettings, by: str) -> None:
        fields, scales = command.fields, command.loras
        if scales:
            self._check_loras(scales)
        if fields:
            self._configure(", ".join(f"{name} {value}" for name, value in sorted(fields.items())), **fields)
        if "denoising_steps" in fields:
            self.preset = None
        if scales:
            self._others.turn_loras(self._feed, scales, by)

    def _configure(self, what: str, **fields) -> None:
        """Raises BadMessage for what cannot be, and where the others on the device would come too short."""
        try:
            config = self._feed.config_wished_for.changed(**fields)
        except ValidationError as error:
            raise BadMessage(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        if not self._others.may_have(self._feed, config):
            raise BadMessage(
                f"the server has no room for {what} beside the other streams: it takes more of its time than what is "
                "in force"
            )
        self._feed.configure(**fields)

    def _check_loras(self, scales: Mapping[str, float]) -> None:
        """Raises BadMessage where these cannot be had from here."""
        if not self._worker.loras.merged:
            raise BadMessage("loras: none are served: start the server with --lora, which no cluster has")
        if why := self._others.why_no_loras(self._feed):
            raise BadMessage(f"loras: they act in all streams of the server, and {why}")
        try:
            self._worker.loras.check(scales)
        except ValueError as error:
            raise BadMessage(f"loras: {error}") from None

    # --- the video anew

    def _begin_anew(self, fields: dict[str, int] | None = None) -> None:
        """fields: another seed or size. Raises BadMessage for a size that cannot be."""
        if fields:
            before, config = self._config.size, dataclasses.replace(self._feed.config_wished_for, **fields)
            usual = self._worker.source.config.size
            if math.prod(config.size) > math.prod(usual):
                raise BadMessage(
                    f"height and width may have at most {usual[0]}x{usual[1]} pixels together, as the server's own"
                )
            if not self._others.may_have(self._feed, config):
                raise BadMessage("the server has no room for this size beside the other streams")
            if config.size != before:
                self._check_memory(config)
                self._forget_inputs()
        self._dropped(self._feed.begin_with(**fields) if fields else self._feed.reset())

    def _check_memory(self, config: ScopeOptimizationConfig) -> None:
        """Raises BadMessage where a stream of this size does not fit beside those that are open."""
        if not self._worker.has_memory_for(config):
            size = "x".join(map(str, config.size))
            raise BadMessage(f"the server has no memory for a stream of {size} beside the others")

    def _dropped(self, frames: int) -> None:
        self._metrics.dropped.labels("reset").inc(frames)

    # --- stories

    def _replay(self, story: Story, by: str) -> None:
        """Raises BadMessage where the story does not fit the stream, or the device beside the others."""
        try:
            story = self._worker.loras.ours(story)
            self._check(story)
            dropped = self._feed.replay(story)
        except ValueError as error:
            raise BadMessage(str(error)) from None
        self._others.turn_loras(self._feed, self._worker.loras.beginning(story), by, story=True)
        self.preset = None
        if sized(story, self._worker.source.engine).size != self._config.size:
            self._forget_inputs()
        elif self._sender:
            self._set_input(self._sender, None)
        self._dropped(dropped)

    def _check(self, story: Story) -> None:
        """Raises BadMessage for what is too much here."""
        for name in ("denoising_steps", "local_attn_size"):
            most = max(_extent(config, name) for config in (self._config, *map(self._with_preset, PRESETS)))
            if any(_extent(config, name) > most for config in story.configs()):
                raise BadMessage(f"story has more {name} than the presets and this stream, {most}")
        if max(map(len, story.texts)) > messages.LONGEST_PROMPT:
            raise BadMessage(f"story has a prompt of more than {messages.LONGEST_PROMPT} characters")
        loras = self._worker.loras
        turns = loras.beginning(story) != loras.wished or any(change.loras for change in story.changes)
        if turns and (why := self._others.why_no_loras(self._feed)):
            raise BadMessage(f"story has other scales of LoRAs than are in force: they act in all streams, and {why}")
        (height, width), usual = sized(story, self._worker.source.engine).size, self._worker.source.config
        if height * width > math.prod(usual.size):
            most = "x".join(map(str, usual.size))
            raise BadMessage(f"story may have at most {most} pixels, as the server's own, got {height}x{width}")
        config = dataclasses.replace(self._config, height=height, width=width)
        if config.size != self._config.size:
            self._check_memory(config)
        costly = [{name: getattr(each, name) for name in _COSTLY} for each in story.configs()]
        if not all(self._others.may_have(self._feed, config.changed(**fields)) for fields in costly):
            raise BadMessage("the server has no room for this story beside the other streams")

    def _with_preset(self, name: str) -> ScopeOptimizationConfig:
        return self._config.changed(**self._config.preset_fields(name))

    # --- input

    def use_picture(self, role: Role, picture: np.ndarray) -> None:
        """Use a picture [height, width, 3]; a first frame begins the video anew."""
        self._feed.end_replay()
        self._inputs.set_picture(role, picture)
        if role == "first_frame":
            self._begin_anew()

    def take_frame(self, peer: Peer, frame: av.VideoFrame) -> None:
        """A frame that a viewer sends, who may have been asked to stop meanwhile."""
        if peer is self._sender:
            self._inputs.offer(frame)

    def forget(self, peer: Peer) -> None:
        """A viewer has left, and sends nothing any more."""
        if peer is self._sender:
            self._set_input(peer, None)

    def _set_input(self, peer: Peer, use: Use | None) -> None:
        """Raises BadMessage where it cannot be."""
        if use == "control" and not self.steerable:
            raise BadMessage(NO_CONTROL)
        if use and not peer.intake.possible:
            raise BadMessage("this connection sends no video: offer its video section as sendrecv")
        if self._sender and self._sender is not peer:
            self._sender.intake.want(False)
        self._sender = peer if use else None
        if use:
            self._feed.end_replay()
            self._inputs.start(use, peer.name)
        else:
            self._inputs.stop()
        peer.intake.want(bool(use))

    def _forget_inputs(self) -> None:
        """They were of another size."""
        if self._sender:
            self._set_input(self._sender, None)
        for role in ("reference", "first_frame"):
            self._inputs.set_picture(role, None)


def _extent(config: OptimizationConfig, name: str) -> int:
    """A setting that takes time, in a number: that of a list is its length."""
    value = getattr(config, name)
    return value if isinstance(value, int) else len(value)
