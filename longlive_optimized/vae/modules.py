"""The backend that runs a network's modules: any VAE, dtype and device, on torch's own operators."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plain import dtype_name
from .autoencoder import Autoencoder, to_uint8
from .band import Band, BandRows, rows_of
from .codec import NewGraphs, join, split_frames
from .state import CausalState

_MAX_ELEMENTS = 2**31 - 1  # of one tensor: convolution kernels index with 32 bits


class ModulesCodec:
    """A ``Codec`` over the weights of ``vae`` as they lie. Its tensors come and go, so no graphs are captured.

    in_parts: one latent frame at a time, which may be turned on at any time: a third of the memory that comes and goes.
    dtype: of latents and pixels, if it is not the VAE's; pictures are not rounded to it in between.
    """

    copies, saturated = False, 0

    def __init__(self, vae: Autoencoder, in_parts: bool = False, dtype: torch.dtype | None = None):
        self.vae, self.dtype, self.device = vae, dtype or vae.dtype, vae.device
        self.precision, self.in_parts = dtype_name(vae.dtype), in_parts

    def new_decoder(self, size: tuple[int, int], new_graphs: NewGraphs, band: Band | None = None) -> ModulesDecoder:
        return ModulesDecoder(self, size, band)

    def new_encoder(self, size: tuple[int, int], new_graphs: NewGraphs, in_parts: bool = False) -> ModulesEncoder:
        return ModulesEncoder(self, in_parts)


class _Modules(CausalState):
    def __init__(self, codec: ModulesCodec, rows: BandRows | None = None):
        super().__init__(rows)
        self._codec, self._vae = codec, codec.vae


class ModulesDecoder(_Modules):
    """See ``CausalDecoder``; ``size`` is the latents' height and width.

    The library may compute a band by another algorithm than the whole: then they differ by roundings.
    """

    def __init__(self, codec: ModulesCodec, size: tuple[int, int], band: Band | None = None):
        super().__init__(codec, rows_of(band, size[0], codec.vae.reaches) if band else None)

    def decode(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        # The largest tensor has four full-size frames per latent.
        height = self.rows.heights[-1] if self.rows else 8 * z.shape[1]
        per_latent = 4 * height * 8 * z.shape[2] * self._vae.config.full_size_widths[1]
        most = 1 if self._codec.in_parts else max(1, _MAX_ELEMENTS // per_latent)
        parts = (self._vae.decode(part, self) for part in z.to(self._vae.dtype).split(most))
        return join([to_uint8(frames) if dtype == torch.uint8 else frames.to(dtype) for frames in parts])


class ModulesEncoder(_Modules):
    """See ``CausalEncoder``."""

    def __init__(self, codec: ModulesCodec, in_parts: bool = False):
        super().__init__(codec)
        self._in_parts = in_parts

    def encode(self, frames: Tensor) -> Tensor:
        count, height, width, _ = frames.shape
        x = (self._vae.pad_first(frames) if count % 4 else frames).to(self._vae.dtype).contiguous()
        # The largest tensor has a group of full-size frames, up to four more (``split_frames``) and two past ones.
        group = (_MAX_ELEMENTS // (height * width * self._vae.config.full_size_widths[0]) - 6) // 4 * 4
        group = 4 if self._in_parts or self._codec.in_parts else max(4, group)
        parts = split_frames(x, group, int(self.fresh and self._vae.first_frame_alone))
        return join([self._vae.encode(part, self) for part in parts]).to(frames.dtype)
