"""Streams in batches, as the engine makes them one by one: few steps a block, clean context, recache at a switch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine.sampler import TIMESTEP_SHIFT, Step
from ..model.transformer import Transformer
from .forward import Memory, Result, forward
from .script import BLOCK, Script


class Context(NamedTuple):
    """What a block sees of the past: keys and values of the frames named."""

    frames: tuple[int, ...] = ()
    memory: Memory | None = None


class Streams:
    """B streams under way, all at the same latent frame; prompts [B, text_len, text_dim]."""

    def __init__(self, model: Transformer, prompts: Tensor, window: int = 12, positions: str = "relative"):
        self.model, self.prompts, self.window, self.positions = model, prompts, window, positions
        self.position = 0
        self.context = Context()
        self.history: Tensor | None = None  # clean latents [B, up to window, C, h, w]
        # The context before the last clean pass or recache, and that pass: what a gradient is taken through.
        self.before: tuple[Context, Callable[[Script], None], int] = (self.context, lambda script: None, 0)

    def script(self, context: Context) -> Script:
        return Script(self.window, positions=self.positions, memory=context.frames)

    def flows(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Flow for the next block at n noise levels at once: x [B, n, 3, C, h, w], timesteps [n]."""
        return self._flows(self.script(self.context), self.context.memory, x, timesteps)

    def flows_with_context(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """``flows``, with the last clean pass or recache made anew, so that its keys and values get a gradient."""
        context, last_pass, frames = self.before
        script = self.script(context)
        last_pass(script)
        past = self.history[:, len(self.history[0]) - frames :] if frames else None
        return self._flows(script, context.memory, x, timesteps, past)

    def _flows(self, script: Script, memory: Memory | None, x: Tensor, timesteps: Tensor, past=None) -> Tensor:
        for _ in range(x.shape[1]):
            script.noisy(self.position)
        times = timesteps.repeat_interleave(BLOCK).expand(len(x), -1)
        rows = x.flatten(1, 2)
        if past is not None:
            rows, times = torch.cat((past, rows), 1), torch.cat((times.new_zeros(past.shape[:2]), times), 1)
        flow = self._forward(script, memory, rows, times).flow.to(x.dtype)
        return flow[:, -x.shape[1] * BLOCK :].unflatten(1, (-1, BLOCK))

    def _forward(self, script: Script, memory: Memory | None, rows: Tensor, times: Tensor) -> Result:
        return forward(self.model, rows, times, self.prompts[:, None], script, memory)

    def _beside_no_prompt(self) -> Streams:
        """These streams, and behind them in the batch the same without a prompt."""
        streams, (frames, memory) = copy.copy(self), self.context
        streams.prompts = torch.cat((self.prompts, torch.zeros_like(self.prompts)))
        streams.context = Context(frames, memory.twice() if memory else None)
        return streams

    @torch.no_grad()
    def denoise(self, noise: Sequence[Tensor], schedule: Sequence[Step]) -> tuple[Tensor, Tensor]:
        """The next block's clean latents [B, 3, C, h, w], and what each step was given [B, n, 3, C, h, w].

        noise: for each step [B, 3, C, h, w]: the start, then the re-noisings. Model specification 4.3.
        """
        x, inputs = noise[0], []
        for i, step in enumerate(schedule):
            inputs.append(x)
            timestep = torch.full((1,), step.timestep, device=x.device)
            x = x - step.sigma * self.flows(x[:, None], timestep)[:, 0]
            if i + 1 < len(schedule):
                x = (1 - schedule[i + 1].sigma) * x + schedule[i + 1].sigma * noise[i + 1]
        return x, torch.stack(inputs, 1)

    @torch.no_grad()
    def solve(self, x: Tensor, sigmas: Tensor, steps: int, guidance: float = 1.0) -> Tensor:
        """Where the flow takes x [B, n, 3, C, h, w] from noise levels sigmas [n] to 0, in Euler steps.

        guidance: how far beyond the flow without a prompt, towards and past the one with it.
        """
        u = sigmas / (TIMESTEP_SHIFT - (TIMESTEP_SHIFT - 1) * sigmas)  # equal steps where the model was trained
        grid = torch.linspace(1, 0, steps + 1, device=x.device)[:, None] * u
        grid = TIMESTEP_SHIFT * grid / (1 + (TIMESTEP_SHIFT - 1) * grid)
        streams = self if guidance == 1 else self._beside_no_prompt()
        for now, then in itertools.pairwise(grid):
            if guidance == 1:
                flow = streams.flows(x, 1000 * now)
            else:
                prompted, free = streams.flows(x.repeat(2, 1, 1, 1, 1, 1), 1000 * now).chunk(2)
                flow = torch.lerp(free, prompted, guidance)
            x = x + (then - now)[:, None, None, None, None] * flow
        return x

    @torch.no_grad()
    def keep(self, latents: Tensor) -> None:
        """The block is made: its clean pass, and on to the next."""
        start = self.position
        self.history = latents if self.history is None else torch.cat((self.history, latents), 1)[:, -self.window :]
        self.position += BLOCK
        self._update(lambda script: script.clean(start), BLOCK)

    @torch.no_grad()
    def switch(self, prompts: Tensor) -> None:
        """Other prompts from here on; the window is recomputed under them."""
        self.prompts = prompts
        if self.position:
            script = self.script(self.context)
            script.recache(self.position, 0)
            self._update(lambda script: script.recache(self.position, 0), len(script.rows))

    def _update(self, last_pass: Callable[[Script], None], frames: int) -> None:
        script = self.script(self.context)
        last_pass(script)
        rows = self.history[:, -frames:]
        result = self._forward(script, self.context.memory, rows, rows.new_zeros(rows.shape[:2]))
        self.before = self.context, last_pass, frames
        self.context = Context(tuple(script.held), result.memory.select(list(script.held.values())))
