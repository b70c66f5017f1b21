"""Torch's convolutions for frames [T, H, W, C], contiguous: the convolution libraries see them as channels-last."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels x frames x rows up to which torch, on a CPU, computes a three-dimensional convolution of one batch in loops,
# ten times slower than oneDNN does one of several frames.
_LOOPS = 20480


def pointwise(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """A convolution of kernel size 1 as the matrix product that it is; x [..., C]."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


def conv2d(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution of each frame of x [T, H, W, C]."""
    y = F.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias, layer.stride, layer.padding)
    return y.permute(0, 2, 3, 1).contiguous()


def conv3d(layer: nn.Conv3d, x: Tensor) -> Tensor:
    """The convolution of x [T, H, W, C] over time and space."""
    if x.is_cpu and x.shape[0] * x.shape[1] * x.shape[3] <= _LOOPS:
        return _conv3d_by_frames(layer, x)
    y = F.conv3d(x[None].permute(0, 4, 1, 2, 3), layer.weight, layer.bias, layer.stride, layer.padding)
    return y.permute(0, 2, 3, 4, 1)[0].contiguous()


def _conv3d_by_frames(layer: nn.Conv3d, x: Tensor) -> Tensor:
    """``conv3d`` as a two-dimensional one, of frames that have their neighbours' channels beside their own."""
    taps, stride = layer.kernel_size[0], layer.stride[0]
    frames = (len(x) - taps) // stride + 1
    beside = torch.cat([x[i : i + stride * (frames - 1) + 1 : stride] for i in range(taps)], dim=-1)
    weight = layer.weight.movedim(2, 1).flatten(1, 2)
    y = F.conv2d(beside.permute(0, 3, 1, 2), weight, layer.bias, layer.stride[1:], layer.padding[1:])
    return y.permute(0, 2, 3, 1).contiguous()
