"""What 8 bits cost a product: relative L2 against float64 of the inputs that were not quantised, as a Markdown table.

python tests/measure/int8_error.py

Synthetic data, on the CPU, in a few seconds: it ranks recipes, and says nothing of a trained network's pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from longlive_optimized.kernels.int8_linear import int8_linear, pack
from longlive_optimized.kernels.quantize import quantize

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.int8_data import DEPTHS, activations, error, weights

SEEDS, ROWS, CHANNELS = 5, 256, 256
Product = Callable[[Tensor, Tensor], Tensor]


def int8(width: int | None) -> Product:
    """A scale for each row of the weight, and for each ``width`` columns of a row of x, or for each of its rows."""

    def product(x: Tensor, weight: Tensor) -> Tensor:
        values, scale = quantize(x, x.shape[1] // width if width else 1)
        w, w_scale = quantize(weight, 1)
        return int8_linear(values, scale, pack(w), w_scale[0], torch.zeros(len(w)))

    return product


def fp8(x: Tensor, weight: Tensor) -> Tensor:
    """float8_e4m3fn with a scale a row of both, and sums that lose nothing."""

    def rounded(t: Tensor) -> Tensor:
        scale = t.abs().amax(dim=1, keepdim=True) / 448
        return (t / scale).clamp(-448, 448).to(torch.float8_e4m3fn).double() * scale

    return rounded(x) @ rounded(weight).T


def bf16(x: Tensor, weight: Tensor) -> Tensor:
    """Inputs and result rounded, sums that lose nothing."""
    return (x.bfloat16().double() @ weight.bfloat16().double().T).bfloat16()


RECIPES: dict[str, Product] = {
    "bf16": bf16,
    "fp8, a scale a row": fp8,
    "int8, a scale a row": int8(None),
    "int8, groups of 256": int8(256),
    "int8, groups of 128": int8(128),
}


def mean_error(kind: str, product: Product) -> float:
    errors = []
    for seed in range(SEEDS):
        x, weight = activations(kind, ROWS, seed), weights(kind, CHANNELS, SEEDS + seed)
        errors.append(error(product(x, weight), x.double() @ weight.double().T))
    return sum(errors) / SEEDS


def main() -> None:
    print("| activations | K | " + " | ".join(RECIPES) + " |")
    print("|---" * (2 + len(RECIPES)) + "|")
    for kind, depth in DEPTHS.items():
        found = (f"{mean_error(kind, product):.4f}" for product in RECIPES.values())
        print(f"| {kind} | {depth} | " + " | ".join(found) + " |")


if __name__ == "__main__":
    main()
