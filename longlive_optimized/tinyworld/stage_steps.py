"""Stage 3: few steps. The network learns, on streams of its own, to go at once where the flow would have taken it.

Many streams are under way, made as the engine makes them: a few steps a block, each from what the step before it left,
clean context, prompts that change. Wherever a step stands, the trained flow (``flow.pt``, frozen, with guidance) is
solved from there in many steps; its end is what the step should have said. As the streams are the network's own, it
learns to go on from its own errors; as they go on for long, streams do too.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

from ..engine.sampler import make_schedule
from .adherence import tally, videos_of
from .checkpoint import load
from .data import pixel_of, tokens
from .networks import Size, new_text, new_transformer, new_vae
from .sample import Streams
from .score import score
from .script import BLOCK
from .stage import Sample
from .world import Scene, sample_scene

# The presets' steps, the full list most often, and the un-warped ones that scope's pipelines use.
_SCHEDULES = (
    make_schedule((1000, 750, 500, 250), "longlive"),
    make_schedule((1000, 750, 500, 250), "longlive"),
    make_schedule((1000, 500, 250), "longlive"),
    make_schedule((1000, 250), "longlive"),
    make_schedule((1000, 750, 500, 250), "scope"),
)
_WINDOWS = (12, 12, 12, 9)
_GROUPS = 4  # of streams, each at a place in time of its own
_SWITCH = 0.15  # chance that a group's prompts change before a block
_LIVES = (2, 4, 8, 60)  # blocks after which a group begins anew: beginnings are the hardest part


class _Group:
    """Streams of one age, under the network that learns and the one it learns from."""

    def __init__(self, learner: Streams, teacher: Streams, life: int):
        self.learner, self.teacher, self.left = learner, teacher, life


class StepsStage:
    """Trains ``steps.pt``: the transformer that is shipped."""

    name, share, batch, rate = "steps", 0.3, 64, 3e-4
    clips = 0
    guidance, solver_steps = 1.5, 8

    def __init__(self, size: Size, out: Path, device: torch.device, dtype: torch.dtype, seed: int):
        self.size, self.device = size, device
        self.vae = new_vae(size, seed).requires_grad_(False)
        load(out / "vae.pt", {"vae": self.vae})
        self.model, self.teacher = (new_transformer(size, seed) for _ in range(2))
        self.text = new_text(size, seed).requires_grad_(False)
        for model in (self.model, self.teacher):
            load(out / "flow.pt", {"model": model, "text": self.text})
        self.teacher.requires_grad_(False)
        for network in (self.vae, self.model, self.teacher, self.text):
            network.to(device, dtype)
        self.parts: dict[str, nn.Module] = {"model": self.model}
        self._schedules = [(s, torch.tensor(s, device=device).unbind(1)) for s in _SCHEDULES]
        self._steps = 0

    def begin(self, seed: int) -> None:
        """Draw from other random numbers from here on, and begin all streams anew."""
        self.random = Random(seed)
        self.groups: list[_Group | None] = [None] * _GROUPS

    def losses(self, batch: int, progress: float) -> dict[str, Tensor]:
        """Make one block of one group; the mean squared error of what each step said the block would be."""
        group = self._group(self._steps % _GROUPS, batch)
        self._steps += 1
        schedule, (timesteps, sigmas) = self.random.choice(self._schedules)
        noise = [torch.randn(self._shape(batch), device=self.device) for _ in schedule]
        made, inputs = group.learner.denoise(noise, schedule)
        wanted = group.teacher.solve(inputs, sigmas, self.solver_steps, self.guidance)
        flow = group.learner.flows_with_context(inputs, timesteps)
        said = inputs - sigmas[:, None, None, None, None] * flow
        errors = (said - wanted).square().mean((0, 2, 3, 4, 5))
        for streams in (group.learner, group.teacher):
            streams.keep(made)
        group.left -= 1
        return {"loss": errors.mean(), "first": errors[0], "last": errors[-1]}

    @torch.no_grad()
    def sample(self, count: int, blocks: int = 10) -> Sample:
        """Streams of held-out prompts, which change half-way; scores of the first half and of the second."""
        before, after = ([sample_scene(self.random, held_out=True) for _ in range(count)] for _ in range(2))
        streams, made = Streams(self.model, self._embed(before)), []
        for block in range(blocks):
            if block == blocks // 2:
                streams.switch(self._embed(after))
            noise = [torch.randn(self._shape(count), device=self.device) for _ in _SCHEDULES[0]]
            made.append(streams.denoise(noise, _SCHEDULES[0])[0])
            streams.keep(made[-1])
        videos, cut = videos_of(self.vae, torch.cat(made, 1)), pixel_of(blocks // 2 * BLOCK)
        table = tally(score(video[:cut], scene) for video, scene in zip(videos, before, strict=True))
        switched = tally(score(video[cut:], scene) for video, scene in zip(videos, after, strict=True))
        return Sample(table | {f"{kind} after a switch": share for kind, share in switched.items()}, videos, before)

    def finish(self) -> None:
        """Nothing is left to do."""

    def _group(self, index: int, batch: int) -> _Group:
        """The group whose turn it is, begun anew or with other prompts where it is time for that."""
        group = self.groups[index]
        if group is None or group.left == 0:
            prompts, window = self._embed(self._scenes(batch)), self.random.choice(_WINDOWS)
            networks = (Streams(model, prompts, window) for model in (self.model, self.teacher))
            self.groups[index] = group = _Group(*networks, self.random.choice(_LIVES))
        elif self.random.random() < _SWITCH:
            prompts = self._embed(self._scenes(batch))
            group.learner.switch(prompts), group.teacher.switch(prompts)
        return group

    def _scenes(self, count: int) -> list[Scene]:
        return [sample_scene(self.random, held_out=False) for _ in range(count)]

    @torch.no_grad()
    def _embed(self, scenes: list[Scene]) -> Tensor:
        return self.text(tokens(scenes, self.random, self.device), self.size.model.text_len)

    def _shape(self, batch: int) -> tuple[int, ...]:
        return batch, BLOCK, self.size.model.in_dim, self.size.height // 8, self.size.width // 8
