"""The VAE for training: the engine's weights, whole videos in batches, nothing written in place.

The engine's layers stream: they keep the last frames of each layer and write them over. Here the same layers see a
whole video at once, with zeros before it; the tests hold both to the same numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..vae.config import LATENT_MEAN, LATENT_STD
from ..vae.wan.layers import AttentionBlock, CausalConv3d, Downsample, Head, Middle, ResidualBlock, RMSNorm, Upsample
from ..vae.wan.model import WanVae


def encode(vae: WanVae, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance [B, z_dim, T, h, w] of frames [B, 3, 4T - 3, 8h, 8w] in [-1, 1], of the VAE's own scale."""
    assert vae.encoder is not None and vae.conv1 is not None
    x = _causal(vae.encoder.conv1, frames)
    for block in vae.encoder.downsamples:
        x = _block(block, x)
    moments = vae.conv1(_head(vae.encoder.head, _middle(vae.encoder.middle, x)))
    return moments.chunk(2, dim=1)


def decode(vae: WanVae, z: Tensor) -> Tensor:
    """Frames [B, 3, 4T - 3, 8h, 8w], not clamped, of latents [B, z_dim, T, h, w] of the VAE's own scale."""
    x = _middle(vae.decoder.middle, _causal(vae.decoder.conv1, vae.conv2(z)))
    for block in vae.decoder.upsamples:
        x = _block(block, x)
    return _head(vae.decoder.head, x)


@torch.no_grad()
def fold_statistics(vae: WanVae, mean: Tensor, std: Tensor) -> None:
    """Rescale the latents so that those of the given mean and std [z_dim] get Wan's, which the engine takes out again.

    The layers on either side of the latents, both 1x1x1, take it up, so frames decode as before.
    """
    assert vae.conv1 is not None and vae.conv1.bias is not None and vae.conv2.bias is not None
    like = vae.conv1.weight
    mean, std, wan_mean, wan_std = (torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in (
        mean, std, LATENT_MEAN, LATENT_STD))  # fmt: skip
    gain, z = wan_std / std, len(mean)
    vae.conv1.weight[:z] *= gain[:, None, None, None, None]
    vae.conv1.bias[:z] = (vae.conv1.bias[:z] - mean) * gain + wan_mean
    vae.conv1.bias[z:] += 2 * gain.log()
    weight = vae.conv2.weight.flatten(1)
    vae.conv2.bias += weight @ (mean - wan_mean / gain)
    vae.conv2.weight /= gain[:, None, None, None]


def normalise(mean: Tensor) -> Tensor:
    """Latents [B, z_dim, T, h, w] of the VAE's own scale as the diffusion model's [B, T, z_dim, h, w]."""
    shift, scale = (mean.new_tensor(v)[:, None, None, None] for v in (LATENT_MEAN, LATENT_STD))
    return ((mean - shift) / scale).transpose(1, 2)


def denormalise(latents: Tensor) -> Tensor:
    """The inverse of ``normalise``."""
    shift, scale = (latents.new_tensor(v)[:, None, None, None] for v in (LATENT_MEAN, LATENT_STD))
    return latents.transpose(1, 2) * scale + shift


def _causal(layer: CausalConv3d, x: Tensor) -> Tensor:
    return layer._conv_forward(F.pad(x, (0, 0, 0, 0, 2, 0)), layer.weight, layer.bias)


def _norm(layer: RMSNorm, x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    scale = x.square().mean(1, keepdim=True, dtype=wide).add(1e-12).rsqrt().to(x.dtype)
    return x * scale * layer.gamma.view(-1, *[1] * (x.ndim - 2))


def _head(layer: Head, x: Tensor) -> Tensor:
    norm, conv = layer.layers
    return _causal(conv, F.silu(_norm(norm, x)))


def _residual(layer: ResidualBlock, x: Tensor) -> Tensor:
    norm_1, conv_1, norm_2, conv_2 = layer.layers
    y = _causal(conv_1, F.silu(_norm(norm_1, x)))
    y = _causal(conv_2, F.silu(_norm(norm_2, y)))
    return y + (x if layer.shortcut is None else layer.shortcut(x))


def _attention(layer: AttentionBlock, x: Tensor) -> Tensor:
    return x + _by_frame(lambda f: layer.proj(_attend(layer.to_qkv(_norm(layer.norm, f)))), x)


def _attend(qkv: Tensor) -> Tensor:
    q, k, v = (part.flatten(2).transpose(1, 2)[:, None] for part in qkv.chunk(3, dim=1))
    return F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, qkv.shape[2:])


def _middle(layer: Middle, x: Tensor) -> Tensor:
    before, attention, after = layer.layers
    return _residual(after, _attention(attention, _residual(before, x)))


def _block(layer: nn.Module, x: Tensor) -> Tensor:
    return {ResidualBlock: _residual, Upsample: _up, Downsample: _down}[type(layer)](layer, x)


def _by_frame(function, x: Tensor) -> Tensor:
    """A function of pictures [N, C, H, W], for each frame of x [B, C, T, H, W]."""
    y = function(x.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (len(x), -1)).transpose(1, 2)


def _up(layer: Upsample, x: Tensor) -> Tensor:
    if layer.time_conv is not None and x.shape[2] > 1:
        # The first frame stays single and is not seen by the convolution over time.
        pairs = _causal(layer.time_conv, x[:, :, 1:]).unflatten(1, (2, -1))  # [B, 2, C, T - 1, H, W]
        frames = x[:, :, :1].permute(0, 2, 3, 4, 1), pairs.permute(0, 3, 1, 4, 5, 2).flatten(1, 2)
        x = torch.cat(frames, 1).permute(0, 4, 1, 2, 3)  # so that it is channels-last still
    return _by_frame(lambda f: layer.conv(F.interpolate(f, scale_factor=2.0, mode="nearest")), x)


def _down(layer: Downsample, x: Tensor) -> Tensor:
    x = _by_frame(lambda f: layer.conv(F.pad(f, (0, 1, 0, 1))), x)
    if layer.time_conv is None or x.shape[2] == 1:
        return x
    return torch.cat((x[:, :, :1], layer.time_conv(x)), 2)
