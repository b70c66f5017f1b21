"""All that can be said about a cluster, in one place."""

from __future__ import annotations

import json
import os
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from ...config import Size, preset_name
from ...weights.locate import TINY
from ..scope_integration import ScopeOptimizationConfig
from ..scope_integration.config import Speed
from ..scope_integration.prompt_box import as_prompt
from ..server.settings import ServerSettings

PROMPT = "a red fox walks through fresh snow, morning light, film grain"
TINY_PROMPT = "a red circle and a blue square move left over a green field"


class ClusterConfig(BaseModel):
    """Arguments of ``app``, by name: ``args`` in Serve's file, or ``NAME=VALUE`` behind ``serve run``. Raises
    pydantic's ValidationError, a ValueError, naming the field.

    model, preset, prompt, height, width, seed, device: as ``longlive-optimized serve`` has them.
    playback_speed: that sessions begin with; at 1 the world goes at the model's 16 frames a second.
    seats: sessions of a replica; ``tests/measure/sessions.py`` tells how many a GPU keeps up.
    replicas, max_replicas: as many at least, and at most; where the latter is more, replicas come and go with the
        sessions, so that one seat in five stays free.
    gpus, cpus: that a replica takes; 0 GPUs for a model on the CPU.
    upscale_seconds, downscale_seconds: that seats must have been short, or too many, before replicas come or go.
    private: each new visitor has a session of their own; else all who name none share one.
    max_queued: sessions that may wait for a seat. sessions_per_client: that one address may have open or waiting; None
        is any number: behind a load balancer all seem to have its address.
    keep_seconds: that a session lives on when nobody watches it, or its replica is gone and nobody has asked for it.
    snapshot_blocks: a session's state is kept whenever it has made so many blocks.
    drain_seconds: that a replica which is to go has to hand over its sessions.
    host: address that a replica's server and video use; None is its machine's. Any but a loopback one needs a token.
    token: as ``serve --token``; by default the environment's LONGLIVE_TOKEN, which is in no file.
    origins, max_viewers, codec, bitrate, ice_addresses, record_seconds: as ServerSettings.
    stun, turn, turn_username: servers for viewers' connections; TURN's password is LONGLIVE_TURN_PASSWORD.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = TINY
    preset: str = "balanced"
    prompt: str | None = None
    height: Size | None = None
    width: Size | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    device: str | None = None
    playback_speed: Speed = 1.0
    seats: Annotated[int, Field(ge=1, le=256)] = 2
    replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    gpus: Annotated[float, Field(ge=0)] = 1
    cpus: Annotated[float, Field(ge=0)] = 1
    upscale_seconds: Annotated[float, Field(gt=0)] = 5
    downscale_seconds: Annotated[float, Field(gt=0)] = 300
    private: bool = True
    max_queued: Annotated[int, Field(ge=0)] = 64
    sessions_per_client: Annotated[int, Field(ge=1)] | None = None
    keep_seconds: Annotated[float, Field(ge=1)] = 60
    snapshot_blocks: Annotated[int, Field(ge=1)] = 4
    drain_seconds: Annotated[float, Field(ge=1)] = 60
    host: str | None = None
    token: str | None = Field(default_factory=lambda: os.environ.get("LONGLIVE_TOKEN"), repr=False)
    origins: tuple[str, ...] = ()
    max_viewers: int = 8
    codec: Literal["vp8", "h264"] = "vp8"
    bitrate: int | None = None
    ice_addresses: tuple[str, ...] = ()
    record_seconds: int = 30
    stun: str | None = None
    turn: str | None = None
    turn_username: str | None = None
    turn_password: str | None = Field(default_factory=lambda: os.environ.get("LONGLIVE_TURN_PASSWORD"), repr=False)

    @model_validator(mode="after")
    def _all_can_be_made(self):
        preset_name(self.preset)
        if self.prompt is not None:
            as_prompt(self.prompt)
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas must be at least replicas, {self.replicas}, got {self.max_replicas}")
        _ = self.stream, self.server("192.0.2.1" if self.host is None else self.host)
        return self

    @property
    def stream(self) -> ScopeOptimizationConfig:
        """The config of sessions that wish for nothing else."""
        return ScopeOptimizationConfig.preset(
            preset_name(self.preset),
            height=self.height,
            width=self.width,
            seed=self.seed,
            playback_speed=self.playback_speed,
        )

    @property
    def first_prompt(self) -> str:
        """The prompt of sessions that wish for none."""
        return self.prompt or (TINY_PROMPT if self.model == TINY else PROMPT)

    def server(self, host: str) -> ServerSettings:
        """The settings of a replica's server, which opens only the streams that it is sent."""
        names = "token", "origins", "max_viewers", "codec", "bitrate", "ice_addresses", "record_seconds", "keep_seconds"
        fields = {name: getattr(self, name) for name in names}
        ice: list[dict[str, str | None]] = [{"urls": self.stun}] if self.stun else []
        if self.turn:
            ice.append({"urls": self.turn, "username": self.turn_username, "credential": self.turn_password})
        fields |= {
            "model": self.model,
            "host": host,
            "ice_servers": ice,
            "private": True,
            "sessions": self.seats,
            "max_queued": 0,
        }
        return _SETTINGS.validate_json(json.dumps(fields | {"sessions_per_client": self.seats}))


_SETTINGS = TypeAdapter(ServerSettings)
