"""A client's session: messages and frames in, frames out, and the calls in one thread of its own."""

import json
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch

from .processor import Processor, Turn, _drain

OFFERED = {"prompt_interpolation_method": "linear", "vace_context_scale": 1.0}  # what scope adds to an offer
SERVERS_OWN = (
    "quantize_mode lookahead_ms modulations beat_cache_reset_rate output_sinks input_source "
    "bpm beat_phase bar_position beat_count is_playing"
).split()


class Session:
    """One session on a pipeline; many may run on the same one.

    ``step()`` makes single turns, ``start()`` lets it run freely; either way prepare and calls happen in this session's
    thread. ``notifications`` are the messages to this client alone.
    """

    def __init__(self, pipeline: Any, parameters: dict | None = None, wired: Sequence[str] = ("video",)):
        self.node_id = pipeline.get_definition().node_type_id
        self.notifications: list[dict] = []
        offered = {"input_mode": "text", "pipeline_ids": [self.node_id], **OFFERED, **(parameters or {})}
        self.processor = Processor(pipeline, json.loads(json.dumps(offered)), self._tell, wired)
        self._free = False
        self._orders: queue.SimpleQueue[tuple[Callable, Future] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    # What a client does.

    def send(self, message: dict | str) -> None:
        """A message over the data channel; a str is sent as it is. What is no JSON object is ignored."""
        try:
            data = json.loads(message if isinstance(message, str) else json.dumps(message))
        except json.JSONDecodeError:
            return
        if not isinstance(data, dict):
            return
        data.pop("_quantized", None)
        for key in SERVERS_OWN:
            data.pop(key, None)
        if (data.pop("node_id", None) or self.node_id) == self.node_id:
            self.processor.update(data)

    def post(self, parameters: dict) -> None:
        """The same over REST, where scope adds two keys nobody asked for."""
        self.send(OFFERED | parameters)

    def put_frame(self, frame: torch.Tensor, port: str = "video") -> None:
        """An input frame, uint8 [H,W,3]; lost when the queue is full, whatever the input mode."""
        if frame.dtype != torch.uint8 or frame.dim() != 3 or frame.shape[2] != 3:
            raise ValueError(f"frame must be uint8 [H,W,3], got {frame.dtype} {[*frame.shape]}")
        try:
            self.processor.inputs[port].put_nowait(frame[None])
        except queue.Full:
            pass

    def put_value(self, port: str, value: Any) -> None:
        """A value on a port that is not for video, as another node of the graph would give it."""
        self.processor.values[port].put(value)

    def frames(self) -> list[torch.Tensor]:
        """Take the frames that wait, uint8 [H,W,3]. Raises ValueError for one that would end scope's video track."""
        frames = [frame[0].cpu() for frame in _drain(self.processor.outputs)]
        for frame in frames:
            if frame.dim() != 3 or frame.shape[2] != 3:
                raise ValueError(f"a frame must be [H,W,3], got {[*frame.shape]}")
        return frames

    # What the worker does.

    def step(self, timeout: float = 60.0) -> Turn:
        """One turn of the loop, in this session's thread: the keywords of its call and the result."""
        if self._free or self.processor.ended or self.processor.stopping.is_set():
            raise RuntimeError("the worker runs freely" if self._free else "the worker has ended")
        return self._order(self.processor.turn).result(timeout)

    def start(self) -> None:
        """Turn after turn without a pause until ``stop``; a failing call is repeated at once."""
        self._free = True
        self._order(self._run)

    def stop(self, timeout: float = 5.0) -> bool:
        """Wait for a call under way and drop the pipeline; False when it is still running after ``timeout`` seconds."""
        if self._thread.is_alive():
            self.processor.stopping.set()
            self._orders.put(None)
            self._thread.join(timeout)
        self._free = False
        for queued in self.processor.inputs.values():
            _drain(queued)
        _drain(self.processor.outputs)
        self.processor.pipeline = None
        return not self._thread.is_alive()

    @property
    def errors(self) -> list[str]:
        """The exceptions so far, as text; scope logs them and tells nobody."""
        return self.processor.errors

    def _tell(self, values: dict) -> None:
        self.notifications.append({"type": "parameters_updated", "parameters": {"node_id": self.node_id, **values}})

    def _order(self, action: Callable) -> Future:
        done: Future = Future()
        self._orders.put((action, done))
        return done

    def _run(self) -> None:
        while not self.processor.stopping.is_set() and not self.processor.ended:
            self.processor.turn()

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            action, done = order
            try:
                done.set_result(action())
            except BaseException as error:
                done.set_exception(error)
            del order, action, done
