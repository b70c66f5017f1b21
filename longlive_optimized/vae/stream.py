"""Video through the VAE block by block: a stream owns the causal state, the model owns the weights.

Any grouping of the same frames into calls gives the same result as one call with all of them; only a TAE's encoder
fills up its first call, by repeating the last frame. A stream is bound to its first call's frame size until ``reset``;
a call that fails in its midst resets it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..kernels import native
from .autoencoder import Autoencoder
from .decoder_state import LATENTS, DecoderState
from .encoder_state import FRAMES, EncoderState
from .model import WanVae
from .packed_state import Graphs, PackedState
from .state import CausalState

_MAX_ELEMENTS = 2**31 - 1  # of one tensor: convolution kernels index with 32 bits


def to_uint8(pixels: Tensor) -> Tensor:
    """trunc(255 clamp(x / 2 + 1/2, 0, 1)) in float32, whatever the dtype of ``pixels``."""
    return pixels.float().mul(0.5).add_(0.5).clamp_(0, 1).mul_(255).to(torch.uint8)


class _Stream(ABC):
    """What both directions share.

    packed: use the fused convolutions, for a Wan VAE; None: where they are fast. They hold all memory that they need
    from the first call to the last. new_graphs: what those calls are captured with, for each size of frames anew.
    """

    def __init__(self, vae: Autoencoder, packed: bool | None = None, new_graphs: Callable[[], Graphs] | None = None):
        if packed and not isinstance(vae, WanVae):
            raise ValueError(f"vae must be a Wan VAE to be packed, got {vae.config}")
        self.vae, self.packed = vae, _packed_is_fast(vae) if packed is None else packed
        self._state: CausalState | PackedState = CausalState()
        self._bound: tuple | None = None
        self.use_graphs(new_graphs)

    def use_graphs(self, new_graphs: Callable[[], Graphs] | None) -> None:
        """Capture anew from here on, or not at all."""
        self._new_graphs = new_graphs
        if isinstance(self._state, PackedState):
            self._state.graphs = new_graphs and new_graphs()

    def reset(self) -> None:
        """Forget every frame: the next call starts a new video, of any size. Buffers of the same size are kept."""
        self._state.reset()

    def _check(self, name: str, x: Tensor, channels: int) -> None:
        """Refuse what does not fit before anything is computed or remembered."""
        if x.ndim != 4 or x.shape[1] != channels or not x.numel():
            raise ValueError(f"{name} must be [frames, {channels}, height, width], none empty, got {list(x.shape)}")
        if x.dtype != self.vae.dtype or x.device != self.vae.device:
            wanted = f"{self.vae.dtype} on {self.vae.device} like the VAE"
            raise ValueError(f"{name} must be {wanted}, got {x.dtype} on {x.device}")
        if not self._state.fresh and (*x.shape[2:], x.dtype, x.device) != self._bound:
            bound = "x".join(map(str, self._bound[:2]))
            raise ValueError(
                f"{name} must stay {bound}, {self._bound[2]} on {self._bound[3]} until reset(), "
                f"got {x.shape[2]}x{x.shape[3]}, {x.dtype} on {x.device}"
            )

    def _bind(self, x: Tensor) -> None:
        bound = (*x.shape[2:], x.dtype, x.device)
        if bound != self._bound:
            self._bound, self._state = None, CausalState()  # the old buffers go before there are new ones
            if self.packed:
                self._state = self._packed_state(tuple(x.shape[2:]), self._new_graphs and self._new_graphs())
            self._bound = bound
            # In the latents' own dtype: this rounding is part of the reference (specification 7.1).
            self._mean, self._std = (x.new_tensor(v) for v in (self.vae.config.latent_mean, self.vae.config.latent_std))

    @abstractmethod
    def _packed_state(self, size: tuple[int, int], graphs: Graphs | None) -> PackedState:
        """For frames of this size."""

    def _run(self, model: Callable[[Tensor, CausalState], Tensor], parts: Iterable[Tensor]) -> list[Tensor]:
        try:
            return [model(part, self._state) for part in parts]
        except BaseException:  # out of memory, say: a half-advanced state is nothing to go on from
            self.reset()
            raise


class DecoderStream(_Stream):
    """Latents in, pixels out: T latents give 4T frames, and 4T - 3 on a fresh stream."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [F, 3, 8h, 8w] from normalised ``latents`` [T, z_dim, h, w], both in the VAE's dtype.

        Pixels are channels-last in memory; only a TAE's are clamped to [-1, 1]. Raises ValueError naming ``latents`` if
        shape, dtype or device do not fit.
        """
        return _join(self._decode(latents, latents.dtype)).permute(0, 3, 1, 2)

    def decode_uint8(self, latents: Tensor) -> Tensor:
        """``decode`` as pictures: uint8 [F, 8h, 8w, 3], see ``to_uint8``."""
        return _join(self._decode(latents, torch.uint8))

    def _packed_state(self, size: tuple[int, int], graphs: Graphs | None) -> DecoderState:
        return DecoderState(self.vae.packed_decoder, size, graphs)

    @torch.no_grad()
    def _decode(self, latents: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Frames [F, 8h, 8w, 3] of the dtype, in parts."""
        self._check("latents", latents, self.vae.config.z_dim)
        self._bind(latents)
        z = self.vae.denormalise(latents.permute(0, 2, 3, 1), self._mean, self._std).contiguous()
        if self.packed:
            return self._run(lambda part, state: state.decode(part, dtype), z.split(LATENTS))
        # The largest tensor has four full-size frames per latent.
        per_latent = 4 * 64 * z.shape[1] * z.shape[2] * self.vae.config.full_size_widths[1]
        parts = self._run(self.vae.decode, z.split(max(1, _MAX_ELEMENTS // per_latent)))
        return [to_uint8(frames) for frames in parts] if dtype == torch.uint8 else parts


class EncoderStream(_Stream):
    """Pixels in, latents out: 4T frames give T latents; a fresh stream takes one frame more for one latent more."""

    def __init__(self, vae: Autoencoder, packed: bool | None = None, new_graphs: Callable[[], Graphs] | None = None):
        if vae.encoder is None:
            raise ValueError("vae must have its encoder, this one was built with encoder=False")
        super().__init__(vae, packed, new_graphs)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Normalised latents [T, z_dim, H/8, W/8] from ``frames`` [F, 3, H, W] in [-1, 1], both in the VAE's dtype.

        F is 1 + 4k on a fresh stream and 4k later. A fresh stream takes 4k too, for k latents: the last three frames
        are then in no latent yet, but seen, as scope does it where video begins in the midst of a stream. Raises
        ValueError naming ``frames`` if its number, size, dtype or device do not fit.
        """
        self._check("frames", frames, 3)
        fresh, (count, _, height, width) = int(self._state.fresh), frames.shape
        if height % 8 or width % 8:
            raise ValueError(f"frames must have sides that are multiples of 8, got {height}x{width}")
        if count % 4 not in (0, fresh):
            raise ValueError(f"frames must number {'1 + 4k or 4k on a fresh stream' if fresh else '4k'}, got {count}")
        self._bind(frames)
        x = frames.permute(0, 2, 3, 1)
        if self.packed:
            mu = self._run(lambda part, state: state.encode(part), self._parts(x, FRAMES))
        else:
            x = self.vae.pad_first(x) if count % 4 else x
            # The largest tensor has a group of full-size frames, up to four more (``_parts``) and two past ones.
            group = (_MAX_ELEMENTS // (height * width * self.vae.config.full_size_widths[0]) - 6) // 4 * 4
            mu = self._run(self.vae.encode, self._parts(x.contiguous(), max(4, group)))
        return self.vae.normalise(_join(mu), self._mean, self._std).permute(0, 3, 1, 2).contiguous()

    def _parts(self, x: Tensor, group: int) -> tuple[Tensor, ...]:
        """In groups of frames; on a fresh stream the first has one more, which is a latent of its own.

        Three frames that make no latent stay with those before them.
        """
        single = int(self._state.fresh and isinstance(self.vae, WanVae))  # a TAE's first latent has four frames too
        return x.tensor_split([*range(group + single, len(x) - 3, group)])

    def _packed_state(self, size: tuple[int, int], graphs: Graphs | None) -> EncoderState:
        return EncoderState(self.vae.packed_encoder, size, graphs)


def _packed_is_fast(vae: Autoencoder) -> bool:
    """Whether the library has kernels for all of the causal convolutions, where they lie."""
    full_size = isinstance(vae, WanVae) and vae.config.widths == (96, 192, 384, 384)
    return full_size and vae.dtype == torch.bfloat16 and native.on_hopper(next(vae.decoder.parameters()))


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
