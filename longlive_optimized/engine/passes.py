"""A stream's passes through the network, over buffers whose addresses never change, so that they can be captured."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..kernels.x0_renoise import x0_renoise
from ..model.control import PassControl
from ..model.precision import PLAIN, Policy
from ..model.ring_cache import RingCache
from ..model.transformer import CrossCache, Modulation, Transformer
from .graphs import GraphCache
from .sampler import Step


class BlockInputs:
    """What the denoising of a block of F latent frames in n steps reads: noise [n, F, C, h, w], noise levels [n], and
    the steps' modulation."""

    def __init__(self, model: Transformer, latent: Tensor, frames: int, steps: int):
        self._model = model
        self.noise = latent.new_empty(steps, frames, *latent.shape)
        self.sigmas = torch.zeros(steps, dtype=torch.float64, device=latent.device)
        self.modulation = model.modulation(self.sigmas)
        self._schedule: tuple[Step, ...] | None = None

    def set_schedule(self, schedule: tuple[Step, ...]) -> None:
        """Take over new timesteps and noise levels."""
        if schedule == self._schedule:
            return
        self._schedule = None  # if this fails half-way, neither is there
        device = self.sigmas.device
        host = torch.tensor(schedule, dtype=torch.float64, device="cpu", pin_memory=device.type == "cuda")
        timesteps, sigmas = host.to(device, non_blocking=True).unbind(1)  # the device may be busy with a recache
        self.sigmas.copy_(sigmas)
        for mine, new in zip(self.modulation, self._model.modulation(timesteps), strict=True):
            mine.copy_(new)
        self._schedule = schedule

    def forget_schedule(self) -> None:
        """Compute the modulation anew next time: the network's weights have changed."""
        self._schedule = None

    def draw(self, draws: Iterator[Tensor]) -> None:
        """Fill the noise in the order of ``draws``: the block's start, then one for each re-noising."""
        for place in self.noise:
            place.copy_(next(draws))


class Passes:
    """The two kinds of pass of one stream: denoising a block, and the context pass.

    A pass's ``policy`` says which of its products run in 8 bits; the ring, whether its attention does.
    """

    def __init__(
        self,
        model: Transformer,
        ring: RingCache,
        latent: Tensor,
        graphs: GraphCache,
        control: PassControl | None = None,
    ):
        self.control = control
        self.model, self.ring, self.graphs, self._latent = model, ring, graphs, latent
        self.cross: CrossCache | None = None
        self._inputs: dict[tuple[int, int], BlockInputs] = {}
        self._latents: dict[int, Tensor] = {}
        self._context = self._context_modulation()

    def set_prompt(self, embedding: Tensor) -> None:
        """Attend to another prompt from here on. If this fails it must be repeated before the next pass."""
        self.cross = self.model.cross_cache(embedding, self.cross)
        if self.control:
            self.control.set_prompt(self.model.text(embedding))

    def weights_changed(self) -> None:
        """Recompute in place what was computed with the old weights; the prompt is the caller's."""
        for mine, new in zip(self._context, self._context_modulation(), strict=True):
            mine.copy_(new)
        for inputs in self._inputs.values():
            inputs.forget_schedule()

    def inputs(self, frames: int, steps: int) -> BlockInputs:
        """Where a block's noise and schedule go."""
        if (frames, steps) not in self._inputs:
            self._inputs[frames, steps] = BlockInputs(self.model, self._latent, frames, steps)
        return self._inputs[frames, steps]

    def denoise(self, start: int, inputs: BlockInputs, policy: Policy = PLAIN, *, controlled: bool = False) -> Tensor:
        """Clean latents [F, C, h, w] of the block that starts at latent frame ``start``; ``controlled`` by the context
        that ``control`` has.

        Their buffer is reused by the next pass of as many frames, a context pass included.
        """
        steps, frames = inputs.noise.shape[:2]
        self.ring.seek_on_host(start, frames)
        out = self.buffer(frames)
        steered = {"hints": self.control.hints} if self.control and controlled else {}

        def work() -> None:
            self.ring.advance()
            x = inputs.noise[0]
            for i in range(steps):
                flow = self.model(x, inputs.modulation.at(i), self.ring, self.cross, policy, **steered)
                x = x0_renoise(x, flow, inputs.noise[i + 1] if i + 1 < steps else None, inputs.sigmas, i)
            out.copy_(x)

        ring = self.ring.rotates_sinks, self.ring.keys_read
        kernels = "denoise", self._latent.shape, frames, *ring, policy, bool(steered)
        self.graphs.run((*kernels, steps), work, kernels)
        return out

    def context(self, latents: Tensor, policy: Policy = PLAIN) -> None:
        """Write the keys and values of clean latents [F, C, h, w] to where the ring points."""
        frames = len(latents)
        x = self.buffer(frames)
        x.copy_(latents)

        def work() -> None:
            self.model(x, self._context, self.ring, self.cross, policy, store_only=True)

        kernels = "context", self._latent.shape, frames, self.ring.keys_read, policy
        self.graphs.run(kernels, work, kernels)

    def _context_modulation(self) -> Modulation:
        return self.model.modulation(torch.zeros(1, dtype=torch.float64, device=self._latent.device))

    def buffer(self, frames: int) -> Tensor:
        """Where the latents of passes of so many frames lie."""
        if frames not in self._latents:
            self._latents[frames] = self._latent.new_empty(frames, *self._latent.shape)
        return self._latents[frames]
