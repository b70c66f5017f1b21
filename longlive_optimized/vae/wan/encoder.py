"""Pixels to latents (docs/model.md 7.5)."""

from torch import Tensor, nn

from ..config import VaeConfig
from ..state import CausalState
from .layers import CausalConv3d, Downsample, Head, Middle, ResidualBlock


class Encoder(nn.Module):
    """Three downsamplers between four levels of two residual blocks, finest first; the last two halve time too."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        width = config.widths[0]
        self.conv1 = CausalConv3d(3, width)
        self.downsamples = nn.ModuleList()
        for level in range(4):
            for _ in range(2):
                self.downsamples.append(ResidualBlock(width, config.widths[level]))
                width = config.widths[level]
            if level < 3:
                self.downsamples.append(Downsample(width, temporal=level > 0))
        self.middle = Middle(width)
        self.head = Head(width, 2 * config.z_dim)

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """Pixels [4T, 8h, 8w, 3], or [4T - 3, 8h, 8w, 3] on a fresh state, to [T, h, w, 2 z_dim]."""
        x = self.conv1(x, state)
        for block in self.downsamples:
            x = block(x, state)
        return self.head(self.middle(x, state), state)
