"""Streams in batches, as the engine makes them one by one: few steps a block, clean context, recache at a switch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..engine.sampler import Step
from ..model.transformer import Transformer
from ..video_time import BLOCK_FRAMES
from .forward import Memory, forward
from .script import Script


class Streams:
    """B streams under way, all at the same latent frame; prompts [B, text_len, text_dim]."""

    def __init__(self, model: Transformer, prompts: Tensor, window: int = 12, positions: str = "relative"):
        self.model, self.prompts, self.window, self.positions = model, prompts, window, positions
        self.position = 0
        self.history: Tensor | None = None  # clean latents [B, up to window, C, h, w]
        self._frames: tuple[int, ...] = ()  # that a block sees
        self._memory: Memory | None = None  # their keys and values

    @torch.no_grad()
    def denoise(self, noise: Sequence[Tensor], schedule: Sequence[Step]) -> Tensor:
        """The next block's clean latents [B, 3, C, h, w].

        noise: for each step [B, 3, C, h, w]: the start, then the re-noisings. docs/model.md 4.3.
        """
        x, script = noise[0], self._script()
        script.noisy(self.position)
        for i, step in enumerate(schedule):
            flow, _ = self._forward(script, x, step.timestep)
            x = x - step.sigma * flow.to(x.dtype)
            if i + 1 < len(schedule):
                x = (1 - schedule[i + 1].sigma) * x + schedule[i + 1].sigma * noise[i + 1]
        return x

    @torch.no_grad()
    def keep(self, latents: Tensor) -> None:
        """The block is made: its clean pass, and on to the next."""
        start = self.position
        self.history = latents if self.history is None else torch.cat((self.history, latents), 1)[:, -self.window :]
        self.position += BLOCK_FRAMES
        self._update(lambda script: script.clean(start))

    @torch.no_grad()
    def switch(self, prompts: Tensor) -> None:
        """Other prompts from here on; the window is recomputed under them."""
        self.prompts = prompts
        if self.position:
            self._update(lambda script: script.recache(self.position, 0))

    def _script(self) -> Script:
        return Script(self.window, positions=self.positions, memory=self._frames)

    def _forward(self, script: Script, x: Tensor, timestep: float) -> tuple[Tensor, Memory]:
        timesteps = torch.full(x.shape[:2], timestep, device=x.device)
        return forward(self.model, x, timesteps, self.prompts[:, None], script, self._memory)

    def _update(self, append: Callable[[Script], None]) -> None:
        assert self.history is not None
        script = self._script()
        append(script)
        _, memory = self._forward(script, self.history[:, -len(script.rows) :], 0.0)
        self._frames, self._memory = tuple(script.held), memory.select(list(script.held.values()))
