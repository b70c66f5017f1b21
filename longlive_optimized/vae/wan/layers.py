"""The VAE's building blocks (docs/model.md 7.2), streaming in time.

Every activation is a contiguous [T, H, W, C] tensor. All frames of a call pass a layer together; what came before them
is in the ``CausalState``. Parameter names and shapes are the checkpoint's, hence the digits.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..convolution import conv2d, conv3d, pointwise, upsampled_conv2d, wide_on_cpu
from ..state import CausalState


class RMSNorm(nn.Module):
    """x / max(|x|_2, 1e-12) * sqrt(C) * gamma over the channels of x [..., C]; gamma keeps ``axes`` unit axes."""

    def __init__(self, channels: int, axes: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * axes))

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Into ``out``, if it is given: without other tensors of that size, but rounded at each step."""
        channels, gamma = x.shape[-1], self.gamma.flatten()
        if out is not None:
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(1e-12)
            return torch.div(x, length, out=out).mul_(gamma * channels**0.5)
        # One kernel, which sums in float32 for half dtypes and rounds once; this eps differs from the maximum only
        # where |x| itself comes near 1e-12.
        return F.rms_norm(x, (channels,), gamma, eps=1e-24 / channels)


class CausalConv3d(nn.Conv3d):
    """Convolution over three frames, the present and two past ones, and over space with zero padding."""

    bias: nn.Parameter

    def __init__(self, channels_in: int, channels_out: int, size: int = 3):
        super().__init__(channels_in, channels_out, (3, size, size), padding=(0, size // 2, size // 2))

    def forward(self, x: Tensor, state: CausalState, norm: RMSNorm | None = None) -> Tensor:
        """Convolve x [T, H, W, C], or SiLU(norm(x)), and remember its last two frames."""
        history = state.history(self, x, frames=2)
        padded = state.scratch(x, 2 + len(x))
        padded[:2] = history
        if norm is None:
            padded[2:] = x
        elif wide_on_cpu(x):
            F.silu(norm(x, out=padded[2:]), inplace=True)
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

    @property
    def layers(self) -> tuple[RMSNorm, CausalConv3d, RMSNorm, CausalConv3d]:
        """Norm and convolution, twice."""
        return cast("tuple[RMSNorm, CausalConv3d, RMSNorm, CausalConv3d]", tuple(self.residual.values()))

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        norm_1, conv_1, norm_2, conv_2 = self.layers
        y = conv_1(x, state, norm=norm_1)
        y = conv_2(y, state, norm=norm_2)
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
        q, k, v = pointwise(self.to_qkv, tokens).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)
        return pointwise(self.proj, y).view_as(x).add_(x)


class Upsample(nn.Module):
    """Nearest-neighbour 2x upsampling in space, then a 3x3 convolution to half the channels.

    With ``temporal`` every frame becomes two first, except the first frame of a stream, which ``time_conv`` never sees.
    """

    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels // 2, 3, padding=1)})
        self.time_conv = CausalConv3d(channels, 2 * channels, size=1) if temporal else None

    @property
    def conv(self) -> nn.Conv2d:
        return cast("nn.Conv2d", self.resample["1"])

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        if wide_on_cpu(x):
            return upsampled_conv2d(self.conv, self._doubled(x, state))
        frames, height, width, channels = x.shape
        single = frames if self.time_conv is None else int(state.fresh)
        double = frames - single
        y = x.new_empty(single + 2 * double, height, 2, width, 2, channels)
        y[:single] = x[:single, :, None, :, None]
        if self.time_conv is not None and double:
            # The first half of the channels is the earlier frame; ordering the frames and copying pixels is one pass.
            pairs = self.time_conv(x[single:], state).unflatten(-1, (2, channels)).movedim(3, 1)
            y[single:].unflatten(0, (double, 2)).copy_(pairs[:, :, :, None, :, None])
        return conv2d(self.conv, y.view(-1, 2 * height, 2 * width, channels))

    def _doubled(self, x: Tensor, state: CausalState) -> Tensor:
        """x [T, H, W, C] upsampled in time alone."""
        single = len(x) if self.time_conv is None else int(state.fresh)
        if self.time_conv is None or single == len(x):
            return x
        pairs = self.time_conv(x[single:], state).unflatten(-1, (2, x.shape[-1])).movedim(3, 1).flatten(0, 1)
        return torch.cat((x[:single], pairs)) if single else pairs


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, padded right and below; with ``temporal``, then one of stride 2 over three frames.

    The first frame of a stream passes unchanged through time; later ones come in pairs: y[j] = conv(x[2j-2 .. 2j]).
    """

    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    @property
    def conv(self) -> nn.Conv2d:
        return cast("nn.Conv2d", self.resample["1"])

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        x = conv2d(self.conv, F.pad(x, (0, 0, 0, 1, 0, 1)))
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

    @property
    def layers(self) -> tuple[ResidualBlock, AttentionBlock, ResidualBlock]:
        return cast("tuple[ResidualBlock, AttentionBlock, ResidualBlock]", tuple(self))

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        before, attention, after = self.layers
        return after(attention(before(x, state)), state)


class Head(nn.ModuleDict):
    """conv(SiLU(norm(x)))."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__({"0": RMSNorm(channels_in, axes=3), "2": CausalConv3d(channels_in, channels_out)})

    @property
    def layers(self) -> tuple[RMSNorm, CausalConv3d]:
        return cast("tuple[RMSNorm, CausalConv3d]", tuple(self.values()))

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        norm, conv = self.layers
        return conv(x, state, norm=norm)
