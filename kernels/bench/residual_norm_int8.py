"""Shapes, bytes and baseline of residual_norm_int8; beside it the same in two passes over memory."""

from torch import Tensor

from .. import residual_norm as operators
from ..quantize import quantize
from . import residual_norm
from .case import Bench, int8_result


def two_passes(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, offset: float, eps: float
) -> tuple[Tensor, Tensor]:
    return quantize(operators.residual_norm(x, y, gate, shift, scale, offset, eps), 1)


def published(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, offset: float, eps: float
) -> tuple[Tensor, Tensor]:
    """The published order of residual_norm, quantised; x is not updated in place."""
    return quantize.reference(residual_norm.published(x, y, gate, shift, scale, offset, eps), 1)


PLAIN = residual_norm.BENCH
BENCH = Bench(
    real=[int8_result(case, frames * 1560, 1536) for case, frames in zip(PLAIN.real, (3, 6, 3), strict=True)],
    small=[int8_result(case, 3 * 60, 1536) for case in PLAIN.small],
    published=published,
    peers=lambda: {"two passes": two_passes},
)
