"""Training data, made where it is used: clips for the VAE, and a bank of encoded clips for the transformer."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from ..vae.model import WanVae
from .autoencode import encode, normalise
from .networks import Size
from .render import layouts, render, send
from .vocabulary import LONGEST, batch_of_ids
from .world import Scene, caption, sample_scene

LENGTH = 27  # latent frames of a clip in the bank
CUTS = (3, 6, 9, 12, 15)  # where a clip of the bank may turn into another scene: block boundaries
_WORDINGS = 4  # captions of each scene in the bank


def pixel_of(latent: int) -> int:
    """The first pixel frame of a latent frame: the first latent has one, every other four."""
    return max(0, 4 * latent - 3)


def clips(
    scenes: list[tuple[Scene, ...]], latents: int, cut: int | None, size: Size, seed: int, device: torch.device
) -> Tensor:
    """Frames [B, 3, 4 latents - 3, H, W] in [-1, 1]; ``cut``: the latent frame at which the second scene begins."""
    centres = layouts(len(scenes), size.height, size.width, torch.Generator().manual_seed(seed))
    at = None if cut is None else pixel_of(cut)
    frames = render(scenes, centres, 4 * latents - 3, size.height, size.width, at, device)
    return frames.movedim(-1, 1) / 127.5 - 1


def tokens(scenes: list[Scene], random: Random, device: torch.device) -> Tensor:
    """Ids [B, L] of one caption of each scene."""
    return send(batch_of_ids([caption(scene, random) for scene in scenes]), device)


class Clips(NamedTuple):
    """B encoded clips: latents [B, LENGTH, C, h, w], and ids [B, L] of captions of the scene before and from the cut
    on."""

    latents: Tensor
    before: Tensor
    after: Tensor


class Bank:
    """``count`` encoded clips of training scenes; half never change scene, the others at one of CUTS.

    It lies on ``device`` and is drawn from there by torch's generator for it: nothing waits for the host.
    """

    def __init__(self, vae: WanVae, size: Size, count: int, seed: int, device: torch.device, batch: int = 60):
        random, self._device = Random(seed), device
        self._groups: dict[int | None, Clips] = {}
        shares = {None: count // 2} | {cut: -(-count // (2 * len(CUTS))) for cut in CUTS}
        for cut, share in shares.items():
            scenes = [tuple(sample_scene(random, held_out=False) for _ in range(2)) for _ in range(share)]
            latents = []
            for some in (scenes[start : start + batch] for start in range(0, share, batch)):
                frames = clips(some, LENGTH, cut, size, random.getrandbits(31), device).to(vae.conv2.weight.dtype)
                frames = frames.contiguous(memory_format=torch.channels_last_3d)
                with torch.no_grad():
                    latents.append(normalise(encode(vae, frames)[0].float()).to(torch.bfloat16))
            before, after = (self._wordings(part, random) for part in zip(*scenes, strict=True))
            self._groups[cut] = Clips(torch.cat(latents), before, before if cut is None else after)

    def draw(self, cut: int | None, count: int) -> Clips:
        """``count`` random clips that change scene at latent frame ``cut``, float32, in one of their wordings."""
        group = self._groups[cut]
        index = torch.randint(len(group.latents), (count,), device=self._device)
        wording = torch.randint(_WORDINGS, (count,), device=self._device)
        ids = (part[index, wording] for part in (group.before, group.after))
        return Clips(group.latents[index].float(), *ids)

    def _wordings(self, scenes: tuple[Scene, ...], random: Random) -> Tensor:
        """Ids [scenes, _WORDINGS, L] of captions, L = LONGEST."""
        texts = [caption(scene, random) for scene in scenes for _ in range(_WORDINGS)]
        return batch_of_ids(texts, LONGEST).view(len(scenes), _WORDINGS, -1).to(self._device)
