"""One session of scope's: what its calls mean for its stream."""

from __future__ import annotations

import dataclasses
import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import CHANGEABLE, PRESETS, StreamSettings
from ...engine.engine import LongLiveEngine
from ...engine.latency import LatencyMeter
from ...engine.request import BlockRequest
from ...engine.stream import Stream
from ..scope_integration.banner import Banner
from ..scope_integration.overlay import LatencyOverlay, create_latency_overlay
from .backoff import Backoff
from .call_params import CallParams, Positions, Transition, read_call
from .commands import Commands
from .load_params import DEFAULT_STEPS, LoadParams
from .notify import notify, notify_error, notify_stopped, warnings_said
from .prompt_follower import PromptFollower
from .steering import INPUTS, Steering

log = logging.getLogger(__name__)

AT_LOAD_ONLY = ("height", "width", "low_memory", "max_sessions", "model_path")
SLIDING = 3  # calls with LoRA scales, or calls since then without, that tell a slider from single values
MOST_HELD = 8  # of its values before a block: as many updates wait in scope's queue
PERSISTENT = 5  # failures in a row, over four seconds: no picture is coming that a message could be drawn into
SMALLEST_NOISE = 0.1  # below it scope's first timestep, 1000 s - 100, would be negative


class Session:
    """Stream, prompts, preset, statistics and failures of one viewer. One thread calls it.

    set_lora_scales: called with scales by path; they hold for every session, as the weights do.
    make_room: called after the GPU ran out of memory, to free what nobody needs.
    alone: whether no other session is served.
    notices: what the clients should know of how the pipeline was loaded.
    assets: the folder of the server's pictures.
    """

    def __init__(
        self,
        engine: LongLiveEngine,
        stream: Stream,
        load: LoadParams,
        set_lora_scales: Callable[[Mapping[str, float]], None],
        make_room: Callable[[], None],
        alone: Callable[[], bool] = lambda: True,
        notices: Sequence[str] = (),
        assets: Path = Path(),
    ):
        self._engine, self._stream, self._loaded = engine, stream, load
        self._set_lora_scales, self._make_room, self._alone = set_lora_scales, make_room, alone
        self._notices, self._assets = notices, assets
        self._meter = LatencyMeter(engine, stream)
        self.begin()

    def begin(self) -> None:
        """Serve a new viewer: nothing of the last one is left but the stream's buffers and graphs."""
        config = self._loaded.engine_config()
        self._prompts, self._backoff = PromptFollower(), Backoff()
        self._commands = Commands(self.set_preset, self.stats)
        # scope's page sends its defaults with the first call: as at load, only others are wishes.
        self._load = load = self._loaded
        self._before = CallParams(
            denoising_step_list=DEFAULT_STEPS,
            denoising_steps=load.denoising_steps,
            step_schedule=load.step_schedule,
            positions=load.positions,
            restart_at=load.restart_at or 0,
            quantization=load.quantization or "",
            vae_type=load.vae_type,
            optimization_preset=load.optimization_preset,
        )
        self._complaints: dict[str, str] = {}  # the last one about each parameter
        self._preset, self._seed = load.optimization_preset, config.seed
        self._due, self._steering = _Due(), Steering(self._assets, load.vace_context_scale, self._complain)
        self._overlay: LatencyOverlay | None = None
        self._banner, self._untold = Banner(), [*self._notices]
        self._delivered = self._held = self._sliding = 0
        self._vae_type = self._vae_taken = load.vae_type
        self._stand_at(load.positions)
        self._engine.use_vae(load.vae_type, self._stream)
        self._stream.configure(**{name: getattr(config, name) for name in CHANGEABLE})
        self._engine.reset(self._stream, config.seed)
        self._meter.reset()

    @property
    def in_transition(self) -> bool:
        """Whether scope should go on sending the present transition."""
        return self._stream.prompt.in_transition

    def call(self, keywords: Mapping[str, Any]) -> dict[str, Tensor]:
        """``{"video": uint8 [T, H, W, 3]}``, or nothing when there is nothing to show yet. Never raises: scope would
        call again at once, and tell nobody.
        """
        try:
            self._tell_notices()
            call = read_call(keywords, self._before, self._complain)
            self._note_control(call)
            self._refuse_load_fields(keywords)
            self._commands.obey(keywords)
            self._take_over(call)
            if self._holds_back(call):
                return {}
            if self._prompts.wanted is None or self._backoff.waiting(time.monotonic()):
                return {}
            frames = self._make_block(call)
        except Exception as error:
            self._failed(error)
            return {}
        if self._backoff.clear():
            notify("longlive_notice", message="the stream goes on")
        return {"video": frames}

    def set_preset(self, name: str) -> dict:
        """Go over to a preset's steps and window with the next block, without a cut; the settings then in force."""
        self._due.settings |= self._load.preset_fields(name)
        self._preset = name
        return self.effective()

    def effective(self) -> dict:
        """The settings in force, as plain JSON."""
        settings = self._settings
        return {
            "denoising_steps": list(settings.denoising_steps),
            "local_attn_size": settings.local_attn_size,
            "precision": self._stream.precision_with(settings),
            "step_schedule": settings.step_schedule,
            "positions": settings.positions,
        }

    def stats(self) -> dict:
        """The fields of LatencyStats."""
        named = self._settings.denoising_steps == PRESETS[self._preset]["denoising_steps"]
        preset = self._preset if named else "custom"
        return dataclasses.asdict(self._meter.stats(frame_count=self._delivered, preset=preset))

    @property
    def _settings(self) -> StreamSettings:
        """Those of the next block."""
        return self._stream.settings.changed(**self._due.settings)

    def _take_over(self, call: CallParams) -> None:
        """Settle what changed since the call before; what the next block must make up for is due until one is made."""
        due, before, self._before = self._due, self._before, call
        for steps, known in (
            (call.denoising_steps, before.denoising_steps),
            (call.denoising_step_list, before.denoising_step_list),
        ):
            if steps and steps != known:
                due.restart |= self._manages_cache(call) and not call.modulated_steps
                due.settings["denoising_steps"] = steps
        self._take_load_fields(call, before)
        if call.optimization_preset not in (None, before.optimization_preset):
            self.set_preset(call.optimization_preset)
        if call.base_seed is not None:
            self._seed = call.base_seed
        if call.init_cache:
            due.reset = True
        if call.lora_scales is not None:
            due.lora_scales |= {lora.path: lora.scale for lora in call.lora_scales}
            due.lora_reset |= self._manages_cache(call)
        if self._prompts.follow(call):
            due.new_prompt = True

    def _take_load_fields(self, call: CallParams, before: CallParams) -> None:
        """What is a field of load, and can change all the same."""
        due = self._due
        if call.step_schedule not in (None, before.step_schedule):
            due.settings["step_schedule"] = call.step_schedule
        if call.restart_at not in (None, before.restart_at):
            due.settings["restart_at"] = call.restart_at or None
        if call.quantization not in (None, before.quantization):
            self._load = self._load.model_copy(update={"quantization": call.quantization or None})
            due.settings["precision"] = self._load.preset_fields(self._preset)["precision"]
        if call.vae_type not in (None, before.vae_type):
            self._vae_type = call.vae_type
        if call.positions not in (None, self._positions):
            self._positions = call.positions
            if self._delivered and not call.init_cache:
                self._tell(f"positions: {call.positions} from the next reset on", "longlive_notice")

    def _stand_at(self, positions: Positions) -> None:
        """Let an empty stream count its positions so: another stream, as those of one never change."""
        if self._stream.settings.positions != positions:
            kept = {name: getattr(self._stream.settings, name) for name in CHANGEABLE}
            rows, columns = self._stream.settings.size
            self._stream = self._engine.open_stream(rows, columns, self._seed, positions=positions, **kept)
            self._engine.use_vae(self._vae_taken, self._stream)
            self._meter = LatencyMeter(self._engine, self._stream)
        self._positions: Positions = positions

    def _holds_back(self, call: CallParams) -> bool:
        """Whether to make no block yet, as a slider moves: scope hands over one value a call, and drops the newest of
        more than its queue holds. Frames that a call brings would be lost, so it makes its block.
        """
        brings = call.lora_scales is not None
        self._sliding = min(self._sliding + 1, SLIDING) if brings else max(self._sliding - 1, 0)
        pictured = call.video is not None or call.vace_input_frames is not None
        holds = brings and self._sliding == SLIDING and not pictured and self._held < MOST_HELD
        self._held = self._held + 1 if holds else 0
        return holds

    def _set_loras(self) -> None:
        due = self._due
        try:
            self._set_lora_scales(due.lora_scales)
        except (ValueError, OSError) as error:  # nothing was written; anything else is tried again
            self._complain("lora_scales", due.lora_scales, str(error))
        else:
            due.reset |= due.lora_reset
        due.lora_scales, due.lora_reset = {}, False

    def _set_vae(self) -> None:
        if self._vae_type != self._vae_taken:
            try:
                self._engine.use_vae(self._vae_type, self._stream)
            except (ValueError, OSError) as error:  # nothing has changed
                self._complain("vae_type", self._vae_type, str(error))
                self._vae_type = self._vae_taken
            self._vae_taken = self._vae_type

    def _make_block(self, call: CallParams) -> Tensor:
        with warnings_said() as said:
            if self._due.reset:
                self._stand_at(self._positions)
            self._set_loras()
            self._set_vae()
            self._stream.configure(**self._due.settings)  # a larger window may find no memory: then with the next try
            frames = self._engine.generate_block(self._request(call), self._stream)
        if self._due.new_prompt and self._delivered:
            self._meter.block_was_switch(0.0)
        self._prompts.block_made(self.in_transition)
        self._due = _Due()
        self._steering.block_made()
        self._delivered += len(frames)
        for text in said:
            self._tell(text, "longlive_notice", logged=True)
        frames = self._with_overlay(frames, call)
        if frames.is_cuda:  # scope takes a call's duration for the time that its frames take to make
            done = torch.cuda.Event()
            done.record()
            done.synchronize()
        return frames

    def _request(self, call: CallParams) -> BlockRequest:
        prompt, due, transition = self._prompts.wanted, self._due, call.transition or Transition(num_steps=0)
        assert prompt is not None
        smooth = due.new_prompt and transition.num_steps > 1 and self._stream.prompt.embedding is not None
        # As scope does it: another prompt cuts a video that is made from video or follows one, unless it comes by or in
        # a transition.
        video, followed = self._pictures(call)
        pictured = video is not None or followed is not None
        cut = pictured and due.new_prompt and not smooth and not self.in_transition
        scale = self._load.noise_scale if call.noise_scale is None else call.noise_scale
        control = self._load.noise_controller if call.noise_controller is None else call.noise_controller
        pulsing = video is None and call.modulated_noise and call.noise_scale is not None
        return BlockRequest(
            prompt,
            blend=call.blend if len(prompt) == 2 else "linear",
            transition_blocks=transition.num_steps if smooth else 1,
            transition_blend=transition.temporal_interpolation_method,
            transition_from_source=True,
            reset=due.reset,
            restart=due.restart or (cut and self._manages_cache(call)),
            seed=self._seed,
            video=video,
            noise_scale=max(SMALLEST_NOISE, scale),
            noise_from_motion=control,
            first_step=int(1000 * max(SMALLEST_NOISE, scale)) - 100 if pulsing else None,
            noise_steps="scope" if self._stream.settings.step_schedule == "scope" else "cut",
            control=self._steering.control(call, followed) if self._steerable else None,
        )

    def _manages_cache(self, call: CallParams) -> bool:
        return self._load.manage_cache if call.manage_cache is None else call.manage_cache

    def _with_overlay(self, frames: Tensor, call: CallParams) -> Tensor:
        shown = self._load.show_latency_overlay if call.show_latency_overlay is None else call.show_latency_overlay
        position = call.overlay_position or self._load.overlay_position
        if shown:
            if self._overlay is None or self._overlay.config.position != position:
                self._overlay = create_latency_overlay(position=position)
            self._overlay.apply(frames, self.stats())
        told = self._load.show_messages if call.show_messages is None else call.show_messages
        if told:
            self._banner.draw(frames, time.monotonic(), at_top=shown and position.startswith("bottom"))
        return frames

    def _note_control(self, call: CallParams) -> None:
        if self._steerable:
            self._steering.note(call)
            return
        why = "its file is missing" if self._loaded.vace_enabled else "load the pipeline with vace_enabled"
        for name in INPUTS:
            if getattr(call, name) is not None:
                self._complain(name, "...", f"VACE is not loaded, this input is ignored ({why})")

    @property
    def _steerable(self) -> bool:
        return self._engine.control is not None

    def _pictures(self, call: CallParams) -> tuple[list[Tensor] | None, list[Tensor] | None]:
        """The frames to start from, and those to follow."""
        if not self._steerable:
            return call.video, None
        if call.is_steered_by_video:
            return None, call.video
        return call.video, call.vace_input_frames

    def _refuse_load_fields(self, keywords: Mapping[str, Any]) -> None:
        for name in AT_LOAD_ONLY:
            value = keywords.get(name)
            if value is not None and not self._loaded.in_force(name, value):
                loaded = getattr(self._loaded, name)
                self._complain(name, value, f"counts when the pipeline is loaded, and stays {loaded}")

    def _complain(self, name: str, value: Any, why: str) -> None:
        """Tell the clients about a parameter, once: scope repeats it with every call."""
        text = f"{name}: {why}, got {str(value)[:100]!r}"
        if self._complaints.get(name) != text:
            self._complaints[name] = text
            self._tell(text, "longlive_error")

    def _tell(self, text: str, kind: str, logged: bool = False) -> None:
        """Log a message, send it, and show it in the picture for a while: scope's page shows none that is sent."""
        if logged:
            notify(kind, message=text)
        else:
            notify_error(text, kind=kind)
        self._banner.show(text)

    def _tell_notices(self) -> None:
        untold, self._untold = self._untold, []
        for text in untold:
            self._tell(text, "longlive_notice")

    def _failed(self, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            traceback.clear_frames(error.__traceback__)  # they hold the failed block's tensors
            self._make_room()
            what = "the GPU is out of memory: close other sessions or programs, or load a smaller size"
        else:
            what = f"{type(error).__name__}: {error}"
        if self._backoff.failed(time.monotonic(), what):
            log.error("a block failed:\n%s", "".join(traceback.format_exception(error)))  # text holds no frames alive
            notify_error(f"no frames for now, trying again: {what}")
        if self._backoff.failures == PERSISTENT and self._alone():
            notify_stopped(what, type(error).__name__)


@dataclass
class _Due:
    """One-shot requests not yet applied. Cleared only after a block succeeds: scope does not send a failed call's
    one-shot parameters again.
    """

    reset: bool = False
    restart: bool = False
    new_prompt: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    lora_scales: dict[str, float] = field(default_factory=dict)
    lora_reset: bool = False  # if they can be applied
