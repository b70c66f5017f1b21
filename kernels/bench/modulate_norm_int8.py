"""Shapes, bytes and baseline of modulate_norm_int8; beside it the same in two passes over memory."""

from torch import Tensor

from .. import modulate_norm as operators
from ..quantize import quantize
from . import modulate_norm
from .case import Bench, int8_result


def two_passes(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return quantize(operators.modulate_norm(x, shift, scale, eps), 1)


def published(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The published order of modulate_norm, quantised."""
    return quantize.reference(modulate_norm.published(x, shift, scale, eps), 1)


PLAIN = modulate_norm.BENCH
BENCH = Bench(
    real=[int8_result(case, frames * 1560, 1536) for case, frames in zip(PLAIN.real, (3, 6), strict=True)],
    small=[int8_result(case, 3 * 60, 1536) for case in PLAIN.small],
    published=published,
    peers=lambda: {"two passes": two_passes},
)
