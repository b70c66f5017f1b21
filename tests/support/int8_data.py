"""Activations that try a recipe for int8: the kinds of trouble that a network's have, and the same at each draw."""

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
