"""Mixing prompt embeddings: several weighted prompts at once, and the way from one to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def normalise(weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1; all zero means equal. ValueError for none, a negative, an infinite or a NaN weight."""
    values = [float(weight) for weight in weights]
    if not values or not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError(f"weights must be finite numbers >= 0, at least one of them, got {list(weights)}")
    largest = max(values)
    # Divided by the largest first: the sum of weights near the float limit would overflow.
    values = [value / largest for value in values] if largest > 0 else [1.0] * len(values)
    return [value / math.fsum(values) for value in values]


def blend(embeddings: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """``s * sum(w_i e_i)`` with s such that its Frobenius norm is ``sum(w_i |e_i|)``; float32, rounded once.

    Embeddings of one shape; weights as ``normalise`` takes them, one each. The rescaling keeps a mix of unlike
    prompts as strong as its parts (docs/model.md 5.2). Embeddings that cancel have no direction to rescale.
    """
    if len(embeddings) != len(weights):
        raise ValueError(f"weights must be one for each of the {len(embeddings)} embeddings, got {len(weights)}")
    shares = normalise(weights)
    _require_one_shape(embeddings)
    if max(shares) == 1.0:
        return embeddings[shares.index(1.0)]
    parts = [embedding.float() for embedding in embeddings]
    mixed = torch.stack([share * part for share, part in zip(shares, parts, strict=True)]).sum(0)
    norm = torch.stack([share * part.norm() for share, part in zip(shares, parts, strict=True)]).sum()
    length = mixed.norm()
    return (mixed * torch.where(length > 1e-6 * norm, norm / length, 1.0)).to(embeddings[0].dtype)


def lerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """``(1-t) a + t b`` in float32, rounded once; t in [0, 1], both ends exact."""
    _require_one_shape((a, b))
    return torch.lerp(a.float(), b.float(), _fraction(t)).to(a.dtype)


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """``sin((1-t) w)/sin w a + sin(t w)/sin w b``, row by row, w the angle between the rows; t in [0, 1].

    Rows that are (nearly) parallel or opposite have no arc between them and are mixed by ``lerp``. A row of zeros,
    where one of two texts has ended, counts as being at a right angle to any other, as in scope.
    """
    _require_one_shape((a, b))
    t, x, y = _fraction(t), a.float(), b.float()
    angle = torch.nn.functional.cosine_similarity(x, y, dim=-1)[..., None].clamp(-1, 1).acos()
    sine = angle.sin()
    arc = ((1 - t) * angle).sin() / sine * x + (t * angle).sin() / sine * y
    return torch.where(sine < 1e-3, torch.lerp(x, y, t), arc).to(a.dtype)


def _fraction(t: float) -> float:
    if not 0 <= t <= 1:
        raise ValueError(f"t must be between 0 and 1, got {t}")
    return float(t)


def _require_one_shape(embeddings: Sequence[Tensor]) -> None:
    shapes = {tuple(embedding.shape) for embedding in embeddings}
    if len(shapes) > 1:
        raise ValueError(f"embeddings must have one shape, got {sorted(shapes)}")
