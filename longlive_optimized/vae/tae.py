"""The tiny autoencoder (docs/model.md 8): TAE and LightTAE, which trade quality for speed.

Plain convolutions on each frame; only a ``MemBlock`` looks back, at one frame. Activations are [T, H, W, C] as in
``wan/layers.py``, and parameter names and shapes are the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .autoencoder import Autoencoder
from .band import reach
from .config import TaeConfig
from .convolution import conv2d, pointwise
from .state import CausalState


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of each frame, zero-padded."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1, bias: bool = True):
        super().__init__(channels_in, channels_out, 3, stride, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(self, x)


class MemBlock(nn.Module):
    """ReLU(x + three convolutions of x and the frame before it), a frame at a time."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.ModuleDict(
            {
                "0": Conv3x3(2 * channels, channels),
                "2": Conv3x3(channels, channels),
                "4": Conv3x3(channels, channels),
            }
        )

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        history = state.history(self, x, frames=1)
        pair = x.new_empty(*x.shape[:3], 2 * x.shape[3])
        now, past = pair.chunk(2, dim=3)
        now.copy_(x)
        past[:1] = history
        past[1:] = x[:-1]
        history.copy_(x[-1:])
        y = self.conv["2"](self.conv["0"](pair).relu_()).relu_()
        return self.conv["4"](y).add_(x).relu_()


class TemporalPool(nn.Module):
    """``frames`` consecutive frames become one, by a 1x1 convolution over all their channels."""

    def __init__(self, channels: int, frames: int):
        super().__init__()
        self.conv = nn.Conv2d(channels * frames, channels, 1, bias=False)
        self._frames = frames

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(self.conv, x.unflatten(0, (-1, self._frames)).movedim(1, 3).flatten(3))


class Grow(nn.Module):
    """Each frame becomes ``frames`` frames, by a 1x1 convolution, then nearest-neighbour 2x upsampling in space.

    The checkpoint's network upsamples first. A 1x1 convolution does not mind the order, and this way sees a quarter of
    the pixels.
    """

    def __init__(self, channels: int, frames: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * frames, 1, bias=False)
        self._frames = frames

    def forward(self, x: Tensor) -> Tensor:
        count, height, width, channels = x.shape
        y = x.new_empty(count, self._frames, height, 2, width, 2, channels)
        grown = pointwise(self.conv, x).unflatten(3, (self._frames, channels)).movedim(3, 1)
        y.copy_(grown[:, :, :, None, :, None])
        return y.view(-1, 2 * height, 2 * width, channels)


def _mem_blocks(first: int, channels: int) -> dict[str, nn.Module]:
    return {str(first + i): MemBlock(channels) for i in range(3)}


class TaeDecoder(nn.ModuleDict):
    """Three levels of three MemBlocks, coarsest first; each is then doubled in space, the last two in time."""

    def __init__(self, config: TaeConfig):
        widths = config.decoder_widths
        layers: dict[str, nn.Module] = {"1": Conv3x3(config.z_dim, widths[0])}
        for level in range(3):
            first, width = 6 * level + 3, widths[level]
            layers |= _mem_blocks(first, width)
            layers[f"{first + 4}"] = Grow(width, frames=2 if level else 1)
            layers[f"{first + 5}"] = Conv3x3(width, widths[level + 1], bias=False)
        super().__init__(layers | {"22": Conv3x3(widths[3], 3)})

    @property
    def reaches(self) -> tuple[int, ...]:
        """See ``Autoencoder.reaches``."""
        levels = (1, 3, 4, 5), (9, 10, 11), (15, 16, 17), (22,)
        return tuple(reach(self[f"{i}"] for i in level) for level in levels)

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """[T, h, w, z_dim] to [4T, 8h, 8w, 3], about in [0, 1]."""
        x = self["1"]((state.crop(0, x) / 3).tanh_().mul_(3)).relu_()
        for place, first in enumerate((3, 9, 15), 1):
            for i in range(first, first + 3):
                x = self[f"{i}"](x, state)
            x = self[f"{first + 5}"](self[f"{first + 4}"](state.crop(place, x)))
        return state.crop(4, self["22"](x.relu_()))


class TaeEncoder(nn.ModuleDict):
    """Three levels, finest first; each is halved in space, the first two in time, and then has three MemBlocks."""

    def __init__(self, config: TaeConfig):
        width = config.encoder_width
        layers: dict[str, nn.Module] = {"0": Conv3x3(3, width)}
        for level in range(3):
            first = 5 * level + 2
            layers[f"{first}"] = TemporalPool(width, frames=2 if level < 2 else 1)
            layers[f"{first + 1}"] = Conv3x3(width, width, stride=2, bias=False)
            layers |= _mem_blocks(first + 2, width)
        super().__init__(layers | {"17": Conv3x3(width, config.z_dim)})

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """[4T, 8h, 8w, 3] in [0, 1] to [T, h, w, z_dim]."""
        x = self["0"](x).relu_()
        for first in (2, 7, 12):
            x = self[f"{first + 1}"](self[f"{first}"](x))
            for i in range(first + 2, first + 5):
                x = self[f"{i}"](x, state)
        return self["17"](x)


class Tae(Autoencoder):
    """The tiny autoencoder, lossy and fast; 128 tensors, or the decoder's half with ``encoder=False``."""

    config: TaeConfig
    encoder: TaeEncoder | None
    decoder: TaeDecoder
    first_frame_alone = False

    def __init__(self, config: TaeConfig | None = None, *, encoder: bool = True, device: torch.device | str = "cpu"):
        super().__init__()
        self.config = config or TaeConfig()
        with torch.device(device):
            self.encoder = TaeEncoder(self.config) if encoder else None
            self.decoder = TaeDecoder(self.config)
        self.requires_grad_(False)

    @property
    def reaches(self) -> tuple[int, ...]:
        return self.decoder.reaches

    def decode(self, z: Tensor, state: CausalState) -> Tensor:
        """Latents [T, h, w, z_dim] to pixels [F, 8h, 8w, 3], clamped to [-1, 1]; ``state`` is advanced in place."""
        frames = self.decoder(z, state)
        if state.fresh:  # a video's first latent stands for one frame, the last of its four
            frames = frames[3:]
        state.fresh = False
        return frames.clamp_(0, 1).mul_(2).sub_(1)

    def encode(self, frames: Tensor, state: CausalState) -> Tensor:
        """Pixels [4T, 8h, 8w, 3] to latents [T, h, w, z_dim]."""
        assert self.encoder is not None
        latents = self.encoder((frames + 1) / 2, state)
        state.fresh = False
        return latents

    def pad_first(self, frames: Tensor) -> Tensor:
        """Filled up to 4 (k + 1) with copies of the last frame, as scope does."""
        return torch.cat((frames, frames[-1:].expand(3, -1, -1, -1)))


def last_rows(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A TAE's ``tensors``, the weights of its ``Grow`` layers cut down to the last rows that ``shapes`` asks for.

    A checkpoint may be able to make more frames than Wan 2.1 has; those in the last rows are kept (docs/model.md 8).
    """
    tensors = dict(tensors)
    for key in (f"decoder.{i}.conv.weight" for i in (7, 13, 19)):
        rows, *rest = shapes[key]
        if key in tensors and list(tensors[key].shape[1:]) == rest:
            tensors[key] = tensors[key][-rows:]
    return tensors
