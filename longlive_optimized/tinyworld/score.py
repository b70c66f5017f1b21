"""Does a clip show what was asked for? Read off its pixels, with no learned part.

Frames are cut into ground and shapes; each shape's colour is the nearest of the world's, its form the template that
covers it best, and the motion is where the shapes' silhouettes correlate best a few frames later.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .render import form_distance, scale_of
from .world import COLOURS, FORMS, GROUNDS, MAX_SHAPES, MOTIONS, RGB, Scene

LAG = 4  # frames between the two pictures whose shift is measured
_PICTURES = 24  # looked at for colours and forms, at most
_HOLDS = 0.8  # an attribute is met if it holds in this share of the pictures looked at
_NEAR = 60.0  # RGB distance within which a pixel is of a colour; colours are at least 85 apart
_EDGE = 45.0  # RGB distance from the ground at which a shape begins
_SMALLEST, _LARGEST = 0.5, 8.0  # areas of a shape, in squares of its radius; whole shapes have 1.9 to 2.9
_ALIKE, _ASTRAY = 0.8, 0.4  # how well silhouettes correlate, at least, and how far off their step may be, in speeds
_COVERED = 0.75  # how well, at least, a form covers its template: intersection over union


@dataclass(frozen=True)
class Score:
    """Which attributes of a scene a clip meets; colours and forms are one entry a shape, in the scene's order."""

    ground: bool
    count: bool
    motion: bool
    colours: tuple[bool, ...]
    forms: tuple[bool, ...]

    @property
    def met(self) -> bool:
        """Whether all of them are."""
        return all(self.attributes.values())

    @property
    def attributes(self) -> dict[str, bool]:
        """Every attribute by name."""
        named = {"ground": self.ground, "count": self.count, "motion": self.motion}
        for i, (colour, form) in enumerate(zip(self.colours, self.forms, strict=True), 1):
            named |= {f"colour {i}": colour, f"form {i}": form}
        return named


class Seen(NamedTuple):
    """A shape found in a picture, by the nearest names; None where nothing is near enough."""

    colour: str | None
    form: str | None


@torch.no_grad()
def score(frames: Tensor, scene: Scene) -> Score:
    """Which attributes of ``scene`` the frames meet, uint8 [T, H, W, 3] on any device, of more than LAG frames.

    Every fourth frame is looked at, of long clips fewer; an attribute must hold in four of five of those. Raises
    ValueError naming ``frames`` if they are something else.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) <= LAG:
        raise ValueError(f"frames must be uint8 [T > {LAG}, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    scale_of(*frames.shape[1:3])
    raw = frames[::LAG].cpu().float()
    ground = raw.flatten(1, 2).median(1).values  # shapes cover less than half of a picture
    even = (_distance(raw, ground[:, None, None]) < _NEAR).flatten(1).float().mean(1) > 0.5
    named = [_nearest(colour, GROUNDS) == scene.ground for colour in ground]
    pictures = _smooth(raw)
    shapes = _distance(pictures, ground[:, None, None]) > _EDGE
    some = slice(None, None, -(-len(raw) // _PICTURES))
    looked_at = zip(pictures[some], ground[some], _components(shapes[some]), strict=True)
    seen = [_shapes(*picture) for picture in looked_at]
    matched = torch.tensor([_match(found, scene) for found in seen])  # [pictures, shapes, (colour, form)]
    colours, forms = (matched.float().mean(0) >= _HOLDS).unbind(-1)
    return Score(
        ground=_mostly([right and flat for right, flat in zip(named, even.tolist(), strict=True)]),
        count=_mostly([len(found) == len(scene.shapes) for found in seen]),
        motion=_moves(shapes, scene.motion),
        colours=tuple(colours.tolist()),
        forms=tuple(forms.tolist()),
    )


@torch.no_grad()
def shown(frames: Tensor) -> Tensor:
    """Where uint8 frames [T, H, W, 3] show shapes: bool [T, H, W]."""
    raw = frames.cpu().float()
    ground = raw.flatten(1, 2).median(1).values
    return _distance(_smooth(raw), ground[:, None, None]) > _EDGE


def _mostly(held: list[bool]) -> bool:
    return sum(held) >= _HOLDS * len(held)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(-1).sqrt()


def _smooth(pictures: Tensor) -> Tensor:
    """A mean over 3x3 pixels: noise goes, shapes stay."""
    return F.avg_pool2d(pictures.movedim(-1, 1), 3, 1, 1, count_include_pad=False).movedim(1, -1)


def _nearest(colour: Tensor, table: dict[str, RGB]) -> str | None:
    distance = _distance(colour, torch.tensor(list(table.values())))
    return list(table)[int(distance.argmin())] if distance.min() < _NEAR else None


def _components(mask: Tensor) -> Tensor:
    """Connected parts of masks [T, H, W], around the edges too: an index to each part's pixels, 0 outside."""
    coarse = F.avg_pool2d(mask.float(), 2) > 0.5  # a quarter of the pixels; two shapes never come nearer than a few
    labels = torch.arange(1.0, coarse[0].numel() + 1).view(coarse[0].shape) * coarse
    while True:
        spread = _spread(labels, 1) * coarse  # the largest index spreads
        if torch.equal(spread, labels):
            return (labels.repeat_interleave(2, 1).repeat_interleave(2, 2) * mask).long()
        labels = spread


def _spread(x: Tensor, reach: int) -> Tensor:
    """The maximum of pictures [T, H, W] over the pixels within ``reach`` rows and columns, around the edges too."""
    padded = F.pad(x[:, None], (reach,) * 4, mode="circular")
    return F.max_pool2d(padded, 2 * reach + 1, 1)[:, 0]


def _shapes(picture: Tensor, ground: Tensor, labels: Tensor) -> list[Seen]:
    height, width = labels.shape
    radius = scale_of(height, width).radius
    areas = torch.bincount(labels.flatten())
    areas[0] = 0
    parts = ((areas > _SMALLEST * radius**2) & (areas < _LARGEST * radius**2)).nonzero()[:, 0].tolist()
    return [_identify(picture, ground, labels == part, radius) for part in parts[: 2 * MAX_SHAPES]]


def _identify(picture: Tensor, ground: Tensor, mask: Tensor, radius: float) -> Seen:
    """Colour and form of the shape under ``mask``."""
    mask, picture = _around(centre_of(mask.float()), radius, mask, picture)
    pixels = picture[mask]
    far = _distance(pixels, ground)
    colour = pixels[far >= far.median()].median(0).values  # the inner half: edges are mixed with the ground
    # Half-way between ground and shape is where the edge was, however blurred it is.
    direction = (colour - ground) / (colour - ground).square().sum()
    cover = ((picture - ground) @ direction).clamp(0, 1) * _spread(mask[None].float(), 2)[0]
    return Seen(_nearest(colour, COLOURS), _form(_centred(cover)))


def centre_of(cover: Tensor) -> tuple[float, float]:
    """Centre of mass, row and column, of a picture [H, W] on the torus: the mean angle along each axis."""
    centre = []
    for weights in (cover.sum(1), cover.sum(0)):
        angle = torch.arange(len(weights)) * (2 * torch.pi / len(weights))
        turn = torch.atan2((weights * angle.sin()).sum(), (weights * angle.cos()).sum())
        centre.append((turn / (2 * torch.pi) * len(weights)).item())
    return centre[0], centre[1]


def _around(centre: tuple[float, float], radius: float, *pictures: Tensor) -> list[Tensor]:
    """The squares about the pixel nearest ``centre``, large enough for a shape and its blur."""
    offsets = torch.arange(-round(1.6 * radius), round(1.6 * radius) + 1)
    rows, columns = ((round(c) + offsets) % n for c, n in zip(centre, pictures[0].shape, strict=False))
    return [picture[rows[:, None], columns] for picture in pictures]


def _centred(cover: Tensor) -> Tensor:
    """A square [n, n] moved by part of a pixel, so that its centre of mass is its middle."""
    line = torch.linspace(-1, 1, len(cover))
    shift = [(part @ line / cover.sum()).item() for part in (cover.sum(0), cover.sum(1))]
    move = torch.tensor([[[1, 0, shift[0]], [0, 1, shift[1]]]])
    grid = F.affine_grid(move, [1, 1, *cover.shape], align_corners=True)
    return F.grid_sample(cover[None, None], grid, align_corners=True)[0, 0]


def _form(patch: Tensor) -> str | None:
    """The form whose template, of the same area, covers the patch best."""
    area = patch.sum().item()
    best, name = max((_overlap(patch, _template(i, area, len(patch) // 2)), name) for i, name in enumerate(FORMS))
    return name if best >= _COVERED else None


def _overlap(a: Tensor, b: Tensor) -> float:
    return (torch.minimum(a, b).sum() / torch.maximum(a, b).sum()).item()


@cache
def _form_shape(form: int) -> tuple[float, float]:
    """Area and height of the centre of mass of a form of radius 1."""
    line = torch.linspace(-1.2, 1.2, 481)
    inside = form_distance(torch.tensor(form), line[:, None].expand(481, 481), line.expand(481, 481)) < 0
    area = inside.sum().item() * (line[1] - line[0]).item() ** 2
    return area, (inside.float().sum(1) @ line / inside.sum()).item()


def _template(form: int, area: float, half: int) -> Tensor:
    """A form of the given area about its centre of mass, blurred by the smoothing, [2 half + 1, 2 half + 1]."""
    unit_area, low = _form_shape(form)
    radius = max(1.0, (area / unit_area) ** 0.5)
    line = torch.arange(-half, half + 1) / radius
    y, x = torch.broadcast_tensors((line + low)[:, None], line)
    cover = (0.5 - radius * form_distance(torch.tensor(form), y, x)).clamp(0, 1)
    return _smooth(cover[None, :, :, None])[0, :, :, 0]


def _match(found: list[Seen], scene: Scene) -> list[list[bool]]:
    """Which of the scene's shapes have their colour, and with it their form, in the best assignment."""
    best = [[False, False]] * len(scene.shapes)
    slots = [*found, *[Seen(None, None)] * len(scene.shapes)]
    for chosen in itertools.permutations(range(len(slots)), len(scene.shapes)):
        pairs = zip(scene.shapes, (slots[i] for i in chosen), strict=True)
        met = [[want.colour == got.colour, want.form == got.form] for want, got in pairs]
        # A colour counts more than a form: a wrong form is then blamed on the shape that has it.
        if sum(4 * colour + 3 * form for colour, form in met) > sum(4 * colour + 3 * form for colour, form in best):
            best = met
    return best


def _moves(shapes: Tensor, motion: str) -> bool:
    """Whether silhouettes [T, H, W], LAG frames apart, move as the world says."""
    height, width = shapes.shape[1:]
    shapes = shapes.float() - shapes.float().mean((1, 2), keepdim=True)
    shapes = shapes / shapes.norm(dim=(1, 2), keepdim=True).clamp(min=1)
    spectrum = torch.fft.rfft2(shapes)
    correlation = torch.fft.irfft2((spectrum[1:] * spectrum[:-1].conj()).mean(0), s=(height, width))
    rows, columns = divmod(int(correlation.argmax()), width)
    step = torch.tensor([(rows + height // 2) % height - height // 2, (columns + width // 2) % width - width // 2])
    step = step / (LAG * scale_of(height, width).speed)
    wanted = torch.tensor(MOTIONS[motion], dtype=torch.float32)
    return bool(correlation.max() > _ALIKE) and bool((step - wanted).abs().max() < _ASTRAY)
