"""A WebRTC video track of a pipeline's frames; needs aiortc (the extra ``demo``)."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import ClassVar
from weakref import WeakSet

import av
import numpy as np
from aiortc import VideoStreamTrack
from aiortc.mediastreams import MediaStreamError

from ..video_time import RTP_CLOCK
from .interpolation import Tween, Tweens
from .scope_integration import OptimizedScopePipeline
from .server.pacing import FrameClock


class PipelineVideoTrack(VideoStreamTrack):
    """The pipeline's frames at 16 a second times its ``playback_speed``, whatever the preset, with its overlay if it
    has one; or with ``interpolation`` as many pictures a second as its config says, one frame later.

    With ``drop_frames_on_lag`` whoever takes frames more slowly skips some. Frames are made in a thread of the track's
    own, so the event loop never waits for one. Time stamps are due times: even while the engine keeps up, and of the
    wall clock where it does not. They begin at 0; those of a track that is made while another one lives go on from that
    one's, so that it may take its place (``sender.replaceTrack``).
    ``prompt`` is a wish like that of ``set_prompt``, which may be called from the event loop or any thread, and like
    ``pipeline.switch_prompt``: the last one holds.

    aiortc's MediaRecorder rounds times to 1/30 s, and writes no mp4 of more than 30 frames a second.
    """

    _live: ClassVar[WeakSet[PipelineVideoTrack]] = WeakSet()

    def __init__(self, pipeline: OptimizedScopePipeline, prompt: str):
        if not isinstance(pipeline, OptimizedScopePipeline):
            raise TypeError(f"pipeline must be an OptimizedScopePipeline, got {type(pipeline).__name__}")
        super().__init__()
        if not callable(getattr(pipeline, "next_frame", None)):
            raise TypeError(f"pipeline must be an OptimizedScopePipeline, got {type(pipeline).__name__}")
        self.pipeline = pipeline
        self.set_prompt(prompt)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="frames")
        self._clock, self._tweens, self._due_tweens = FrameClock(), Tweens(), deque[Tween]()
        # When the time stamp is 0. aiortc's sender ends in silence where times fall below its encoder's first.
        self._origin = next((track._origin for track in self._live if track._origin is not None), None)
        self._live.add(self)

    def set_prompt(self, prompt: str) -> None:
        """Go over to ``prompt`` with the next block. Raises ValueError for an empty one."""
        self.pipeline.switch_prompt(prompt)

    async def recv(self) -> av.VideoFrame:
        """The next frame, when it is due.

        Raises MediaStreamError after ``stop``, and what the pipeline raises: aiortc's sender then ends and stops it.
        """
        if self.readyState != "live":
            raise MediaStreamError
        picture, due = await asyncio.get_running_loop().run_in_executor(self._worker, self._next_picture)
        await asyncio.sleep(due - time.monotonic())
        self._origin = due if self._origin is None else self._origin
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = round((due - self._origin) * RTP_CLOCK), Fraction(1, RTP_CLOCK)
        return frame

    def stop(self) -> None:
        """End the track and its thread; a block under way is finished."""
        super().stop()
        self._live.discard(self)
        # A frame under way is not cancelled: a sender that waits for it would end, though it has another track by now.
        self._worker.shutdown(wait=False)

    def _next_picture(self) -> tuple[np.ndarray, float]:
        """The next picture, and when it is due."""
        while not self._due_tweens:
            fps = self.pipeline.config.model_fps
            frame, scene = self._next_frame(fps), self.pipeline.scene
            due = self._clock.next(time.monotonic(), 1 / fps)
            self._due_tweens.extend(self._tweens.next(frame, scene, due, 1 / fps, self.pipeline.config.picture_fps))
        tween = self._due_tweens.popleft()
        while self._due_tweens and self._due_tweens[0].at < time.monotonic():  # the one after it is late already
            tween = self._due_tweens.popleft()
        return tween.picture(), tween.at

    def _next_frame(self, fps: float) -> np.ndarray:
        frame = self.pipeline.next_frame(fps)
        if self.pipeline.overlay:
            frame = self.pipeline.overlay.apply(frame, self.pipeline.get_latency_stats())
        return (frame * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
