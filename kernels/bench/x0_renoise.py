"""Shapes, bytes and baseline of x0_renoise."""

import torch
from torch import Tensor

from .case import Bench, Case


def case(frames: int, height: int, width: int, dtype: torch.dtype) -> Case:
    shape = (frames, 16, height, width)

    def make(device: str) -> tuple:
        x, flow, noise = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
        return x, flow, noise, torch.tensor([1.0, 0.9375, 0.8125, 0.625], dtype=torch.float64, device=device), 1

    return Case(f"{frames}x16x{height}x{width}", dtype, make, 4 * frames * 16 * height * width * dtype.itemsize + 16)


def published(x: Tensor, flow: Tensor, noise: Tensor, sigmas: Tensor, index: int) -> Tensor:
    """x0 in float64, the new noise in float32, each rounded to x's dtype."""
    x0 = (x.double() - sigmas[index] * flow.double()).to(x.dtype)
    sigma = sigmas[index + 1].float()
    return ((1 - sigma).view(1) * x0 + sigma.view(1) * noise).to(x.dtype)


BENCH = Bench(real=[case(3, 60, 104, torch.bfloat16)], small=[case(3, 12, 20, torch.float32)], published=published)
