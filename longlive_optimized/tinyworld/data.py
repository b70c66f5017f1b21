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
from .nearest import captions, sample_text, wordings
from .render import render, send
from .vocabulary import LONGEST, batch_of_ids
from .world import Scene, caption, sample_scene

LENGTH = 27  # latent frames of a clip in the bank that never changes scene
CUTS = (3, 6, 9, 12, 15)  # where a clip of the bank may turn into another scene: block boundaries
AFTER = 6  # latent frames from there on
_AGAIN = 0.15  # share of these where the same is said in other words, and goes on
_WORDINGS = 4  # captions of each scene in the bank
_LOOSE = 0.2  # share of the scenes that no sentence says, but words at random
_ALONE = 1 / 3  # of the scenes with one shape so many are taken: they are few, and would be learnt by heart
_ENCODED = 60  # clips that are encoded at once


def clips(
    scenes: list[tuple[Scene, ...]],
    centres: Tensor,
    latents: int,
    cut: int | None,
    size: tuple[int, int],
    device: torch.device,
    anew: Tensor | None = None,
) -> Tensor:
    """Frames [B, 3, 4 latents - 3, H, W] in [-1, 1] of shapes that begin at ``centres``, see ``render``; ``cut``: the
    latent frame at which the second scene begins, at ``anew``."""
    at = None if cut is None else pixel_of(cut)
    frames = render(scenes, centres, 4 * latents - 3, *size, at, device, anew=anew)
    return frames.movedim(-1, 1) / 127.5 - 1


def tokens(scenes: list[Scene], random: Random, device: torch.device) -> Tensor:
    """Ids [B, L] of one caption of each scene."""
    return send(batch_of_ids([caption(scene, random) for scene in scenes]), device)


class Clips(NamedTuple):
    """B encoded clips."""

    latents: Tensor  # [B, frames, C, h, w]
    before: Tensor  # ids [B, L] of captions of the scene before the cut
    after: Tensor  # and from there on
    marks: Tensor  # int64 [B, 3]: the layout that the last scene begins with, see ``coupling``; -1 where one goes on


class _Said(NamedTuple):
    """A scene, and texts that are read as it."""

    scene: Scene
    texts: list[str]


class Bank:
    """``count`` encoded clips of training scenes of one size, of which a sixth never changes scene and the others do at
    one of CUTS; and three times as many openings, which are one block long.

    It lies on ``device`` and is drawn from there by torch's generator for it: nothing waits for the host.
    """

    def __init__(self, vae: WanVae, size: tuple[int, int], count: int, seed: int, device: torch.device):
        self._vae, self._size, self._device = vae, size, device
        random, generator = Random(seed), torch.Generator().manual_seed(seed)
        self._openings = self._make(3 * count, BLOCK_FRAMES, None, random, generator)
        lengths = {None: LENGTH} | {cut: cut + AFTER for cut in CUTS}
        share = -(-count // len(lengths))
        self._groups = {cut: self._make(share, frames, cut, random, generator) for cut, frames in lengths.items()}

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
        before = after = [_say(random) for _ in range(count)]
        marks = coupling.draw(count, self._size, generator)
        first = second = [said.scene for said in before]
        centres = anew = coupling.centres(marks, first, self._size)
        if cut is not None:
            again = torch.rand(count, 1, generator=generator) < _AGAIN
            pairs = zip(before, again, strict=True)
            after = [_sentences(old.scene, random) if same else _say(random) for old, same in pairs]
            second = [said.scene for said in after]
            moved = centres + coupling.velocities(first, self._size)[:, None] * pixel_of(cut)
            marks = coupling.draw(count, self._size, generator)
            anew = torch.where(again[:, None], moved, coupling.centres(marks, second, self._size, begins=False))
            marks = marks.masked_fill(again, -1)
        scenes = [*zip(first, second, strict=True)]
        latents, batch = [], max(1, _ENCODED * LENGTH // frames)
        for some in (slice(start, start + batch) for start in range(0, count, batch)):
            made = clips(scenes[some], centres[some], frames, cut, self._size, self._device, anew[some])
            latents.append(self._encode(made))
        ids = self._ids(before)
        return Clips(torch.cat(latents), ids, ids if cut is None else self._ids(after), marks.to(self._device))

    @torch.no_grad()
    @torch.backends.cudnn.flags(enabled=True, benchmark=False)  # few batches of many shapes
    def _encode(self, frames: Tensor) -> Tensor:
        frames = frames.to(self._vae.conv2.weight.dtype).contiguous(memory_format=torch.channels_last_3d)
        return normalise(encode(self._vae, frames)[0].float()).to(torch.bfloat16)

    def _ids(self, said: list[_Said]) -> Tensor:
        """Ids [scenes, _WORDINGS, LONGEST] of what is said."""
        ids = batch_of_ids([text for each in said for text in each.texts], LONGEST)
        return ids.view(len(said), _WORDINGS, -1).to(self._device)


def _say(random: Random) -> _Said:
    """A scene of the training combinations in some wordings: sentences, or words at random."""
    if random.random() < _LOOSE:
        text, scene = sample_text(random)
        return _Said(scene, wordings(text, scene, _WORDINGS, random))
    while len((scene := sample_scene(random, held_out=False)).shapes) == 1 and random.random() > _ALONE:
        pass
    return _sentences(scene, random)


def _sentences(scene: Scene, random: Random) -> _Said:
    return _Said(scene, captions(scene, _WORDINGS, random))
