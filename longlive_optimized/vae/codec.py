"""The interface of a backend: what a stream asks of whatever computes a VAE.

A ``Codec`` has the weights, once for all streams. For each video it makes a decoder or an encoder, which has that
video's causal state: what its layers remember of past frames. Another backend, or a VAE on another device, is one more
``Codec``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from .autoencoder import Autoencoder
from .band import Band


class Graphs(Protocol):
    """Runs work that reads and writes fixed buffers only: as it is, or by replaying a CUDA graph of it."""

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do ``work``; ``key`` names all in it that a graph cannot follow."""


NewGraphs = Callable[[], Graphs] | None  # None: calls run as they are


class Causal(Protocol):
    """One video on its way through a network, all frames of one size."""

    fresh: bool  # no frame has been seen: a video's first frame is apart in time

    def reset(self) -> None:
        """Back to before the first frame, in the same buffers."""


class CausalDecoder(Causal, Protocol):
    def decode(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        """Latents of the network's own scale [T, h, w, z_dim] to [F, 8h, 8w, 3]; F is 4T, or 4T - 3 where fresh.

        A band's decoder takes all rows too, and gives eight for each of its own.

        ``dtype`` is that of ``z``, for pixels, or uint8, for pictures.
        """
        ...


class CausalEncoder(Causal, Protocol):
    def encode(self, frames: Tensor) -> Tensor:
        """Pixels [F, 8h, 8w, 3] in [-1, 1] to latents of the network's own scale [T, h, w, z_dim].

        F is 4T. Where fresh it is 4T - 3, or 4T, of which the last three are then in no latent yet.
        """
        ...


class Codec(Protocol):
    """A VAE on one backend, as it is when this is made: with other weights, or moved, it needs another codec."""

    in_parts: bool  # whether one latent frame at a time passes, for the same result in less memory
    copies: bool  # whether it has weights of its own: the VAE's may then be moved, to the host say
    dtype: torch.dtype  # of latents and frames
    device: torch.device

    @property
    def vae(self) -> Autoencoder: ...

    @property
    def precision(self) -> str:
        """What most of its convolutions run in: ``int8``, or its dtype, ``bf16`` or ``float32``."""
        ...

    @property
    def saturated(self) -> int:
        """How many values were too large for int8 so far, in all streams; 0 where nothing is int8. Does not wait for
        the device: calls under way are not in it yet. What a band computes beyond its own rows counts too."""
        ...

    def new_decoder(self, size: tuple[int, int], new_graphs: NewGraphs, band: Band | None = None) -> CausalDecoder:
        """For latents of this height and width. ``new_graphs`` makes what calls are captured with, if they can be.

        band: of the pictures' rows those alone. Raises ValueError naming it if latents of this height have no such.
        """
        ...

    def new_encoder(self, size: tuple[int, int], new_graphs: NewGraphs, in_parts: bool = False) -> CausalEncoder:
        """For frames of this height and width; likewise. ``in_parts`` as the codec's, for this one alone."""
        ...


def split_frames(frames: Tensor, group: int, first: int) -> tuple[Tensor, ...]:
    """Groups of ``group`` frames, the first group with ``first`` more; a remainder of three joins the last group."""
    return frames.tensor_split([*range(group + first, len(frames) - 3, group)])


def join(parts: list[Tensor]) -> Tensor:
    """All parts as one tensor, without a copy where there is one only."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
