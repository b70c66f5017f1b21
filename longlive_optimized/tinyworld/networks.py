"""The three networks to be trained: the engine's own classes, small, and what training starts from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..model.config import ModelConfig
from ..model.transformer import Transformer
from ..vae.config import VaeConfig
from ..vae.wan.model import WanVae
from . import render
from .umt5 import TextConfig, TextNetwork
from .vocabulary import pieces

_AFTER_SILU = 1.7  # brings a standard normal back to unit size behind the activation
_LOG_VARIANCE = -5.0  # of the first latents' noise


@dataclass(frozen=True)
class Size:
    """Dimensions of everything, and of the frames, height and width, that it is trained on: most on the first."""

    model: ModelConfig
    vae: VaeConfig
    text: TextConfig
    frames: tuple[tuple[int, int], ...]


def _size(model: ModelConfig, vae: VaeConfig, *frames: tuple[int, int]) -> Size:
    text = TextConfig(len(pieces()), dim=model.text_dim, ffn_dim=2 * model.text_dim, heads=4, layers=2)
    return Size(model, vae, text, frames)


SIZES = {
    # VAE widths of at least 16 everywhere: below that the CPU's convolutions fall off their vectors and are slower.
    "tiny": _size(
        ModelConfig(dim=256, ffn_dim=448, freq_dim=128, num_heads=2, num_layers=5, text_len=48, text_dim=64),
        VaeConfig(base=16, multipliers=(1, 1, 2, 2)),
        *render.SIZES,
    ),
    # To try the training out on a CPU.
    "micro": _size(
        ModelConfig(dim=64, ffn_dim=128, freq_dim=32, num_heads=1, num_layers=2, text_len=24, text_dim=16),
        VaeConfig(base=8, multipliers=(1, 2, 2, 2)),
        (32, 48),
        (48, 32),
    ),
}


def new_vae(size: Size, seed: int) -> WanVae:
    """A trainable VAE: signals of unit size, residual branches that start at nothing, latents with little noise.

    Torch's own weights shrink the signal at each of the many layers outside the branches, and noise as large as what
    the first latents say hides it: either way the decoder would long not look at the latents.
    """
    torch.manual_seed(seed)
    vae = WanVae(size.vae).requires_grad_(True)
    for name, weight in vae.named_parameters():
        if ".residual.6." in name or ".proj." in name or name.endswith("bias"):
            nn.init.zeros_(weight)
        elif weight.ndim > 3 and not name.endswith("gamma"):
            gain = _AFTER_SILU if ".residual." in name or ".head." in name else 1.0
            nn.init.normal_(weight, std=gain / weight[0].numel() ** 0.5)
    assert vae.conv1 is not None and vae.conv1.bias is not None
    nn.init.constant_(vae.conv1.bias.data[size.vae.z_dim :], _LOG_VARIANCE)
    return vae


def new_transformer(size: Size, seed: int) -> Transformer:
    """A trainable transformer whose layers start as the identity and whose prediction starts at 0."""
    torch.manual_seed(seed)
    model = Transformer(size.model).requires_grad_(True)
    for name, weight in model.named_parameters():
        if name.endswith("_gain"):
            nn.init.ones_(weight)
        elif weight.ndim < 2 or name.endswith("modulation") or name in ("head.weight", "time_projection.weight"):
            nn.init.zeros_(weight)
        else:
            nn.init.xavier_uniform_(weight)
    for block in model.blocks:
        assert block.cross_out.weight is not None
        nn.init.zeros_(block.cross_out.weight)  # the one branch without a gate
    return model


def new_text(size: Size, seed: int) -> TextNetwork:
    """A trainable text encoder."""
    torch.manual_seed(seed)
    return TextNetwork(size.text)
