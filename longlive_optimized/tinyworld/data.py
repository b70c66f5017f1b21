"""Training data, made where it is used: clips for the VAE, and a bank of encoded clips for the transformer."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from ..vae.wan.model import WanVae
from ..video_time import BLOCK_FRAMES, pixel_of
from . import coupling
from .autoencode import encode, normalise
from .networks import Size
from .render import render, send
from .vocabulary import LONGEST, batch_of_ids
from .world import Scene, caption, sample_scene

LENGTH = 27  # latent frames of a clip in the bank
CUTS = (3, 6, 9, 12, 15)  # where a clip of the bank may turn into another scene: block boundaries
_WORDINGS = 4  # captions of each scene in the bank
_ENCODED = 60  # clips that are encoded at once


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

    latents: Tensor  # [B, frames, C, h, w]
    before: Tensor  # ids [B, L] of captions of the scene before the cut
    after: Tensor  # and from there on
    marks: Tensor  # int64 [B, 3]: the layout that they begin with, see ``coupling``


class Bank:
    """``count`` encoded clips of training scenes, of which half never change scene and the others do at one of CUTS;
    and three times as many openings, which are one block long.

    It lies on ``device`` and is drawn from there by torch's generator for it: nothing waits for the host.
    """

    def __init__(self, vae: WanVae, size: Size, count: int, seed: int, device: torch.device):
        self._vae, self._size, self._device = vae, size, device
        random, generator = Random(seed), torch.Generator().manual_seed(seed)
        self._openings = self._make(3 * count, BLOCK_FRAMES, None, random, generator)
        shares = {None: count // 2} | {cut: -(-count // (2 * len(CUTS))) for cut in CUTS}
        self._groups = {cut: self._make(share, LENGTH, cut, random, generator) for cut, share in shares.items()}

    def draw(self, cut: int | None, count: int) -> Clips:
        """``count`` random clips that change scene at latent frame ``cut``, float32, in one of their wordings."""
        return self._draw(self._groups[cut], count)

    def draw_openings(self, count: int) -> Clips:
        """``count`` random openings, likewise."""
        return self._draw(self._openings, count)

    def _draw(self, group: Clips, count: int) -> Clips:
        index = torch.randint(len(group.latents), (count,), device=self._device)
        wording = torch.randint(_WORDINGS, (count,), device=self._device)
        before, after = (part[index, wording] for part in (group.before, group.after))
        return Clips(group.latents[index].float(), before, after, group.marks[index])

    def _make(self, count: int, frames: int, cut: int | None, random: Random, generator: torch.Generator) -> Clips:
        scenes = [tuple(sample_scene(random, held_out=False) for _ in range(2)) for _ in range(count)]
        first, second = zip(*scenes, strict=True)
        size = self._size.height, self._size.width
        marks = coupling.draw(count, size, generator)
        centres = coupling.centres(marks, first, size)
        latents, batch = [], _ENCODED * LENGTH // frames
        for some in (slice(start, start + batch) for start in range(0, count, batch)):
            made = clips(scenes[some], centres[some], frames, cut, self._size, self._device)
            latents.append(self._encode(made))
        before = self._wordings(first, random)
        after = before if cut is None else self._wordings(second, random)
        return Clips(torch.cat(latents), before, after, marks.to(self._device))

    @torch.no_grad()
    def _encode(self, frames: Tensor) -> Tensor:
        frames = frames.to(self._vae.conv2.weight.dtype).contiguous(memory_format=torch.channels_last_3d)
        return normalise(encode(self._vae, frames)[0].float()).to(torch.bfloat16)

    def _wordings(self, scenes: tuple[Scene, ...], random: Random) -> Tensor:
        """Ids [scenes, _WORDINGS, L] of captions, L = LONGEST."""
        texts = [caption(scene, random) for scene in scenes for _ in range(_WORDINGS)]
        return batch_of_ids(texts, LONGEST).view(len(scenes), _WORDINGS, -1).to(self._device)
