"""The VAE's building blocks (model specification 7.2), streaming in time.

Every activation is a contiguous [T, H, W, C] tensor: frames are slices of memory, and the convolution libraries see it
as channels-last. All frames of a call pass a layer together; what came before them is in the ``CausalState``.
Parameter names and shapes are the checkpoint's, hence the digits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .state import CausalState

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
    """The same as a convolution of frames that have their neighbours' channels beside their own."""
    taps, stride = layer.kernel_size[0], layer.stride[0]
    frames = (len(x) - taps) // stride + 1
    beside = torch.cat([x[i : i + stride * (frames - 1) + 1 : stride] for i in range(taps)], dim=-1)
    weight = layer.weight.movedim(2, 1).flatten(1, 2)
    y = F.conv2d(beside.permute(0, 3, 1, 2), weight, layer.bias, layer.stride[1:], layer.padding[1:])
    return y.permute(0, 2, 3, 1).contiguous()


class RMSNorm(nn.Module):
    """x / max(|x|_2, 1e-12) * sqrt(C) * gamma over the channels of x [..., C]; gamma keeps ``axes`` unit axes."""

    def __init__(self, channels: int, axes: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        # One kernel, which sums in float32 for half dtypes and rounds once; this eps differs from the maximum only
        # where |x| itself comes near 1e-12.
        channels = x.shape[-1]
        return F.rms_norm(x, (channels,), self.gamma.flatten(), eps=1e-24 / channels)


class CausalConv3d(nn.Conv3d):
    """Convolution over three frames, the present and two past ones, and over space with zero padding."""

    def __init__(self, channels_in: int, channels_out: int, size: int = 3):
        super().__init__(channels_in, channels_out, (3, size, size), padding=(0, size // 2, size // 2))

    def forward(self, x: Tensor, state: CausalState, norm: RMSNorm | None = None) -> Tensor:
        """Convolve x [T, H, W, C], or SiLU(norm(x)), and remember its last two frames."""
        history = state.history(self, x, frames=2)
        padded = x.new_empty(2 + len(x), *x.shape[1:])
        padded[:2] = history
        if norm is None:
            padded[2:] = x
        else:
            torch.ops.aten.silu.out(norm(x), out=padded[2:])
        history.copy_(padded[-2:])
        return conv3d(self, padded)


class ResidualBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), with a 1x1x1 convolution on x where the width changes."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": RMSNorm(channels_in, axes=3),
                "2": CausalConv3d(channels_in, channels_out),
                "3": RMSNorm(channels_out, axes=3),
                "6": CausalConv3d(channels_out, channels_out),
            }
        )
        self.shortcut = nn.Conv3d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        y = self.residual["2"](x, state, norm=self.residual["0"])
        y = self.residual["6"](y, state, norm=self.residual["3"])
        return y.add_(x if self.shortcut is None else pointwise(self.shortcut, x))


class AttentionBlock(nn.Module):
    """x + proj(softmax(q kT / sqrt(C)) v): one head, over the positions of each frame by itself."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = RMSNorm(channels, axes=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(1, 2)[:, None]  # [T, 1, H * W, C]
        y = F.scaled_dot_product_attention(*pointwise(self.to_qkv, tokens).chunk(3, dim=-1))
        return pointwise(self.proj, y).view_as(x).add_(x)


class Upsample(nn.Module):
    """Nearest 2x in space, then a 3x3 convolution to half the channels.

    With ``temporal`` every frame becomes two first, except the first frame of a stream, which ``time_conv`` never sees.
    """

    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels // 2, 3, padding=1)})
        self.time_conv = CausalConv3d(channels, 2 * channels, size=1) if temporal else None

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        frames, height, width, channels = x.shape
        single = frames if self.time_conv is None else int(state.fresh)
        double = frames - single
        y = x.new_empty(single + 2 * double, height, 2, width, 2, channels)
        y[:single] = x[:single, :, None, :, None]
        if double:
            # The first half of the channels is the earlier frame; ordering the frames and copying pixels is one pass.
            pairs = self.time_conv(x[single:], state).unflatten(-1, (2, channels)).movedim(3, 1)
            y[single:].unflatten(0, (double, 2)).copy_(pairs[:, :, :, None, :, None])
        return conv2d(self.resample["1"], y.view(-1, 2 * height, 2 * width, channels))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, padded right and below; with ``temporal``, then one of stride 2 over three frames.

    The first frame of a stream passes unchanged through time; later ones come in pairs: y[j] = conv(x[2j-2 .. 2j]).
    """

    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        x = conv2d(self.resample["1"], F.pad(x, (0, 0, 0, 1, 0, 1)))
        if self.time_conv is None:
            return x
        last = state.history(self.time_conv, x, frames=1)
        window = x if state.fresh else torch.cat((last, x))
        last.copy_(x[-1:])
        if not state.fresh:
            return conv3d(self.time_conv, window)
        return x[:1] if len(x) < 3 else torch.cat((x[:1], conv3d(self.time_conv, window)))


class Middle(nn.ModuleList):
    """Residual block, attention within each frame, residual block."""

    def __init__(self, channels: int):
        ends = ResidualBlock(channels, channels), ResidualBlock(channels, channels)
        super().__init__((ends[0], AttentionBlock(channels), ends[1]))

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        before, attention, after = self
        return after(attention(before(x, state)), state)


class Head(nn.ModuleDict):
    """conv(SiLU(norm(x)))."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__({"0": RMSNorm(channels_in, axes=3), "2": CausalConv3d(channels_in, channels_out)})

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        return self["2"](x, state, norm=self["0"])
