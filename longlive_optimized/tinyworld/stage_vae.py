"""Stage 1: the autoencoder, by reconstruction, with a little noise in the latents so that their errors do not show.

One that takes another's place is held to its latents, so that a transformer that makes those can stay.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import cast

import torch
from torch import Tensor, nn

from ..vae.autoencoder import Autoencoder, to_uint8
from ..vae.wan.model import WanVae
from .adherence import tally
from .autoencode import decode, encode, fold_statistics, normalise
from .data import clips
from .networks import Size, new_vae
from .render import layouts
from .score import score
from .stage import Sample
from .world import sample_scene

_LATENTS = (2, 2, 5, 15)  # latent frames of a clip, by step: mostly many scenes, now and then long ones
# Weights of the losses beside the mean absolute error. It alone rests at the median of the few colours there are: the
# square leads away from there.
_SQUARE, _EDGES, _KL, _HELD = 2.0, 0.5, 5e-4, 0.5
_LOSSES = "loss", "picture", "edges", "kl", "latents"
_SMALLEST_STD = 0.1  # a latent channel that says nothing is not blown up to say it loudly


class _Reconstruction(nn.Module):
    """The losses of frames on their way through the VAE and its noise; teacher: whose latents it is held to."""

    def __init__(self, vae: WanVae, teacher: WanVae | None):
        super().__init__()
        self.vae, self.teacher = vae, teacher

    def forward(self, frames: Tensor, noise: Tensor) -> Tensor:
        """frames [B, 3, 4T - 3, 8h, 8w], noise [B, z_dim, T, h, w]; the losses by the names of ``_LOSSES``."""
        mean, log_variance = (part.float() for part in _encode(self.vae, frames))
        log_variance = log_variance.clamp(-30, 20)
        error = _decode(self.vae, mean + (0.5 * log_variance).exp() * noise) - frames
        picture, square = error.abs().mean(), error.square().mean()
        edges = sum((error.diff(dim=axis).abs().mean() for axis in (2, 3, 4)), start=error.new_zeros(()))
        kl = 0.5 * (log_variance.exp() - 1 - log_variance).mean()
        if self.teacher is None:
            kl, apart = kl + 0.5 * mean.square().mean(), mean.new_zeros(())
        else:
            apart = (normalise(mean) - self._taught(frames)).square().mean()
        loss = picture + _SQUARE * square + _EDGES * edges + _KL * kl + _HELD * apart
        return torch.stack((loss, picture, edges, kl, apart))

    @torch.no_grad()
    def _taught(self, frames: Tensor) -> Tensor:
        assert self.teacher
        return normalise(_encode(self.teacher, frames)[0].float())


def _encode(vae: WanVae, frames: Tensor) -> tuple[Tensor, Tensor]:
    return encode(vae, frames.to(vae.conv2.weight.dtype))


def _decode(vae: WanVae, z: Tensor) -> Tensor:
    return decode(vae, z.to(vae.conv2.weight.dtype)).float()


class VaeStage:
    """Trains ``vae.pt``."""

    name, share, batch, rate = "vae", 0.2, 12, 1e-3
    clips = 0  # it makes its own all the time

    def __init__(self, size: Size, out: Path, device: torch.device, dtype: torch.dtype, seed: int):
        self.size, self.device = size, device
        self.vae = new_vae(size, seed).to(device, dtype)
        for weight in self.vae.parameters():
            if weight.ndim == 5:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
        self.parts: dict[str, nn.Module] = {"vae": self.vae}
        self.teacher: WanVae | None = None
        self._reconstructions: dict[torch.Size, nn.Module] = {}  # by the frames' shape
        self._steps = 0

    def learn_from(self, teacher: Autoencoder) -> None:
        """Begin from as much of its weights as there is room for, and be held to its latents."""
        self.teacher = cast("WanVae", teacher)
        theirs = dict(teacher.named_parameters())
        for name, own in self.vae.named_parameters():
            if name in theirs:
                part = theirs[name][tuple(slice(n) for n in own.shape)]
                own.data[tuple(slice(n) for n in part.shape)] = part

    def begin(self, seed: int, again: bool = False) -> None:
        """Draw from other random numbers from here on."""
        self.random = Random(seed)

    def losses(self, batch: int, progress: float) -> dict[str, Tensor]:
        """``loss``, and what it is made of."""
        latents = _LATENTS[self._steps % len(_LATENTS)]
        self._steps += 1
        frames = self._clips(max(1, batch * 5 // latents), latents)
        places = latents, frames.shape[3] // 8, frames.shape[4] // 8
        noise = torch.randn(len(frames), self.size.vae.z_dim, *places, device=self.device)
        if frames.shape not in self._reconstructions:
            self._reconstructions[frames.shape] = self._new_reconstruction(frames, noise)
        return dict(zip(_LOSSES, self._reconstructions[frames.shape](frames, noise), strict=True))

    @torch.no_grad()
    def sample(self, count: int) -> Sample:
        """Clips after the way through the VAE, and its noise; pictures of each clip before and after."""
        scenes = [sample_scene(self.random, held_out=True) for _ in range(count)]
        frames = self._render([(scene,) for scene in scenes], _LATENTS[-1], None, self.size.frames[0])
        made = torch.cat([_decode(self.vae, _encode(self.vae, some)[0]) for some in frames.split(8)])
        error = (made.clamp(-1, 1) - frames).square().mean().item()
        before, after = (list(to_uint8(part).permute(0, 2, 3, 4, 1).cpu()) for part in (frames, made))
        scores = tally(score(video, scene) for video, scene in zip(after, scenes, strict=True))
        psnr = 10 * torch.tensor(4 / error).log10().item()
        pairs = zip(before, after, strict=True)
        return Sample({"psnr": psnr, **scores}, [video for pair in pairs for video in pair], scenes)

    @torch.no_grad()
    def finish(self) -> None:
        """Give the latents the mean and deviation that the engine expects of them; a teacher's have them."""
        if self.teacher:
            return
        clips = (_encode(self.vae, self._clips(8, _LATENTS[-1]))[0] for _ in range(16))
        latents = torch.cat([means.transpose(0, 1).flatten(1) for means in clips], 1).double()
        fold_statistics(self.vae, latents.mean(1), latents.std(1).clamp(min=_SMALLEST_STD))

    def _new_reconstruction(self, *sample: Tensor) -> nn.Module:
        """Losses of batches like ``sample``; on a GPU a graph, as the thousands of kernels of a step are all short."""
        made = _Reconstruction(self.vae, self.teacher)
        if self.device.type != "cuda":
            return made
        return cast("nn.Module", torch.cuda.make_graphed_callables(made, sample))

    def _clips(self, batch: int, latents: int) -> Tensor:
        pairs = [tuple(sample_scene(self.random, held_out=False) for _ in range(2)) for _ in range(batch)]
        cut = self.random.choice((None, *range(1, latents)))
        size = self.random.choice((self.size.frames[0], self.size.frames[-1]))  # more would only take time to set up
        return self._render(pairs, latents, cut, size)

    def _render(self, scenes: list, latents: int, cut: int | None, size: tuple[int, int]) -> Tensor:
        generator = torch.Generator().manual_seed(self.random.getrandbits(31))
        centres, anew = (layouts(len(scenes), *size, generator) for _ in range(2))
        frames = clips(scenes, centres, latents, cut, size, self.device, anew)
        return frames.contiguous(memory_format=torch.channels_last_3d)
