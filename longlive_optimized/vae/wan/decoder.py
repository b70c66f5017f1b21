"""Latents to pixels (docs/model.md 7.3)."""

from torch import Tensor, nn

from ..band import reach
from ..config import VaeConfig
from ..state import CausalState
from .layers import CausalConv3d, Head, Middle, ResidualBlock, Upsample


class Decoder(nn.Module):
    """Three upsamplers between four levels of three residual blocks, coarsest first; the first two double time too."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        width = config.widths[-1]
        self.conv1 = CausalConv3d(config.z_dim, width)
        self.middle = Middle(width)
        self.upsamples = nn.ModuleList()
        for level in (3, 2, 1, 0):
            for _ in range(3):
                self.upsamples.append(ResidualBlock(width, config.widths[level]))
                width = config.widths[level]
            if level:
                self.upsamples.append(Upsample(width, temporal=level > 1))
                width //= 2
        self.head = Head(width, 3)

    @property
    def reaches(self) -> tuple[int, ...]:
        """See ``Autoencoder.reaches``: the first level begins behind attention."""
        levels: list[list[nn.Module]] = [[self.middle[2]]]
        for block in self.upsamples:
            if isinstance(block, Upsample):
                levels.append([])
            else:
                levels[-1].append(block)
        levels[-1].append(self.head)
        return tuple(map(reach, levels))

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """[T, h, w, z_dim] to pixels [4T, 8h, 8w, 3], or [4T - 3, 8h, 8w, 3] on a fresh state; not clamped."""
        before, attention, after = self.middle.layers
        x = state.crop(0, attention(before(self.conv1(x, state), state)))
        x, place = after(x, state), 1
        for block in self.upsamples:
            if isinstance(block, Upsample):
                x, place = state.crop(place, x), place + 1
            x = block(x, state)
        return state.crop(place, self.head(x, state))
