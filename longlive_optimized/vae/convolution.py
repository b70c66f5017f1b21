"""Torch's convolutions for frames [T, H, W, C], contiguous: the convolution libraries see them as channels-last."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels x frames x rows up to which torch, on a CPU, computes a three-dimensional convolution of one batch in loops,
# ten times slower than oneDNN does one of several frames.
_LOOPS = 20480


def is_slow(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch convolves there in loops, up to a hundred times slower than in float32: in bfloat16, on a CPU
    without instructions that oneDNN wants for it: on x86 AVX-512 (findings/torch-cpu-bfloat16-conv3d.sh)."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    return not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def wide_on_cpu(x: Tensor) -> bool:
    """Whether x is of float32 or float64 on a CPU. There memory is slow, all the more where the system clears it."""
    return x.is_cpu and x.dtype.itemsize >= 4


def pointwise(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """A convolution of kernel size 1 as the matrix product that it is; x [..., C]."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


def conv2d(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution of each frame of x [T, H, W, C]."""
    y = F.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias, layer.stride, layer.padding)
    return y.permute(0, 2, 3, 1).contiguous()


def upsampled_conv2d(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3x3 convolution of each frame of x [T, H, W, C] after nearest-neighbour 2x upsampling, as one transposed
    convolution: 16 products for each input pixel in place of 36."""
    taps = layer.weight.transpose(0, 1).flip(2, 3)
    kernel = taps.new_zeros(*taps.shape[:2], 4, 4)
    for row, column in itertools.product((0, 1), repeat=2):
        kernel[:, :, row : row + 3, column : column + 3] += taps
    y = F.conv_transpose2d(x.permute(0, 3, 1, 2), kernel, layer.bias, stride=2, padding=1)
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
