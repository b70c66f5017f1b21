"""Int8 results against a truth; and activations that try a recipe for int8.

These have the kinds of trouble that a network's have, and are the same at each draw.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

DEPTHS = {"normal": 1536, "outlier-channels": 1536, "large-tokens": 1536, "gelu": 8960, "gelu-outliers": 8960}


def activations(kind: str, rows: int, seed: int = 0) -> Tensor:
    """[rows, DEPTHS[kind]] float32: normal; 8 channels of 20 to 60 deviations; every 64th token x 100; after GELU."""
    generator = torch.Generator().manual_seed(seed)
    depth = DEPTHS[kind]
    x = torch.randn(rows, depth, generator=generator)
    if kind.startswith("gelu"):
        x = F.gelu(x, approximate="tanh")
    if "outlier" in kind:
        x[:, torch.randperm(depth, generator=generator)[:8]] *= torch.linspace(20, 60, 8)
    if kind == "large-tokens":
        x[::64] *= 100
    return x


def weights(kind: str, rows: int, seed: int = 1) -> Tensor:
    """[rows, DEPTHS[kind]] float32, normal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, DEPTHS[kind], generator=generator) / DEPTHS[kind] ** 0.5


def error(got: Tensor, truth: Tensor) -> float:
    """Relative L2."""
    return float((got.double() - truth).norm() / truth.norm())


def check_int8(values: Tensor, scale: Tensor, truth: Tensor, relative: float = 4e-6) -> None:
    """values [N, K] and scale [G, N] against a float64 truth: the largest of each run of columns, and every value.

    ``relative`` is what the float32 arithmetic before may be off by, of a run's largest magnitude.
    """
    assert values.dtype == torch.int8 and values.shape == truth.shape and values.is_contiguous()
    assert scale.dtype == torch.float32 and scale.is_contiguous()
    groups = len(scale)
    assert scale.shape == (groups, len(truth))
    runs = truth.unflatten(1, (groups, -1))
    amax = runs.abs().amax(-1)
    torch.testing.assert_close(scale.T.double(), amax / 127, rtol=relative, atol=1e-12)
    steps = runs / torch.where(amax > 0, amax / 127, 1.0)[..., None]
    assert ((values.unflatten(1, (groups, -1)) - steps).abs() <= 0.5 + 2 * 127 * relative).all()
