"""Scenes to frames, a batch at a time, on any device: every pixel is computed from where it lies in its shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..weights.locate import TINY_SIZE
from .world import COLOURS, FORMS, GROUNDS, MAX_SHAPES, MOTIONS, Scene

NATIVE = TINY_SIZE
SIZES = ((128, 192), (192, 128), (128, 128), (96, 144))  # height and width, that models are trained at now
GRID = 8  # shapes start on whole latent cells, and there cross one in four frames: few cases for a narrow VAE
SILHOUETTE = 190.0  # of 255
_SHADE = 0.06  # the ground is so much lighter at the top and darker at the bottom


class Scale(NamedTuple):
    """Lengths of the world in pixels."""

    radius: float  # half the size of a shape
    speed: float  # pixels a frame
    apart: float  # smallest distance between two centres


def scale_of(height: int, width: int) -> Scale:
    """The world's lengths in frames of that size: they grow with the shorter side up to some size, beyond which there
    is more room between shapes. Raises ValueError."""
    for name, value in (("height", height), ("width", width)):
        if not isinstance(value, int) or value < 32 or value % 16:
            raise ValueError(f"{name} must be a multiple of 16 from 32 on, got {value!r}")
    side = min(height, width, 96)
    return Scale(radius=side * 0.15, speed=min(side, 64) / 32, apart=side * 0.4)


def form_distance(form: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Signed distance to the edge of each form (index into FORMS) of radius 1 at (y, x), negative inside."""
    ax, ay = x.abs(), y.abs()
    triangle = torch.maximum(ax * math.cos(math.pi / 6) - y * 0.5 - 0.55, y - 0.72)  # its top is at y = -1.1
    bars = torch.minimum(torch.maximum(ax - 0.34, ay - 1.0), torch.maximum(ax - 1.0, ay - 0.34))
    distances = {"circle": (x * x + y * y).sqrt() - 0.94, "square": torch.maximum(ax, ay) - 0.84}
    ring = ((x * x + y * y).sqrt() - 0.72).abs() - 0.24
    distances |= {"triangle": triangle, "cross": bars, "ring": ring}
    result = torch.zeros_like(x)
    for index, name in enumerate(FORMS):
        result = torch.where(form == index, distances[name], result)
    return result


def layouts(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Centres of MAX_SHAPES shapes for each of ``count`` clips, [count, MAX_SHAPES, 2] as (row, column); on the CPU.

    Centres lie on whole cells and no two are nearer than the world allows, around the edges too.
    """
    apart = scale_of(height, width).apart
    size = torch.tensor((height, width))
    found = torch.empty(0, MAX_SHAPES, 2)
    while len(found) < count:
        drawn = (torch.rand(4 * count, MAX_SHAPES, 2, generator=generator) * (size // GRID)).floor() * GRID
        gap = (drawn[:, :, None] - drawn[:, None]).abs()
        gap = torch.minimum(gap, size - gap).square().sum(-1) + torch.eye(MAX_SHAPES) * apart**2
        found = torch.cat((found, drawn[(gap >= apart**2).flatten(1).all(1)]))
    return found[:count]


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A small tensor of the host's on ``device``, without waiting for what the device is doing."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def render(
    scenes: Sequence[Sequence[Scene]],
    centres: Tensor,
    frames: int,
    height: int,
    width: int,
    cut: int | None = None,
    device: torch.device | str = "cpu",
    silhouettes: bool = False,
    anew: Tensor | None = None,
) -> Tensor:
    """uint8 frames [B, T, H, W, 3] of B clips, whose shapes leave on one side and come back on the other.

    scenes: one for each clip, or two, of which the second begins at frame ``cut``. centres [B, MAX_SHAPES, 2]: where
    shapes stand in frame 0, see ``layouts``. anew [B, MAX_SHAPES, 2]: where they stand in frame ``cut``; without it
    they keep their places, shape by shape in the scenes' order. silhouettes: all shapes grey, on black.
    """
    radius, speed, _ = scale_of(height, width)
    time = torch.arange(frames, device=device)
    part = (time >= (frames if cut is None else cut)).long()  # which scene a frame shows
    look = [_tables([scene[min(i, len(scene) - 1)] for scene in scenes], device) for i in (0, 1)]
    velocity, ground, colour, form = (torch.stack(tables, 1)[:, part] for tables in zip(*look, strict=True))
    moved = (velocity.cumsum(1) - velocity[:, :1]) * speed  # [B, T, 2]: the step into a frame is its own scene's
    y = torch.arange(height, device=device, dtype=torch.float32)[:, None]
    x = torch.arange(width, device=device, dtype=torch.float32)
    if silhouettes:
        ground, colour = torch.zeros_like(ground), torch.full_like(colour, SILHOUETTE)
    shade = 1 + _SHADE * (1 - 2 * y / (height - 1))
    picture = ground[:, :, :, None, None] * shade.expand(height, width)  # [B, T, 3, H, W]
    places = send(centres, device)[:, None] + moved[:, :, None]  # [B, T, MAX_SHAPES, 2]
    if anew is not None and cut is not None:
        places[:, cut:] += (send(anew, device) - places[:, cut])[:, None]
    for i in range(MAX_SHAPES):
        centre = places[:, :, i]
        dy, dx = (_wrap(p - centre[..., a, None, None], n) for a, p, n in ((0, y, height), (1, x, width)))
        dy, dx = torch.broadcast_tensors(dy / radius, dx / radius)
        cover = (0.5 - radius * form_distance(form[:, :, i, None, None], dy, dx)).clamp(0, 1)
        cover = (cover * (form[:, :, i, None, None] >= 0))[:, :, None]
        picture = torch.lerp(picture, colour[:, :, i, :, None, None], cover)
    return picture.round().clamp(0, 255).to(torch.uint8).movedim(2, -1)


def _wrap(offset: Tensor, size: int) -> Tensor:
    return (offset + size / 2) % size - size / 2


def _tables(scenes: Sequence[Scene], device: torch.device | str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Velocity [B, 2], ground [B, 3], colour [B, MAX_SHAPES, 3] and form [B, MAX_SHAPES], -1 where there is none."""
    velocity = torch.tensor([MOTIONS[scene.motion] for scene in scenes], dtype=torch.float32)
    ground = torch.tensor([GROUNDS[scene.ground] for scene in scenes], dtype=torch.float32)
    colour, form = torch.zeros(len(scenes), MAX_SHAPES, 3), torch.full((len(scenes), MAX_SHAPES), -1)
    for b, scene in enumerate(scenes):
        for i, shape in enumerate(scene.shapes):
            colour[b, i], form[b, i] = torch.tensor(COLOURS[shape.colour]), FORMS.index(shape.form)
    return send(velocity, device), send(ground, device), send(colour, device), send(form, device)
