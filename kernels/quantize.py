"""quantize: activations as int8, with a scale for each row or for each group of a row's columns."""

import torch
from torch import Tensor

from .checks import expect, expect_float
from .registry import op

LARGEST = 127  # of the values; -128 does not occur
SMALLEST = 2.0**-100  # magnitudes below it count as zero: 127 / amax then stays finite, and no value is subnormal


@op()
def quantize(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Symmetric int8: ``x[n, k]`` is about ``values[n, k] * scale[g, n]``, with g the group of column k.

    x [N, K], contiguous, bfloat16, float32 or float64; ``groups`` divides K into equal runs of columns. All is float32:
    amax is a run's largest magnitude, ``scale = amax / 127``, ``values = rint(x * (127 / amax))``, both quotients
    rounded to nearest, halves of rint to even. A run with amax < 2^-100 has scale 0 and values 0. A run with NaN has
    scale NaN, one with an infinity an infinite scale; their values mean nothing.
    Returns (values [N, K] int8, scale [groups, N] float32). Raises ValueError naming the argument that does not fit.
    """
    _check(x, groups)
    return quantize_runs(x, groups)


def quantize_runs(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The arithmetic of ``quantize``, for operators that end in it."""
    runs = x.float().view(x.shape[0], groups, x.shape[1] // groups)
    amax = runs.abs().amax(dim=-1)
    amax = amax.where(~(amax < SMALLEST), 0)  # NaN stays
    inverse = (LARGEST / amax).where(amax > 0, 0)
    values = (runs * inverse[..., None]).round_().to(torch.int8)
    return values.view(x.shape), (amax / LARGEST).T.contiguous()


def expect_groups(groups: int, name: str, size: int) -> None:
    """Raise ValueError unless ``groups`` divides ``size``, which is called ``name``, into runs that are not empty."""
    if groups < 1 or size < 1 or size % groups:
        raise ValueError(f"groups must divide {name} {size}, got {groups}")


def _check(x: Tensor, groups: int) -> None:
    expect_float("x", x)
    expect("x", x, (None, None), x.dtype, x.device)
    expect_groups(groups, "x's columns", x.shape[1])
