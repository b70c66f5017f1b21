"""Frames that come in (video-to-video): resampled, resized, put into the encoder's range (model specification 7.6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def prepare_video(video: Tensor, count: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """uint8 [T, H, W, 3] to [count, 3, height, width] in [-1, 1]: rounded linear indices in time, bilinear in space."""
    if len(video) != count:
        video = video[torch.linspace(0, len(video) - 1, count).round().long().to(video.device)]
    frames = video.permute(0, 3, 1, 2).to(dtype)
    if frames.shape[-2:] != (height, width):
        frames = F.interpolate(frames, (height, width), mode="bilinear", align_corners=False)
    return frames / 255 * 2 - 1
