"""The autoencoders' widths and the statistics of their latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

_Four = tuple[int, int, int, int]

# Wan 2.1's latents, channel by channel (docs/model.md 7.1).
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
    """Dimensions of the video autoencoder; the defaults are Wan 2.1's.

    LightVAE, pruned and lossy, is ``VaeConfig(base=24)``. Four levels, finest first, of base * multiplier channels
    each; latents have z_dim channels. Raises ValueError naming the field.
    """

    base: int = 96
    z_dim: int = 16
    multipliers: _Four = (1, 2, 4, 4)
    latent_mean: tuple[float, ...] = LATENT_MEAN
    latent_std: tuple[float, ...] = LATENT_STD

    def __post_init__(self) -> None:
        _check_fields(self, {"base": 1, "z_dim": 1, "multipliers": 4})
        if any(width % 2 for width in self.widths[1:]):
            raise ValueError(f"base and multipliers must give even widths above the first, got {self.widths}")

    def __str__(self) -> str:
        return f"a Wan 2.1 VAE of width {self.base}"

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.base * multiplier for multiplier in self.multipliers)

    @property
    def full_size_widths(self) -> tuple[int, int]:
        """Channels of the widest full-size activation of the encoder and of the decoder, whose tensors these bound."""
        return self.widths[0], self.widths[1]

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> VaeConfig:
        """Infer the dimensions from a checkpoint's tensor shapes; the decoder's half is enough.

        Raises ValueError naming the tensor that is missing or has another shape than the rest implies.
        """
        levels = [f"decoder.upsamples.{block}.residual.6.weight" for block in (12, 8, 4, 0)]
        widths = [_out_channels(shapes, key, "a Wan 2.1 VAE") for key in levels]
        z_dim, base = _out_channels(shapes, "conv2.weight", "a Wan 2.1 VAE"), widths[0]
        expected = {key: (width, width, 3, 3, 3) for key, width in zip(levels, widths, strict=True)} | {
            "conv2.weight": (z_dim, z_dim, 1, 1, 1),
            "decoder.conv1.weight": (widths[-1], z_dim, 3, 3, 3),
            "decoder.head.2.weight": (3, base, 3, 3, 3),
        }
        _check_shapes(shapes, expected)
        for key, width in zip(levels, widths, strict=True):
            if width % base:
                raise ValueError(f"{key} must have a multiple of the finest level's {base} channels, got {width}")
        return cls(base, z_dim, cast("_Four", tuple(width // base for width in widths)))


@dataclass(frozen=True)
class TaeConfig:
    """Dimensions of the tiny autoencoder, TAE, lossy and fast; the defaults are Wan 2.1's.

    ``encoder_width`` channels throughout the encoder, ``decoder_widths`` in the decoder, coarsest first. Its latents
    are the diffusion model's own, so the statistics are 0 and 1; LightTAE's are Wan's. Raises ValueError naming the
    field.
    """

    encoder_width: int = 64
    decoder_widths: _Four = (256, 128, 64, 64)
    z_dim: int = 16
    latent_mean: tuple[float, ...] = (0.0,) * 16
    latent_std: tuple[float, ...] = (1.0,) * 16

    def __post_init__(self) -> None:
        _check_fields(self, {"encoder_width": 1, "decoder_widths": 4, "z_dim": 1})

    def __str__(self) -> str:
        return f"a TAE of widths {self.encoder_width} and {', '.join(map(str, self.decoder_widths))}"

    @property
    def full_size_widths(self) -> tuple[int, int]:
        """Channels of the widest full-size activation of the encoder and of the decoder, whose tensors these bound."""
        return self.encoder_width, max(self.decoder_widths[2:])

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], *, light: bool = False) -> TaeConfig:
        """Infer the dimensions from a checkpoint's tensor shapes; a TAE and a LightTAE have the same.

        Raises ValueError naming the tensor that is missing or has another shape than the rest implies.
        """
        decoder = [f"decoder.{layer}.weight" for layer in (1, 8, 14, 20)]
        width, *widths = (_out_channels(shapes, key, "a TAE") for key in ("encoder.0.weight", *decoder))
        z_dim = len(LATENT_MEAN) if light else _out_channels(shapes, "encoder.17.weight", "a TAE")
        steps = zip(decoder, widths, (z_dim, *widths[:-1]), strict=True)
        expected = {key: (wide, before, 3, 3) for key, wide, before in steps} | {
            "decoder.22.weight": (3, widths[-1], 3, 3),
            "encoder.0.weight": (width, 3, 3, 3),
            "encoder.17.weight": (z_dim, width, 3, 3),
        }
        _check_shapes(shapes, expected)
        statistics = (LATENT_MEAN, LATENT_STD) if light else ((0.0,) * z_dim, (1.0,) * z_dim)
        return cls(width, cast("_Four", tuple(widths)), z_dim, *statistics)


def _check_fields(config: VaeConfig | TaeConfig, sizes: Mapping[str, int]) -> None:
    """Require positive whole numbers, as many as ``sizes`` says, and statistics for each latent channel."""
    for name, size in sizes.items():
        values = getattr(config, name)
        values = values if isinstance(values, tuple) else (values,)
        if len(values) != size or not all(isinstance(value, int) and value > 0 for value in values):
            wanted = f"{size} positive whole numbers" if size > 1 else "a positive whole number"
            raise ValueError(f"{name} must be {wanted}, got {getattr(config, name)!r}")
    for name in ("latent_mean", "latent_std"):
        if len(getattr(config, name)) != config.z_dim:
            raise ValueError(f"{name} must have z_dim = {config.z_dim} entries, got {len(getattr(config, name))}")


def _out_channels(shapes: Mapping[str, tuple[int, ...]], key: str, what: str) -> int:
    if not shapes.get(key) or not shapes[key][0]:
        fault = "empty" if shapes.get(key) else "missing"
        raise ValueError(f"{key} is {fault}: these are not the tensors of {what}")
    return shapes[key][0]


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    for key, shape in expected.items():
        if tuple(shapes.get(key, ())) != shape:
            raise ValueError(f"{key} must have shape {list(shape)}, got {list(shapes.get(key, ()))}")
