"""Training data, made where it is used: clips for the VAE, and a bank of encoded clips for the transformer."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from ..vae.model import WanVae
from . import coupling
from .autoencode import encode, normalise
from .coupling import Layout
from .networks import Size
from .render import GRID, render, scale_of, send
from .script import BLOCK
from .vocabulary import LONGEST, batch_of_ids
from .world import MOTIONS, Scene, caption, sample_scene

LENGTH = 27  # latent frames of a clip in the bank
CUTS = (3, 6, 9, 12, 15)  # where a clip of the bank may turn into another scene: block boundaries
_WORDINGS = 4  # captions of each scene in the bank


def pixel_of(latent: int) -> int:
    """The first pixel frame of a latent frame: the first latent has one, every other four."""
    return max(0, 4 * latent - 3)


def clips(
    scenes: list[tuple[Scene, ...]], centres: Tensor, latents: int, cut: int | None, size: Size, device: torch.device
) -> Tensor:
    """Frames [B, 3, 4 latents - 3, H, W] in [-1, 1] of shapes that begin at ``centres``, see ``render``; ``cut``: the
    latent frame at which the second scene begins."""
    at = None if cut is None else pixel_of(cut)
    frames = render(scenes, centres, 4 * latents - 3, size.height, size.width, at, device)
    return frames.movedim(-1, 1) / 127.5 - 1


def tokens(scenes: list[Scene], random: Random, device: torch.device) -> Tensor:
    """Ids [B, L] of one caption of each scene."""
    return send(batch_of_ids([caption(scene, random) for scene in scenes]), device)


class Clips(NamedTuple):
    """B encoded clips."""

    latents: Tensor  # [B, LENGTH, C, h, w]
    before: Tensor  # ids [B, L] of captions of the scene before the cut
    after: Tensor  # and from there on
    layout: Layout  # in the first frame; of clips with a cut, in the last one before it
    elsewhere: Tensor  # [B, 3, C, h, w]: how the clip would begin with another layout


def _cells_until(cut: int, scenes: Sequence[Scene], size: Size) -> Tensor:
    """Cells [B, 2] that scenes move from the first frame to the last one before latent frame ``cut``."""
    frames, speed = pixel_of(cut) - 1, scale_of(size.height, size.width).speed
    motions = torch.tensor([MOTIONS[scene.motion] for scene in scenes])
    return (motions * frames * speed / GRID).round().long()


class Bank:
    """``count`` encoded clips of training scenes; half never change scene, the others at one of CUTS.

    It lies on ``device`` and is drawn from there by torch's generator for it: nothing waits for the host.
    """

    def __init__(self, vae: WanVae, size: Size, count: int, seed: int, device: torch.device, batch: int = 60):
        random, self._device = Random(seed), device
        self._groups: dict[int | None, Clips] = {}
        shares = {None: count // 2} | {cut: -(-count // (2 * len(CUTS))) for cut in CUTS}
        grid, generator = (size.height // GRID, size.width // GRID), torch.Generator().manual_seed(seed)
        for cut, share in shares.items():
            scenes = [tuple(sample_scene(random, held_out=False) for _ in range(2)) for _ in range(share)]
            layout, other = (coupling.draw(share, grid, generator) for _ in range(2))
            latents, elsewhere = [], []
            for some in (slice(start, start + batch) for start in range(0, share, batch)):
                for places, frames, found in ((layout, LENGTH, latents), (other, BLOCK, elsewhere)):
                    made = clips(scenes[some], places.centres(grid)[some], frames, cut, size, device)
                    found.append(self._encode(vae, made))
            if cut is not None:
                layout = layout.moved(_cells_until(cut, [scene for scene, _ in scenes], size), grid)
            before, after = (self._wordings(part, random) for part in zip(*scenes, strict=True))
            self._groups[cut] = Clips(
                torch.cat(latents), before, before if cut is None else after,
                Layout(*(part.to(device) for part in layout)), torch.cat(elsewhere),
            )  # fmt: skip

    def draw(self, cut: int | None, count: int) -> Clips:
        """``count`` random clips that change scene at latent frame ``cut``, float32, in one of their wordings."""
        group = self._groups[cut]
        index = torch.randint(len(group.latents), (count,), device=self._device)
        wording = torch.randint(_WORDINGS, (count,), device=self._device)
        ids = (part[index, wording] for part in (group.before, group.after))
        layout = Layout(*(part[index] for part in group.layout))
        return Clips(group.latents[index].float(), *ids, layout, group.elsewhere[index].float())

    @staticmethod
    @torch.no_grad()
    def _encode(vae: WanVae, frames: Tensor) -> Tensor:
        frames = frames.to(vae.conv2.weight.dtype).contiguous(memory_format=torch.channels_last_3d)
        return normalise(encode(vae, frames)[0].float()).to(torch.bfloat16)

    def _wordings(self, scenes: tuple[Scene, ...], random: Random) -> Tensor:
        """Ids [scenes, _WORDINGS, L] of captions, L = LONGEST."""
        texts = [caption(scene, random) for scene in scenes for _ in range(_WORDINGS)]
        return batch_of_ids(texts, LONGEST).view(len(scenes), _WORDINGS, -1).to(self._device)
