"""Shapes, operations and baseline of conv_pixels: the end of the decoder, for a block of 12 frames."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..causal_conv import GROUP
from ..conv_pixels import pack_pixels
from .case import Bench, Case

CHANNELS = 96


def case(frames: int, height: int, width: int, dtype: torch.dtype, channels: int = CHANNELS) -> Case:
    def make(device: str) -> tuple:
        draw = {"dtype": dtype, "device": device}
        x = torch.randn(frames + 2, channels // GROUP, height, width, GROUP, **draw)
        weight = torch.randn(3, channels, 3, 3, 3, **draw) * (27 * channels) ** -0.5
        out = torch.empty(frames, height, width, 3, dtype=torch.uint8, device=device)
        indices = torch.arange(frames + 2, dtype=torch.int32, device=device)
        return x, indices, *pack_pixels(weight, torch.randn(3, **draw)), out

    pixels = frames * height * width
    moved = (frames + 2) * height * width * channels * dtype.itemsize + 3 * pixels
    return Case(f"{frames}x{height}x{width}", dtype, make, moved, flops=2 * pixels * 3 * channels * 27)


def published(x: Tensor, frames: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """The library's convolution on frames that lie channels-last, then the steps to bytes one by one.

    Timing only; the numbers are meaningless: buffers are reinterpreted, as in ``causal_conv``'s baseline.
    """
    wide = x.view(1, len(x), *x.shape[2:4], -1).permute(0, 4, 1, 2, 3)
    kernel = weight.flatten()[: 81 * wide.shape[1]].view(3, 3, 3, 3, -1).permute(0, 4, 1, 2, 3)
    y = F.conv3d(wide, kernel, bias[:3].to(x.dtype), padding=(0, 1, 1))
    return out.copy_(((y[0] * 0.5 + 0.5).clamp(0, 1).float() * 255).to(torch.uint8).permute(1, 2, 3, 0))


BENCH = Bench(
    real=[case(12, 480, 832, torch.bfloat16), case(12, 320, 576, torch.bfloat16)],
    small=[case(2, 32, 48, torch.float32)],
    published=published,
    time_reference=False,
)
