"""A WebRTC video track of a pipeline's frames; needs aiortc (the extra ``demo``)."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
from aiortc import VideoStreamTrack
from aiortc.mediastreams import MediaStreamError

from ..video_time import RTP_CLOCK
from .scope_integration import OptimizedScopePipeline


class PipelineVideoTrack(VideoStreamTrack):
    """Frames at the pipeline's ``target_fps``, with its overlay if it has one.

    Frames are made in a thread of the track's own, so the event loop never waits for one; time stamps count frames, so
    playback stays even when a block comes late. ``prompt`` is a wish like that of ``set_prompt``, which may be called
    from the event loop or any thread, and like ``pipeline.switch_prompt``: the last one holds.
    """

    def __init__(self, pipeline: OptimizedScopePipeline, prompt: str):
        super().__init__()
        self.pipeline = pipeline
        self.set_prompt(prompt)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="frames")
        self._pts, self._due = 0.0, time.monotonic()

    def set_prompt(self, prompt: str) -> None:
        """Go over to ``prompt`` with the next block. Raises ValueError for an empty one."""
        self.pipeline.switch_prompt(prompt)

    async def recv(self) -> av.VideoFrame:
        """The next frame, when it is due."""
        if self.readyState != "live":
            raise MediaStreamError
        picture = await asyncio.get_running_loop().run_in_executor(self._worker, self._next_picture)
        now, interval = time.monotonic(), 1 / self.pipeline.config.target_fps
        if now < self._due:
            await asyncio.sleep(self._due - now)
        # A late block is not made up for by a rush of frames: the next one is due an interval after this one.
        self._due = max(now, self._due) + interval
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = round(self._pts), Fraction(1, RTP_CLOCK)
        self._pts += RTP_CLOCK * interval
        return frame

    def stop(self) -> None:
        """End the track and its thread; a block under way is finished."""
        super().stop()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _next_picture(self):
        frame = self.pipeline.next_frame()
        if self.pipeline.overlay:
            frame = self.pipeline.overlay.apply(frame, self.pipeline.get_latency_stats())
        return (frame * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
