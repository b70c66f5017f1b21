"""Where a stream's random numbers come from: torch's generator, drawn in a fixed order (docs/model.md 4.4)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class BlockNoise:
    """A fresh generator for each block, seeded ``seed + start frame``: any block can be drawn on its own.

    Streams with seeds s and s + 3 therefore draw the same noise, one block apart.
    """

    def __init__(self, seed: int, like: Tensor):
        self.seed, self.like = seed, like

    def block(self, start: int, frames: int) -> Iterator[Tensor]:
        """Noise [frames, C, h, w]: first the block's start, then one for each re-noising."""
        generator = torch.Generator(self.like.device).manual_seed(self.seed + start)
        while True:
            yield _draw(frames, self.like, generator)


class VideoNoise:
    """The published scripts' order: the whole video's start noise in one draw, then the re-noisings, block by block."""

    def __init__(self, seed: int, like: Tensor, total_frames: int):
        self.generator = torch.Generator(like.device).manual_seed(seed)
        self.like, self.start = like, _draw(total_frames, like, self.generator)
        self._last = -1, self.generator.get_state()

    def state(self, start: int) -> Tensor:
        """The generator's, uint8 on the CPU, before the block at ``start``, which is the next one."""
        return self._last[1] if start == self._last[0] else self.generator.get_state()

    def block(self, start: int, frames: int) -> Iterator[Tensor]:
        """As in BlockNoise; blocks must be asked for in order. Raises ValueError past the end of the video."""
        if start + frames > len(self.start):
            raise ValueError(f"the stream was opened for {len(self.start)} latent frames and has none left")
        if start == self._last[0]:
            self.generator.set_state(self._last[1])  # a block that failed is drawn again as it was
        self._last = start, self.generator.get_state()
        yield self.start[start : start + frames]
        while True:
            yield _draw(frames, self.like, self.generator)


def _draw(frames: int, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(frames, *like.shape, dtype=like.dtype, device=like.device, generator=generator)
