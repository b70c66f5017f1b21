"""Frames that come in (video-to-video): resampled, resized, measured (docs/model.md 4.6 and 7.6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..video_time import BLOCK_FRAMES


def prepare_video(
    video: Tensor | Sequence[Tensor], count: int, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """uint8 frames [H, W, 3] of any sizes to [count, 3, height, width] in [-1, 1]; see ``resampled``."""
    return resampled(video, count, height, width, dtype, device) / 255 * 2 - 1


def resampled(
    video: Tensor | Sequence[Tensor], count: int, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Frames [H, W, C] of any sizes to [count, C, height, width]: rounded linear indices in time; bilinear in space, in
    float32."""
    picked = torch.linspace(0, len(video) - 1, count, device="cpu").round().long().tolist()
    frames = {i: _fit(video[i].to(device), height, width, dtype) for i in sorted(set(picked))}
    return torch.stack([frames[i] for i in picked])


def _fit(frame: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    frame = frame.permute(2, 0, 1)
    if frame.shape[1:] == (height, width):
        return frame.to(dtype)
    return F.interpolate(frame[None].float(), (height, width), mode="bilinear", align_corners=False)[0].to(dtype)


class MotionMeter:
    """How much noise a video wants: little where it moves much, so that its motion is kept.

    last: the last frame that it was shown, [1, 3, H, W]; None before that.
    """

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def noise_scale(self, frames: Tensor, scale: float) -> float:
        """Share of noise for prepared ``frames`` [T, 3, H, W], near ``scale``: from the largest RMS difference between
        neighbours among the last ones and, for the first of those, the last frame of the call before. Waits for the
        device.
        """
        late = frames[-BLOCK_FRAMES:]
        before = frames[-BLOCK_FRAMES - 1 : -1]
        if self.last is not None:
            before = torch.cat((self.last, frames[-BLOCK_FRAMES:-1]))
        self.last = frames[-1:]
        motion = ((late - before) ** 2).mean((1, 2, 3)).sqrt().max().div(0.2).clamp(0, 1).item()
        return 0.9 * (0.8 - 0.2 * motion) + 0.1 * scale
