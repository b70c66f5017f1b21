"""The pipeline as scope sees it. Imports scope: only the hook imports this module."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from scope.core.config import get_assets_dir, get_models_dir  # pyright: ignore[reportMissingImports]
from scope.core.pipelines.interface import Pipeline, Requirements  # pyright: ignore[reportMissingImports]
from torch import Tensor

from ...config import OptimizationConfig
from ...engine.engine import LongLiveEngine
from ...video_time import BLOCK_PIXEL_FRAMES
from ...weights.locate import locate
from ...weights.user_lora import UserLora, warn_again
from .load_params import read_load
from .notify import set_loading_stage, warnings_said
from .schema import PORTS, LongLiveOptimizedConfig
from .session import Session
from .sessions import Sessions


class LongLiveOptimizedPipeline(Pipeline):
    """LongLive-1.3B for scope; one instance serves several sessions, each with a stream of its own.

    keywords: the schema's fields, and whatever else the client sent at load. Raises ValueError naming a bad one,
    FileNotFoundError or CheckpointError naming a file.
    """

    @classmethod
    def get_config_class(cls) -> type[LongLiveOptimizedConfig]:
        """The schema."""
        return LongLiveOptimizedConfig

    def __init__(self, **keywords: Any):
        self._load, changed = read_load(keywords)
        self._loras = {lora.path: UserLora(Path(lora.path), lora.scale) for lora in self._load.loras}
        self._merged, self._lora_lock = self._loras, threading.Lock()
        warn_again()
        root = self._load.model_path or get_models_dir()
        with warnings_said() as said:
            config, missing = _control_if_there(self._load.engine_config(), root)
            self._engine = LongLiveEngine(
                root,
                config,
                progress=lambda what, done, total: set_loading_stage(f"Loading {what}..."),
                loras=[*self._loras.values()],
            )
        self._notices = [*changed, *missing, *dict.fromkeys(said)]
        # scope copies frames, in and out, on the default stream: work there would hold them up for a whole block.
        self._work = torch.cuda.Stream(self._engine.device) if self._engine.device.type == "cuda" else None
        with torch.cuda.stream(self._work):
            self._warm = [self._engine.open_stream()]  # goes to the first session
            if self._work:
                set_loading_stage("Warming up...")
                self._engine.warmup(stream=self._warm[0])
        if self._loras:
            set_loading_stage("Keeping what LoRAs are merged into...")
            self._engine.keep_loras([*self._loras.values()])  # other scales are then a matter of milliseconds
        self._sessions = Sessions(self._new_session, self._load.max_sessions)
        self.state = _State(self._sessions)

    def prepare(self, **keywords: Any) -> Requirements | None:
        """How many frames of video a call wants: none in text mode."""
        # True is scope's own word for video mode; anything else came from a client, and stays among its parameters.
        return Requirements(input_size=BLOCK_PIXEL_FRAMES) if keywords.get("video") is True else None

    def __call__(self, **keywords: Any) -> dict[str, Tensor]:
        """The next frames of the calling thread's session, ``{"video": uint8 [T, H, W, 3]}``, or ``{}``."""
        if self._work:
            self._receive([keywords.get(port) for port in PORTS], self._work)
        with torch.cuda.stream(self._work):
            session = self._sessions.enter()
            result = {} if session is None else session.call(keywords)
        if self._work and result:
            result["video"].record_stream(torch.cuda.default_stream(self._engine.device))
        return result

    @property
    def loaded_lora_adapters(self) -> list[dict[str, Any]]:
        """Each LoRA, for scope's status."""
        modes = {lora.path: lora.merge_mode or "permanent_merge" for lora in self._load.loras}
        return [{"path": p, "scale": lora.scale, "merge_mode": modes[p]} for p, lora in self._loras.items()]

    def _receive(self, ports: list[Any], work: torch.cuda.Stream) -> None:
        """Let work begin when scope's frames have arrived, and their memory be reused when it has read them."""
        work.wait_stream(torch.cuda.default_stream(self._engine.device))
        for frame in (frame for frames in ports if isinstance(frames, list | tuple) for frame in frames):
            if isinstance(frame, Tensor) and frame.is_cuda:
                frame.record_stream(work)

    def _new_session(self) -> Session:
        stream = self._warm.pop() if self._warm else self._engine.open_stream()
        hooks = self._set_lora_scales, self._make_room, self._sessions.alone
        told = {"notices": self._notices, "assets": Path(get_assets_dir())}
        return Session(self._engine, stream, self._load, *hooks, **told)

    def _set_lora_scales(self, scales: Mapping[str, float]) -> None:
        with self._lora_lock:
            if unknown := scales.keys() - self._loras.keys():
                raise ValueError(f"no LoRA {sorted(unknown)[0]!r} was loaded")
            loras = self._loras | {path: UserLora(Path(path), scale) for path, scale in scales.items()}
            if loras != self._merged:
                self._merged = None  # until this has worked, nobody knows what the weights hold
                self._engine.set_loras([*loras.values()])
                self._merged = self._loras = loras

    def _make_room(self) -> None:
        self._sessions.free_idle()
        gc.collect()
        torch.cuda.empty_cache()


def _control_if_there(config: OptimizationConfig, root: str | PathLike) -> tuple[OptimizationConfig, list[str]]:
    """``config`` without control where VACE's module is missing, and what to say of that: scope's page asks for VACE
    without being told to. Raises FileNotFoundError where other files are."""
    if not config.control or locate(root, config.vae_type).control:
        return config, []
    try:
        locate(root, config.vae_type, control=True)
    except FileNotFoundError as error:
        said = f"vace_enabled: VACE's module is missing, and its inputs are ignored: {error}"
        return dataclasses.replace(config, control=False), [said]
    return config, []


class _State:
    """The one thing that scope reads from a pipeline's state."""

    def __init__(self, sessions: Sessions):
        self._sessions = sessions

    def get(self, key: str, default: Any = None) -> Any:
        session = self._sessions.current()
        return session.in_transition if key == "_transition_active" and session is not None else default
