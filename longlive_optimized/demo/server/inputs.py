"""What the video is made from beside its prompt: frames that a viewer sends, and pictures."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import av
import numpy as np

from ...engine.request import Control
from ...media import cover
from ...video_time import BLOCK_PIXEL_FRAMES
from .metrics import Metrics

log = logging.getLogger(__name__)

Use = Literal["video", "control"]
Role = Literal["reference", "first_frame"]

MOST_WAITING = 2 * BLOCK_PIXEL_FRAMES  # frames; then the oldest makes way for the newest
MOST_UNSCALED = 3  # frames that wait to be scaled; then what comes is dropped
MOST_PIXELS = 1920 * 1088  # of a frame that comes in
HOLD = 2.0  # seconds that the last frame stands for those that do not come


class Inputs:
    """A stream's input: video to start from or to follow, sent by one viewer, and pictures that anyone gives.

    ``of_block`` is called in the pipeline's thread and never waits for a frame; all else in the event loop.
    use: what the frames are for, None for nothing; by: who sends them. noise_scale, control_scale: as of BlockRequest
    and Control.
    """

    def __init__(self, metrics: Metrics):
        self.size: tuple[int, int] = (0, 0)  # height and width, before the first frame or picture
        self.use: Use | None = None
        self.by: str | None = None
        self.noise_scale, self.control_scale = 0.5, 1.0
        self._came, self._dropped = metrics.came, metrics.dropped
        self._pictures: dict[Role, np.ndarray] = {}
        self._frames: deque[np.ndarray] = deque()
        self._last: np.ndarray | None = None
        self._arrived = float("-inf")
        self._turn = self._unscaled = 0
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="input")

    def start(self, use: Use, by: str) -> None:
        """Take frames of this viewer from now on, and no other's."""
        with self._lock:
            if by != self.by:
                self._forget()
            self.use, self.by = use, by

    def stop(self) -> None:
        """Make the next block from the prompt again."""
        with self._lock:
            self._forget()
            self.use = self.by = None

    def offer(self, frame: av.VideoFrame) -> None:
        """A frame of the viewer who sends. One that is too large, or too much, is dropped."""
        self._came.inc()
        if frame.width * frame.height > MOST_PIXELS:
            self._dropped.labels("input too large").inc()
            return
        with self._lock:
            if self._unscaled >= MOST_UNSCALED:
                self._dropped.labels("input lags").inc()
                return
            self._unscaled += 1
            self._thread.submit(self._take, frame, self._turn)

    def set_picture(self, role: Role, picture: np.ndarray | None) -> None:
        """Take a picture [height, width, 3], or with None no longer."""
        with self._lock:
            if picture is None:
                self._pictures.pop(role, None)
            else:
                self._pictures[role] = picture

    def of_block(self, begins: bool) -> dict[str, Any]:
        """A BlockRequest's fields for the next block; begins: it is a video's first."""
        with self._lock:
            frames, use = self._take_frames(), self.use
            fields: dict[str, Any] = {}
            steer: dict[str, Any] = {}
            if frames and use == "video":
                fields.update(video=frames, noise_scale=self.noise_scale)
            if frames and use == "control":
                steer["frames"] = frames
            if "reference" in self._pictures:
                steer["references"] = [self._pictures["reference"]]
            if begins and "first_frame" in self._pictures:
                steer["first_frame"] = self._pictures["first_frame"]
            if steer:
                fields["control"] = Control(**steer, scale=self.control_scale)
            return fields

    def state(self) -> dict[str, Any]:
        """What is in use, for JSON; receiving: whether frames come."""
        with self._lock:
            return {
                "use": self.use,
                "by": self.by,
                "receiving": self._is_fresh(),
                "noise_scale": self.noise_scale,
                "control_scale": self.control_scale,
                "pictures": sorted(self._pictures),
            }

    def close(self) -> None:
        """Take nothing any more."""
        self.stop()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(self, frame: av.VideoFrame, turn: int) -> None:
        picture = None
        try:
            picture = cover(frame, *self.size)
        except ValueError:  # a strip
            self._dropped.labels("input too large").inc()
        except Exception:  # the next one may be a good one
            log.exception("a frame that came in could not be read")
        finally:
            with self._lock:
                self._unscaled -= 1
                if picture is not None and turn == self._turn:
                    self._keep(picture)

    def _keep(self, picture: np.ndarray) -> None:
        if len(self._frames) >= MOST_WAITING:
            self._frames.popleft()
            self._dropped.labels("input lags").inc()
        self._frames.append(picture)
        self._last, self._arrived = picture, time.monotonic()

    def _take_frames(self) -> list[np.ndarray]:
        """All that came since the last block; where none did, the last one for a while."""
        frames = [*self._frames]
        self._frames.clear()
        if frames or self._last is None:
            return frames
        return [self._last] if self._is_fresh() else []

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._arrived < HOLD

    def _forget(self) -> None:
        self._turn += 1
        self._frames.clear()
        self._last, self._arrived = None, float("-inf")
