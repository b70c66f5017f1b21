"""Video that a viewer sends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
from aiortc import MediaStreamTrack

from longlive_optimized.video_time import RTP_CLOCK

from .painted import numbered


class Sent(MediaStreamTrack):
    """Pictures at a rate. paint: gives the picture [H, W, 3] with a number; sent: how many were."""

    kind = "video"

    def __init__(self, paint: Callable[[int], np.ndarray] | None = None, fps: float = 30):
        super().__init__()
        self._paint, self._fps = paint or (lambda number: numbered(number, 64, 128, 100)), fps
        self._started: float | None = None
        self.sent, self.halted = 0, False

    async def recv(self) -> av.VideoFrame:
        now = asyncio.get_running_loop().time
        self._started = now() if self._started is None else self._started
        await asyncio.sleep(self._started + self.sent / self._fps - now())
        while self.halted:
            await asyncio.sleep(0.05)
        frame = av.VideoFrame.from_ndarray(self._paint(self.sent), format="rgb24")
        frame.pts, frame.time_base = round(self.sent * RTP_CLOCK / self._fps), Fraction(1, RTP_CLOCK)
        self.sent += 1
        return frame
