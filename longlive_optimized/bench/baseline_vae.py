"""The baseline of decoding: the published order (docs/model.md 7), eager, one latent at a time, channels first."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..vae.wan.layers import AttentionBlock, ResidualBlock, RMSNorm, Upsample
from ..vae.wan.model import WanVae


class BaselineDecoder:
    """A stream of its own over a VAE's weights: concatenated caches, separate padding, norm, SiLU and upsampling."""

    def __init__(self, vae: WanVae):
        self._conv2, self._net = copy.deepcopy(vae.conv2), copy.deepcopy(vae.decoder)
        for part in (self._conv2, self._net):
            part.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        self._past: dict[nn.Module, Tensor] = {}
        self._fresh = True

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Pixels [F, 3, 8h, 8w] in [-1, 1] of latents [T, z_dim, h, w] of the VAE's own scale."""
        x = self._conv2(z.transpose(0, 1)[None])
        return torch.cat([self._latent(x[:, :, i : i + 1]) for i in range(len(z))], 2)[0].transpose(0, 1).clamp(-1, 1)

    def _latent(self, x: Tensor) -> Tensor:
        x = self._causal(self._net.conv1, x)
        kinds = {ResidualBlock: self._residual, AttentionBlock: _attention, Upsample: self._up}
        for block in (*self._net.middle, *self._net.upsamples):
            x = kinds[type(block)](block, x)
        self._fresh = False
        norm, conv = self._net.head.layers
        return self._causal(conv, F.silu(_norm(norm, x)))

    def _causal(self, conv: nn.Conv3d, x: Tensor) -> Tensor:
        past = self._past.get(conv, x[:, :, :0])
        x = torch.cat((past, x), 2)
        self._past[conv] = x[:, :, -2:].clone()
        side = conv.kernel_size[-1] // 2
        padded = F.pad(x, (side, side, side, side, 2 - past.shape[2], 0))
        return F.conv3d(padded, conv.weight, conv.bias)

    def _residual(self, block: ResidualBlock, x: Tensor) -> Tensor:
        norm_1, conv_1, norm_2, conv_2 = block.layers
        y = self._causal(conv_1, F.silu(_norm(norm_1, x)))
        y = self._causal(conv_2, F.silu(_norm(norm_2, y)))
        return y + (x if block.shortcut is None else block.shortcut(x))

    def _up(self, block: Upsample, x: Tensor) -> Tensor:
        if block.time_conv is not None and not self._fresh:
            pairs = self._causal(block.time_conv, x).unflatten(1, (2, -1))
            x = torch.stack((pairs[:, 0], pairs[:, 1]), 3).flatten(2, 3)
        frames = x[0].transpose(0, 1)
        large = F.interpolate(frames.float(), scale_factor=2.0, mode="nearest-exact").type_as(x)
        return block.resample["1"](large).transpose(0, 1)[None]


def _norm(layer: RMSNorm, x: Tensor) -> Tensor:
    return F.normalize(x, dim=1) * layer.gamma.numel() ** 0.5 * layer.gamma


def _attention(block: AttentionBlock, x: Tensor) -> Tensor:
    frames = x[0].transpose(0, 1)
    qkv = block.to_qkv(_norm(block.norm, frames)).flatten(2).transpose(1, 2)[:, None]
    y = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
    y = block.proj(y[:, 0].transpose(1, 2).reshape(frames.shape))
    return x + y.transpose(0, 1)[None]
