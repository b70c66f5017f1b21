"""The chunk sequence: what scope does between two calls of a pipeline, in its order."""

import logging
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

logger = logging.getLogger(__name__)

UPDATES, FRAMES = 8, 30  # places in the queues of updates, and of frames either way
REST = 0.01  # seconds, where there is nothing to do
ONE_SHOT = ("vace_ref_images", "images", "first_frame_image", "last_frame_image")


class Turn(NamedTuple):
    """One turn of the loop: the call's keywords, None if none was made, and its result, None after an exception."""

    kwargs: dict | None
    result: Any


class Timestamp(NamedTuple):
    """Of an input frame; unknown here."""

    pts: int | None = None
    time_base: Any = None


class Processor:
    """One pipeline in one session, without the thread.

    ``errors`` are the texts of the exceptions scope would log; ``ended`` is set when the worker is gone for good;
    ``wired`` names the video ports at which an edge of the graph ends; ``beat``, if set, changes every call's keywords
    as the beat clock and its modulation would.
    """

    def __init__(
        self,
        pipeline: Any,
        parameters: dict,
        notify: Callable[[dict], None] = lambda values: None,
        wired: Sequence[str] = ("video",),
    ):
        self.pipeline, self.parameters, self.notify = pipeline, dict(parameters), notify
        self.beat: Callable[[dict], dict] | None = None
        self.updates: queue.Queue = queue.Queue(UPDATES)
        self.outputs: queue.Queue = queue.Queue(FRAMES)
        places = self._input_places()
        self.inputs: dict[str, queue.Queue] = {port: queue.Queue(places) for port in wired}
        ports = pipeline.get_definition().inputs
        self.values: dict[str, queue.Queue] = {p.name: queue.Queue() for p in ports if p.port_type != "video"}
        self.stopping = threading.Event()
        self.ended = False
        self.errors: list[str] = []
        self.dropped_updates = self.dropped_frames = 0
        self.frame_rate: float | None = None
        self._video_mode = parameters.get("input_mode") == "video"
        self._paused = False
        self._init_cache = True

    def update(self, parameters: dict) -> bool:
        """Queue an update; when no place is free it is lost. From any thread."""
        try:
            self.updates.put_nowait(parameters)
        except queue.Full:
            self.dropped_updates += 1
            return False
        return True

    def turn(self) -> Turn:
        """One turn as the worker's loop makes it: errors are noted, and a lack of memory ends the worker."""
        try:
            return self._turn()
        except torch.cuda.OutOfMemoryError as error:
            self._note(error)
            self.ended = True
        except Exception as error:  # outside the call, for instance in prepare
            self._note(error)
        return Turn(None, None)

    def _turn(self) -> Turn:
        self._take_update()
        if (paused := self.parameters.pop("paused", None)) is not None:
            self._paused = paused
        if self._paused:
            return self._rest()
        reset, lora_scales = self.parameters.pop("reset_cache", None), self.parameters.pop("lora_scales", None)
        if reset:
            _drain(self.outputs)
            self._init_cache = True
        self._take_values()
        size = self._input_size()
        if size is not None and any(frames.qsize() < size for frames in self.inputs.values()):
            if lora_scales is not None:
                self.parameters["lora_scales"] = lora_scales
            return self._rest()
        frames = {} if size is None else {port: _pick(queued, size) for port, queued in self.inputs.items()}
        kwargs = self._keywords(frames, lora_scales)
        return self._call(kwargs)

    def _take_update(self) -> None:
        try:
            new = self.updates.get_nowait()
        except queue.Empty:
            return
        if "prompts" in new and "transition" not in new:
            self.parameters.pop("transition", None)
        if "input_mode" in new:
            self._video_mode = new["input_mode"] == "video"
        self.parameters |= new

    def _take_values(self) -> None:
        latest = {port: values[-1] for port, queued in self.values.items() if (values := _drain(queued))}
        if latest:
            self.parameters |= latest
            self.notify(latest)

    def _input_size(self) -> int | None:
        if not hasattr(self.pipeline, "prepare"):
            return None
        wanted = self.pipeline.prepare(**self.parameters | ({"video": True} if self._video_mode else {}))
        return None if wanted is None else wanted.input_size

    def _keywords(self, frames: dict[str, list], lora_scales: list | None) -> dict:
        kwargs = self.parameters | {"init_cache": self._init_cache}
        for key in ONE_SHOT:
            self.parameters.pop(key, None)
        if lora_scales is not None:
            kwargs["lora_scales"] = lora_scales
        for port, picked in frames.items():
            kwargs[port] = picked
            kwargs[f"{port}_timestamps"] = [Timestamp()] * len(picked)
        return kwargs if self.beat is None else self.beat(kwargs)

    def _call(self, kwargs: dict) -> Turn:
        result = None
        try:
            result = self.pipeline(**kwargs)
            if not result:  # nothing was done: the next call gets init_cache again, but no one-shot parameter
                self._rest()
                return Turn(kwargs, result)
            self._deliver(kwargs, result)
        except torch.cuda.OutOfMemoryError as error:
            self._note(error)
            self.ended = True
            return Turn(kwargs, None)
        except Exception as error:  # counts as handled: init_cache is not said twice
            self._note(error)
            result = None
        self._init_cache = False
        return Turn(kwargs, result)

    def _deliver(self, kwargs: dict, result: dict) -> None:
        video = result.get("video")
        if video is None:
            return
        if "transition" in kwargs and "transition" in self.parameters:
            state = getattr(self.pipeline, "state", {})
            if kwargs["transition"] is None or not state.get("_transition_active", False):
                del self.parameters["transition"]
        frames = _as_frames(video)
        self._make_room(2 * len(frames))
        for frame in frames:
            try:
                self.outputs.put_nowait(frame[None])
            except queue.Full:
                self.dropped_frames += 1
        rate = result.get("frame_rate")
        if rate is None:
            rate = getattr(getattr(self.pipeline, "config", None), "frame_rate", None)
        if rate is not None and float(rate) > 0:
            self.frame_rate = float(rate)

    def _make_room(self, places: int) -> None:
        if self.outputs.maxsize < places:
            grown: queue.Queue = queue.Queue(places)
            for frame in _drain(self.outputs):
                grown.put_nowait(frame)
            self.outputs = grown

    def _input_places(self) -> int:
        """Asked of ``prepare`` once, in the thread that opens the session: scope's event loop."""
        try:
            wanted = self.pipeline.prepare(video=True) if hasattr(self.pipeline, "prepare") else None
        except Exception as error:
            logger.warning("prepare(video=True) failed: %s", error)
            wanted = None
        return FRAMES if wanted is None else max(FRAMES, 2 * wanted.input_size)

    def _rest(self) -> Turn:
        self.stopping.wait(REST)
        return Turn(None, None)

    def _note(self, error: Exception) -> None:
        self.errors.append(f"{type(error).__name__}: {error}")
        logger.error(traceback.format_exc())  # as text: a record with the traceback would hold the pipeline


def _drain(queued: queue.Queue) -> list:
    taken = []
    while True:
        try:
            taken.append(queued.get_nowait())
        except queue.Empty:
            return taken


def _pick(queued: queue.Queue, size: int) -> list[torch.Tensor]:
    """As many frames as wanted, evenly from all that wait; later ones than the last picked stay."""
    step = queued.qsize() / size
    picked = {round(i * step) for i in range(size)}
    taken = [queued.get_nowait() for _ in range(max(picked) + 1)]
    return [frame for i, frame in enumerate(taken) if i in picked]


def _as_frames(video: torch.Tensor) -> torch.Tensor:
    """uint8 [T,H,W,3] of [T,H,W,3] in 0..1, or of [B,C,F,H,W] in 0..1 or, if any value is negative, in -1..1."""
    if video.dim() == 5:
        video = video.permute(0, 2, 3, 4, 1).flatten(0, 1)
        if video.min() < 0:
            video = (video + 1) / 2
    if video.dtype != torch.uint8:
        video = (video * 255).clamp(0, 255).to(torch.uint8)
    return video.detach()
