"""How often videos show what they were asked for: scores of many clips as one small table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from ..vae.autoencoder import to_uint8
from ..vae.wan.model import WanVae
from .autoencode import decode, denormalise
from .score import Score

KINDS = ("ground", "count", "motion", "colour", "form")


def tally(scores: Iterable[Score]) -> dict[str, float]:
    """Share of attributes met, by kind, over all shapes of all clips; ``all`` is the share of clips that meet all."""
    held: dict[str, list[bool]] = defaultdict(list)
    for each in scores:
        for name, met in each.attributes.items():
            held[name.split()[0]].append(met)
        held["all"].append(each.met)
    return {kind: sum(held[kind]) / len(held[kind]) for kind in (*KINDS, "all")}


def look(frames: Tensor) -> dict[str, float]:
    """What drifts in long videos, of frames uint8 [T, H, W, 3]: their mean and contrast (the deviation within a frame),
    shares of the whole range, and their sharpness (the mean step from a pixel to the next)."""
    grey = frames.float().mean(-1) / 255
    steps = grey.diff(dim=-1).abs().mean() + grey.diff(dim=-2).abs().mean()
    each = {"mean": grey.mean(), "contrast": grey.std((-2, -1)).mean(), "sharpness": steps / 2}
    return {name: value.item() for name, value in each.items()}


def spread(looks: Iterable[dict[str, float]]) -> dict[str, float]:
    """Of ``look``: the mean over videos, and its standard error, over videos of one length."""
    rows = list(looks)
    table = {}
    for name in rows[0]:
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        table |= {name: values.mean().item(), f"{name} +-": (values.std(correction=0) / len(rows) ** 0.5).item()}
    return table


@torch.no_grad()
def videos_of(vae: WanVae, latents: Tensor) -> list[Tensor]:
    """Videos uint8 [4 T - 3, H, W, 3] on the CPU of the diffusion model's latents [B, T, C, h, w]."""
    videos = []
    for some in latents.split(8):  # more would only take memory
        frames = decode(vae, denormalise(some.float()).to(vae.conv2.weight.dtype))
        videos += to_uint8(frames.float()).permute(0, 2, 3, 4, 1).cpu()
    return videos
