"""The VAE's widths and the statistics of its latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Wan 2.1's latents, channel by channel (model specification 7.1).
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True)
class VaeConfig:
    """Dimensions of the video autoencoder; the defaults are Wan 2.1's, LightVAE is ``VaeConfig(base=24)``.

    Four levels, finest first, of base * multiplier channels each; latents have z_dim channels.
    Raises ValueError naming the field.
    """

    base: int = 96
    z_dim: int = 16
    multipliers: tuple[int, int, int, int] = (1, 2, 4, 4)
    latent_mean: tuple[float, ...] = LATENT_MEAN
    latent_std: tuple[float, ...] = LATENT_STD

    def __post_init__(self) -> None:
        for name, values in (("base", (self.base,)), ("z_dim", (self.z_dim,)), ("multipliers", self.multipliers)):
            if not all(isinstance(value, int) and value > 0 for value in values):
                raise ValueError(f"{name} must be positive whole numbers, got {getattr(self, name)!r}")
        if len(self.multipliers) != 4:
            raise ValueError(f"multipliers must have four entries, got {self.multipliers}")
        if any(width % 2 for width in self.widths[1:]):
            raise ValueError(f"base and multipliers must give even widths above the first, got {self.widths}")
        for name in ("latent_mean", "latent_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise ValueError(f"{name} must have z_dim = {self.z_dim} entries, got {len(getattr(self, name))}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.base * multiplier for multiplier in self.multipliers)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> VaeConfig:
        """Infer the dimensions from a checkpoint's tensor shapes; the decoder's half is enough.

        Raises ValueError naming the tensor that is missing or has another shape than the rest implies.
        """
        levels = [f"decoder.upsamples.{block}.residual.6.weight" for block in (12, 8, 4, 0)]
        widths = [_out_channels(shapes, key) for key in levels]
        z_dim, base = _out_channels(shapes, "conv2.weight"), widths[0]
        expected = {key: (width, width, 3, 3, 3) for key, width in zip(levels, widths, strict=True)} | {
            "conv2.weight": (z_dim, z_dim, 1, 1, 1),
            "decoder.conv1.weight": (widths[-1], z_dim, 3, 3, 3),
            "decoder.head.2.weight": (3, base, 3, 3, 3),
        }
        for key, shape in expected.items():
            if tuple(shapes.get(key, ())) != shape:
                raise ValueError(f"{key} must have shape {list(shape)}, got {list(shapes.get(key, ()))}")
        for key, width in zip(levels, widths, strict=True):
            if width % base:
                raise ValueError(f"{key} must have a multiple of the finest level's {base} channels, got {width}")
        return cls(base, z_dim, tuple(width // base for width in widths))


def _out_channels(shapes: Mapping[str, tuple[int, ...]], key: str) -> int:
    if not shapes.get(key):
        raise ValueError(f"{key} is missing: these are not the tensors of a Wan 2.1 VAE")
    return shapes[key][0]
