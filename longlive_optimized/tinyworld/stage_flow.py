"""Stage 2: the transformer and the text encoder, by flow matching on clips, with every block's past given.

All blocks of a stream are denoised at once, each at its own noise level, from the clean latents before it, as the
script says. Pasts are not only the clips' own: half are disturbed by noise, some are the network's guesses, so that it
goes on well from what it will have made itself. Where a stream begins, or shows another scene than its prompt says, the
noise decides on the layout (``coupling``); whatever follows is decided by the past: so few steps can make it, and half
of the noise levels are those of the presets' steps. Such first blocks are the hardest to learn and the quickest to
train on: they come first, and most often.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..engine.sampler import TIMESTEP_SHIFT, make_schedule
from ..model.transformer import Transformer
from ..video_time import BLOCK_FRAMES, pixel_of
from . import coupling
from .adherence import tally, videos_of
from .checkpoint import load
from .data import AFTER, Bank, Clips, tokens
from .forward import forward
from .networks import Size, new_text, new_transformer, new_vae
from .sample import Streams
from .score import score
from .script import Script
from .stage import Sample
from .tasks import NOW, SINKS, Task, draw_task, opening
from .world import Scene, sample_scene

_DISTURBED = 0.3  # largest noise level in the past that is not declared
_OPENINGS_UNTIL = 0.25  # share of the first training that is openings only
_OPENINGS = 8  # of them in the place of one stream
_FEW = 15  # rows of a task of which there are twice as many in a batch
_GUESSES_FROM, _GUESSES_EVERY = 0.5, 3  # share of the training after which pasts are guesses; and in which steps
_DECIDES = 0.9  # noise level from which the noise says where shapes stand; below, what lies under it does
_LEAST = 0.01  # noise level that is trained
_WHOLE = 0.6  # share of the steps and clips that are of the first size
_STRANGE = 0.2  # share of the streams before a change whose past is not of one scene; as many fade into noise
_SCHEDULES = [make_schedule((1000, 750, 500, 250), kind) for kind in ("longlive", "scope")]


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

    name, share, batch, rate = "flow", 0.6, 64, 1e-3
    clips = 6000  # in the bank

    def __init__(self, size: Size, out: Path, device: torch.device, dtype: torch.dtype, seed: int):
        self.size, self.device = size, device
        self.vae = new_vae(size, seed).requires_grad_(False)
        load(out / "vae.pt", {"vae": self.vae})
        self.vae.to(device, dtype)
        self.model = new_transformer(size, seed).to(device, dtype)
        self.text = new_text(size, seed).to(device, dtype)
        self.parts: dict[str, nn.Module] = {"model": self.model, "text": self.text}
        self._levels = torch.tensor([step.sigma for schedule in _SCHEDULES for step in schedule], device=device)
        self._passes: dict[tuple[Task, torch.Size], nn.Module] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._steps = 0

    def begin(self, seed: int, again: bool = False) -> None:
        """Draw from other random numbers from here on, and other clips; if trained before, without openings alone."""
        self._openings_until = 0.0 if again else _OPENINGS_UNTIL
        self.random = Random(seed)
        most, *others = self.size.frames
        shares = {most: _WHOLE if others else 1.0} | dict.fromkeys(others, (1 - _WHOLE) / max(1, len(others)))
        self._shares = [*shares.values()]
        self.banks = [
            Bank(self.vae, frames, round(self.clips * share), seed + i, self.device)
            for i, (frames, share) in enumerate(shares.items())
        ]

    def losses(self, batch: int, progress: float) -> dict[str, Tensor]:
        """The flow's mean squared error over all denoised frames, and over those of first blocks: of streams, and after
        a change."""
        (bank,) = self.random.choices(self.banks, self._shares)
        only = progress < self._openings_until
        task = opening() if only else draw_task(self.random, plain=bank is not self.banks[0])
        rows, clip, other = _rows(task, self.device), *self._clips(task, bank, batch)
        latents = torch.stack((clip.latents, other.latents))[rows.which, :, rows.frame].transpose(0, 1)
        prompts = self._prompts(task, clip, other)
        sigma = self._noise_levels(rows, len(latents))
        x = torch.where(
            rows.is_noisy[:, None, None, None],
            _in_noise(task, clip, sigma, latents),
            self._past(task, clip, latents, prompts, progress),
        )
        flow = self._flow(task, x, 1000 * sigma, prompts)
        # The flow leads from x to the clip, also where something else lies under the noise.
        wanted = (x - latents) / sigma.clamp(min=_LEAST)[:, :, None, None, None]
        errors = (flow.float() - wanted).square().mean((0, 2, 3, 4))[rows.noisy]
        losses = {"loss": errors.mean()}
        if task.decided is not None:
            losses["first" if task.cut is None else "changed"] = errors[:BLOCK_FRAMES].mean()
        return losses

    @torch.no_grad()
    def sample(self, count: int, blocks: int = 10) -> Sample:
        """Streams of held-out prompts, made in the engine's four steps, which change half-way; scores of the first half
        and of the second."""
        before, after = ([sample_scene(self.random, held_out=True) for _ in range(count)] for _ in range(2))
        streams, made = Streams(self.model, self._embed(before)), []
        latent = self.size.model.in_dim, *(side // 8 for side in self.size.frames[0])
        shape = len(_SCHEDULES[0]), count, BLOCK_FRAMES, *latent
        for block in range(blocks):
            if block == blocks // 2:
                streams.switch(self._embed(after))
            made.append(streams.denoise(torch.randn(shape, device=self.device).unbind(), _SCHEDULES[0]))
            streams.keep(made[-1])
        videos, cut = videos_of(self.vae, torch.cat(made, 1)), pixel_of(blocks // 2 * BLOCK_FRAMES)
        table = tally(score(video[:cut], scene) for video, scene in zip(videos, before, strict=True))
        switched = tally(score(video[cut:], scene) for video, scene in zip(videos, after, strict=True))
        return Sample(table | {f"{kind} after a switch": share for kind, share in switched.items()}, videos, before)

    def finish(self) -> None:
        """Nothing is left to do."""

    def _flow(self, task: Task, *given: Tensor) -> Tensor:
        """Flow of a task's rows from latents, timesteps and prompts, until the next call."""
        key = task, given[0].shape
        if key not in self._passes:
            self._passes[key] = self._new_passes(task, *given)
        return self._passes[key](*given)

    @torch.enable_grad()
    def _new_passes(self, task: Task, x: Tensor, timesteps: Tensor, prompts: Tensor) -> nn.Module:
        """The network on the task's script; on a GPU a graph, as its kernels are short. One pool serves all graphs:
        of each, only what comes out is used after it has run."""
        passes = _Passes(self.model, task.script)
        if self.device.type != "cuda":
            return passes
        sample = x.detach().clone(), timesteps.detach().clone(), prompts.detach().clone().requires_grad_()
        return cast("nn.Module", torch.cuda.make_graphed_callables(passes, sample, pool=self._pool))

    def _embed(self, scenes: list[Scene]) -> Tensor:
        return self.text(tokens(scenes, self.random, self.device), self.size.model.text_len)

    def _clips(self, task: Task, bank: Bank, batch: int) -> tuple[Clips, Clips]:
        """The streams' clips, and those of the sinks, which are the same ones in half of the steps."""
        if task.opening:
            clip = bank.draw_openings(_OPENINGS * batch)
            return clip, clip
        if len(task.script.rows) <= _FEW:
            batch *= 2
        clip, other = bank.draw(task.cut, batch), bank.draw(task.cut, batch)
        return clip, clip if self.random.random() < 0.5 else other

    def _prompts(self, task: Task, clip: Clips, other: Clips) -> Tensor:
        """Embeddings [B, P, text_len, text_dim] of NOW and SINKS, as far as the task has them; a stream keeps to one
        wording."""
        ids = {NOW: clip.after, SINKS: clip.after if other is clip and task.cut is None else other.before}
        roles = range(1 + max(row.prompt for row in task.script.rows))
        encoded = self.text(torch.cat([ids[role] for role in roles]), self.size.model.text_len)
        return torch.stack(encoded.chunk(len(roles)), 1)

    def _noise_levels(self, rows: _Rows, batch: int) -> Tensor:
        """A noise level [B, rows] for each denoising pass and 0 for clean ones: half of them of the presets' steps, the
        others even over the shifted schedule."""
        u, step = torch.rand(2, batch, len(rows.step), device=self.device)[:, :, rows.step]
        level = (TIMESTEP_SHIFT * u / (1 + (TIMESTEP_SHIFT - 1) * u)).clamp(min=_LEAST)
        levels = self._levels[(step * 2 * len(self._levels)).long().clamp(max=len(self._levels) - 1)]
        return rows.is_noisy * torch.where(step < 0.5, levels, level)

    def _past(self, task: Task, clip: Clips, latents: Tensor, prompts: Tensor, progress: float) -> Tensor:
        """What is shown of the past, for every row: the clips, or what the network makes of them."""
        self._steps += 1
        if task.opening:
            return latents
        if task.guessed and progress >= _GUESSES_FROM and self._steps % _GUESSES_EVERY == 0:
            return self._guesses(task, latents, prompts)
        # Noise of which the network is not told, in half of the streams.
        strength = _DISTURBED * torch.rand(len(latents), 1, 1, 1, 1, device=self.device)
        past = latents + strength * (torch.rand_like(strength) < 0.5) * torch.randn_like(latents)
        return past if task.cut is None else _estranged(task, clip, past)

    @torch.no_grad()
    def _guesses(self, task: Task, latents: Tensor, prompts: Tensor) -> Tensor:
        """What the network makes of the clips through some noise: its own errors, but in the clips' places."""
        rows = _rows(task, self.device)
        sigma = rows.is_noisy * (0.3 + 0.6 * torch.rand(len(latents), 1, device=self.device))
        s = sigma[:, :, None, None, None]
        x = (1 - s) * latents + s * torch.randn_like(latents)
        made = x - s * self._flow(task, x, 1000 * sigma, prompts).float()
        return made[:, rows.guess]  # where nothing was denoised, made is the clip itself


def _in_noise(task: Task, clip: Clips, sigma: Tensor, latents: Tensor) -> Tensor:
    """Latents [B, R, C, h, w] in noise of levels sigma [B, R].

    Where a scene begins in much of it, the noise decides on the clip's layout. What lies under it is another stream's
    then: a step that follows the first one finds there a layout that other noise had decided on.
    """
    s, noise = sigma[:, :, None, None, None], torch.randn_like(latents)
    x = (1 - s) * latents + s * noise
    if task.decided is not None:
        first = slice(task.decided, task.decided + BLOCK_FRAMES)
        s = s[:, first]
        begun = coupling.write((1 - s) * latents.roll(1, 0)[:, first] + s * noise[:, first], clip.marks)
        decides = (s >= _DECIDES) & (clip.marks[:, :1, None, None, None] >= 0)
        x[:, first] = torch.where(decides, begun, x[:, first])
    return x


def _estranged(task: Task, clip: Clips, past: Tensor) -> Tensor:
    """The past of streams before a change, as it comes about where prompts are new or strange: its older blocks show
    some other scene, or the one that is asked for, or all of it fades into noise. A past that goes on stays."""
    rows, batch, cut = _rows(task, past.device), len(past), cast("int", task.cut)
    old = ~rows.is_noisy & (rows.frame < cut) & (clip.marks[:, :1] >= 0)  # [B, R]
    older = old & (rows.frame < BLOCK_FRAMES * torch.randint(cut // BLOCK_FRAMES, (batch, 1), device=past.device))
    kind = torch.rand(batch, 1, device=past.device)
    asked_for = clip.latents[:, torch.where(rows.frame < cut, cut + rows.frame % AFTER, rows.frame)]
    faded = torch.lerp(past, torch.randn_like(past), torch.rand(batch, 1, 1, 1, 1, device=past.device))
    for chosen, shown in (
        (older & (kind < _STRANGE / 2), past.roll(1, 0)),
        (older & (kind >= _STRANGE / 2) & (kind < _STRANGE), asked_for),
        (old & (kind > 1 - _STRANGE), faded),
    ):
        past = torch.where(chosen[:, :, None, None, None], shown, past)
    return past
