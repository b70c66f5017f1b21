"""Video through the VAE block by block: a stream owns the causal state, its codec the weights.

Any grouping of the same frames into calls gives the same result as one call with all of them; only a TAE's encoder
fills up its first call, by repeating the last frame. A stream is bound to its first call's frame size until ``reset``;
a call that fails in its midst resets it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from .band import Band
from .codec import Causal, CausalDecoder, CausalEncoder, Codec, NewGraphs

_Side = TypeVar("_Side", bound=Causal)


class _Stream(Generic[_Side]):
    """What both directions share; ``new_side`` is the codec's, for frames of one size."""

    def __init__(
        self, codec: Codec, new_side: Callable[[tuple[int, int], NewGraphs], _Side], new_graphs: NewGraphs = None
    ):
        self.codec, self._new_side, self._new_graphs = codec, new_side, new_graphs
        self._side: _Side | None = None  # made by the first call, for frames of its size
        self._size = 0, 0

    def reset(self) -> None:
        """Forget every frame: the next call starts a new video, of any size. Buffers of the same size are kept."""
        if self._side is not None:
            self._side.reset()

    @property
    def _fresh(self) -> bool:
        return self._side is None or self._side.fresh

    def _check(self, name: str, x: Tensor, channels: int) -> None:
        """Refuse what does not fit before anything is computed or remembered."""
        if x.ndim != 4 or x.shape[1] != channels or not x.numel():
            raise ValueError(f"{name} must be [frames, {channels}, height, width], none empty, got {list(x.shape)}")
        dtype, device = self.codec.dtype, self.codec.device
        if x.dtype != dtype or x.device != device:
            raise ValueError(f"{name} must be {dtype} on {device} like the VAE, got {x.dtype} on {x.device}")
        if not self._fresh and x.shape[2:] != self._size:
            had, got = (f"{height}x{width}" for height, width in (self._size, x.shape[2:]))
            raise ValueError(f"{name} must stay {had} until reset(), got {got}")

    def _bind(self, x: Tensor) -> _Side:
        """The side for frames like ``x``: that of the calls before, if it fits."""
        size = x.shape[2], x.shape[3]
        if self._side is None or size != self._size:
            self._side = None  # the old buffers go before there are new ones
            config = self.codec.vae.config
            # In the latents' own dtype: this rounding is part of the reference (docs/model.md 7.1).
            self._mean, self._std = (x.new_tensor(values) for values in (config.latent_mean, config.latent_std))
            self._side, self._size = self._new_side(size, self._new_graphs), size
        return self._side

    def _run(self, call: Callable[..., Tensor], *args: object) -> Tensor:
        try:
            return call(*args)
        except BaseException:  # out of memory, say: a half-advanced state is nothing to go on from
            self.reset()
            raise


class DecoderStream(_Stream[CausalDecoder]):
    """Latents in, pixels out: T latents give 4T frames, and 4T - 3 on a fresh stream.

    codec: see ``backends.codec_for``; one serves any number of streams. new_graphs: what calls are captured with, for
    each size of frames anew, where the codec can be captured. band: decode these rows of the pictures alone; latents
    are whole all the same.
    """

    def __init__(self, codec: Codec, new_graphs: NewGraphs = None, band: Band | None = None):
        new_side = functools.partial(codec.new_decoder, band=band) if band else codec.new_decoder
        super().__init__(codec, new_side, new_graphs)
        self._band = band

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [F, 3, 8h, 8w] from normalised ``latents`` [T, z_dim, h, w], both in the VAE's dtype.

        Pixels are channels-last in memory; only a TAE's are clamped to [-1, 1]. Of a band's height b they are 8b high.
        Raises ValueError naming ``latents`` if shape, dtype or device do not fit, or ``band`` if they have no such row.
        """
        return self._decode(latents, latents.dtype).permute(0, 3, 1, 2)

    def decode_uint8(self, latents: Tensor) -> Tensor:
        """``decode`` as pictures: uint8 [F, 8h, 8w, 3], or 8b rows of them, see ``autoencoder.to_uint8``."""
        return self._decode(latents, torch.uint8)

    @torch.no_grad()
    def _decode(self, latents: Tensor, dtype: torch.dtype) -> Tensor:
        """Frames [F, 8h, 8w, 3] of the dtype."""
        vae = self.codec.vae
        self._check("latents", latents, vae.config.z_dim)
        if self._band:
            self._band.rows(latents.shape[2])
        side = self._bind(latents)
        z = vae.denormalise(latents.permute(0, 2, 3, 1), self._mean, self._std).contiguous()
        return self._run(side.decode, z, dtype)


class EncoderStream(_Stream[CausalEncoder]):
    """Pixels in, latents out: 4T frames give T latents; a fresh stream takes one frame more for one latent more.

    codec, new_graphs: as a ``DecoderStream``'s. in_parts: one latent frame at a time, in about half of the memory.
    """

    def __init__(self, codec: Codec, new_graphs: NewGraphs = None, in_parts: bool = False):
        if codec.vae.encoder is None:
            raise ValueError("vae must have its encoder, this one was built with encoder=False")
        new_side = functools.partial(codec.new_encoder, in_parts=True) if in_parts else codec.new_encoder
        super().__init__(codec, new_side, new_graphs)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Normalised latents [T, z_dim, H/8, W/8] from ``frames`` [F, 3, H, W] in [-1, 1], both in the VAE's dtype.

        F is 1 + 4k on a fresh stream and 4k later. A fresh stream also takes 4k frames, for k latents. The last three
        are encoded into the state but not yet in a latent (as in scope when video begins mid-stream). Raises
        ValueError naming ``frames`` if its number, size, dtype or device do not fit.
        """
        self._check("frames", frames, 3)
        fresh, (count, _, height, width) = int(self._fresh), frames.shape
        if height % 8 or width % 8:
            raise ValueError(f"frames must have sides that are multiples of 8, got {height}x{width}")
        if count % 4 not in (0, fresh):
            raise ValueError(f"frames must number {'1 + 4k or 4k on a fresh stream' if fresh else '4k'}, got {count}")
        side = self._bind(frames)
        mu = self._run(side.encode, frames.permute(0, 2, 3, 1))
        return self.codec.vae.normalise(mu, self._mean, self._std).permute(0, 3, 1, 2).contiguous()
