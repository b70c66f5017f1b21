"""Stage 2: the transformer and the text encoder, by flow matching on clips, with every block's past given.

All blocks of a stream are denoised at once, each at its own noise level, from the clean latents before it, as the
script says. Pasts are not only the clips' own: half are disturbed by noise, some are the network's guesses, so that it
goes on well from what it will have made itself. Where a scene begins, the noise decides on its layout (``coupling``),
so that few steps can make it: half of the noise levels are those of the presets' steps.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..engine.sampler import TIMESTEP_SHIFT, make_schedule
from ..model.transformer import Transformer
from . import coupling
from .adherence import tally, videos_of
from .checkpoint import load
from .data import Bank, Clips, tokens
from .forward import forward
from .networks import Size, new_text, new_transformer, new_vae
from .sample import Streams
from .score import score
from .script import BLOCK, Script
from .stage import Sample
from .tasks import CONTEXT, NOW, PAST, SINKS, Task, draw_task
from .world import sample_scene

_DROPPED = 0.1  # share of streams that are denoised without a prompt: what guidance is measured against
_DISTURBED = 0.3  # largest noise level in the past that is not declared
_GUESSES_FROM, _GUESSES_EVERY = 0.25, 3  # share of the training after which pasts are guesses; and in which steps
_DECIDES = 0.9  # noise level from which the noise says where shapes stand; below, what lies under it does
_STEPS = make_schedule((1000, 750, 500, 250), "longlive")
_GUIDANCE = 1.5  # that samples in many steps are made with


class _Rows(NamedTuple):
    """A task's rows as indices on the device."""

    which: Tensor  # clip, or the sinks' clip
    frame: Tensor  # of it
    step: Tensor  # the pass that a row is in
    is_noisy: Tensor
    noisy: Tensor  # the rows that are
    guess: Tensor  # for each row, the noisy row of the same picture, or itself


class _Passes(nn.Module):
    """The network on one script: ``forward`` with nothing but tensors."""

    def __init__(self, model: Transformer, script: Script):
        super().__init__()
        self.model, self.script = model, script

    def forward(self, x: Tensor, timesteps: Tensor, prompts: Tensor) -> Tensor:
        return forward(self.model, x, timesteps, prompts, self.script).flow


@cache
def _rows(task: Task, device: torch.device) -> _Rows:
    rows = task.script.rows
    guess = {source: i for i, source in enumerate(task.sources) if rows[i].noisy}
    columns = (
        [which for which, _ in task.sources],
        [frame for _, frame in task.sources],
        [next(n for n, step in enumerate(task.script.passes) if i in step.rows) for i in range(len(rows))],
        [row.noisy for row in rows],
        [i for i, row in enumerate(rows) if row.noisy],
        [guess.get(source, i) for i, source in enumerate(task.sources)],
    )
    return _Rows(*(torch.tensor(column, device=device) for column in columns))


class FlowStage:
    """Trains ``flow.pt``: transformer and text encoder."""

    name, share, batch, rate = "flow", 0.5, 64, 1e-3
    clips = 6000  # in the bank

    def __init__(self, size: Size, out: Path, device: torch.device, dtype: torch.dtype, seed: int):
        self.size, self.device = size, device
        self.vae = new_vae(size, seed).requires_grad_(False)
        load(out / "vae.pt", {"vae": self.vae})
        self.vae.to(device, dtype)
        self.model, self.text = (new(size, seed).to(device, dtype) for new in (new_transformer, new_text))
        self.parts: dict[str, nn.Module] = {"model": self.model, "text": self.text}
        self._levels = torch.tensor([step.sigma for step in _STEPS], device=device)
        self._passes: dict[Task, nn.Module] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._steps = 0

    def begin(self, seed: int) -> None:
        """Draw from other random numbers from here on, and other clips."""
        self.random = Random(seed)
        self.bank = Bank(self.vae, self.size, self.clips, seed, self.device)

    def losses(self, batch: int, progress: float) -> dict[str, Tensor]:
        """The flow's mean squared error over all denoised frames, and over those of the script's first block."""
        task = draw_task(self.random)
        rows = _rows(task, self.device)
        clip, other = self.bank.draw(task.cut, batch), self.bank.draw(task.cut, batch)
        if self.random.random() < 0.5:
            other = clip  # the sinks are the stream's own
        latents = torch.stack((clip.latents, other.latents))[rows.which, :, rows.frame].transpose(0, 1)
        prompts = self._prompts(task, clip, other)
        self._steps += 1
        if progress >= _GUESSES_FROM and self._steps % _GUESSES_EVERY == 0:
            past = self._guesses(task, latents, prompts)
        else:
            past = self._disturbed(latents)
        sigma, noise = self._noise_levels(rows, batch), torch.randn_like(latents)
        under = self._decide(task, clip, sigma, latents, noise)
        s = sigma[:, :, None, None, None]
        x = torch.where(rows.is_noisy[:, None, None, None], (1 - s) * under + s * noise, past)
        flow = self._flow(task, x, 1000 * sigma, prompts)
        # The flow leads from x to the clip, also where something else lies under the noise.
        wanted = noise - latents + (1 - s) / s.clamp(min=_DECIDES) * (under - latents)
        errors = (flow.float() - wanted).square().mean((0, 2, 3, 4))[rows.noisy]
        return {"loss": errors.mean(), "first": errors[:BLOCK].mean(), "rest": errors[BLOCK:].mean()}

    @torch.no_grad()
    def sample(self, count: int, blocks: int = 5, steps: int = 16) -> Sample:
        """Streams of held-out prompts, made in the engine's four steps, and solved in many; pictures of the former."""
        scenes = [sample_scene(self.random, held_out=True) for _ in range(count)]
        prompts = self.text(tokens(scenes, self.random, self.device), self.size.model.text_len)
        shape = count, 1, BLOCK, self.size.model.in_dim, self.size.height // 8, self.size.width // 8

        def few(streams: Streams) -> Tensor:
            return streams.denoise(list(torch.randn(len(_STEPS), *shape, device=self.device)[:, :, 0]), _STEPS)[0]

        def many(streams: Streams) -> Tensor:
            noise = torch.randn(shape, device=self.device)
            return streams.solve(noise, noise.new_ones(1), steps, _GUIDANCE)[:, 0]

        table, videos = {}, {}
        for name, make in (("", few), (f" in {steps} steps", many)):
            streams, made = Streams(self.model, prompts), []
            for _ in range(blocks):
                made.append(make(streams))
                streams.keep(made[-1])
            videos[name] = videos_of(self.vae, torch.cat(made, 1))
            scores = tally(score(video, scene) for video, scene in zip(videos[name], scenes, strict=True))
            table |= {f"{kind}{name}": share for kind, share in scores.items()}
        return Sample(table, videos[""], scenes)

    def finish(self) -> None:
        """Nothing is left to do."""

    def _flow(self, task: Task, *given: Tensor) -> Tensor:
        """Flow of a task's rows from latents, timesteps and prompts, until the next call."""
        if task not in self._passes:
            self._passes[task] = self._new_passes(task, *given)
        return self._passes[task](*given)

    @torch.enable_grad()
    def _new_passes(self, task: Task, x: Tensor, timesteps: Tensor, prompts: Tensor) -> nn.Module:
        """The network on the task's script; on a GPU a graph, as its kernels are short. One pool serves all graphs:
        of each, only what comes out is used after it has run."""
        passes = _Passes(self.model, task.script)
        if self.device.type != "cuda":
            return passes
        sample = x.detach().clone(), timesteps.detach().clone(), prompts.detach().clone().requires_grad_()
        return torch.cuda.make_graphed_callables(passes, sample, pool=self._pool)

    def _prompts(self, task: Task, clip: Clips, other: Clips) -> Tensor:
        """Embeddings [B, 4, text_len, text_dim] of NOW, CONTEXT, PAST and SINKS; one stream keeps to one wording."""
        ids = {CONTEXT: clip.after, PAST: clip.before, SINKS: other.before}
        if other is clip:
            ids[SINKS] = ids[CONTEXT] if task.cut is None else ids[PAST]
        roles = CONTEXT, PAST, SINKS
        encoded = self.text(torch.cat([ids[role] for role in roles]), self.size.model.text_len)
        encoded = dict(zip(roles, encoded.chunk(len(roles)), strict=True))
        kept = torch.rand(len(clip.latents), 1, 1, device=self.device) >= _DROPPED
        encoded[NOW] = encoded[CONTEXT] * kept
        return torch.stack([encoded[role] for role in (NOW, CONTEXT, PAST, SINKS)], 1)

    def _noise_levels(self, rows: _Rows, batch: int) -> Tensor:
        """A noise level [B, rows] for each denoising pass and 0 for clean ones: half of them of the presets' steps, the
        others even over the shifted schedule."""
        u, step = torch.rand(2, batch, len(rows.step), device=self.device)[:, :, rows.step]
        level = TIMESTEP_SHIFT * u / (1 + (TIMESTEP_SHIFT - 1) * u)
        levels = self._levels[(step * 2 * len(self._levels)).long().clamp(max=len(self._levels) - 1)]
        return rows.is_noisy * torch.where(step < 0.5, levels, level)

    def _decide(self, task: Task, clip: Clips, sigma: Tensor, latents: Tensor, noise: Tensor) -> Tensor:
        """Where a scene begins in much noise, let the noise [B, R, C, h, w] decide on its layout, in place.

        Returns what lies under the noise: the latents, or, in half of the streams that begin so, another layout, which
        is what a step finds that follows the first one, as each draws noise of its own.
        """
        first = next(i for i, row in enumerate(task.script.rows) if row.noisy)
        begins = task.script.rows[first].frame == 0
        if not begins and task.cut is None:
            return latents
        decides = (sigma[:, first] >= _DECIDES)[:, None, None, None]
        write = coupling.write if begins else coupling.write_signs
        noise[:, first] = torch.where(decides, write(noise[:, first], clip.layout), noise[:, first])
        if not begins:
            return latents
        under, block = latents.clone(), slice(first, first + BLOCK)
        other = (decides & (torch.rand_like(sigma[:, :1, None, None]) < 0.5))[:, None]
        under[:, block] = torch.where(other, clip.elsewhere, under[:, block])
        return under

    def _disturbed(self, latents: Tensor) -> Tensor:
        """Latents with a noise of which the network is not told, in half of the streams."""
        strength = _DISTURBED * torch.rand(len(latents), 1, 1, 1, 1, device=self.device)
        return latents + strength * (torch.rand_like(strength) < 0.5) * torch.randn_like(latents)

    @torch.no_grad()
    def _guesses(self, task: Task, latents: Tensor, prompts: Tensor) -> Tensor:
        """What the network makes of the clips through some noise: its own errors, but in the clips' places."""
        rows = _rows(task, self.device)
        sigma = rows.is_noisy * (0.3 + 0.6 * torch.rand(len(latents), 1, device=self.device))
        s = sigma[:, :, None, None, None]
        x = (1 - s) * latents + s * torch.randn_like(latents)
        made = x - s * self._flow(task, x, 1000 * sigma, prompts).float()
        return made[:, rows.guess]  # where nothing was denoised, made is the clip itself
