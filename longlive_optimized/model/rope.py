"""Rotary position tables: angles reduced in float64, so that frame 1e8 is as exact as frame 0."""

from __future__ import annotations

import torch
from torch import Tensor


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Complex pairs of one head that rotate with (frame, row, column): 22, 21, 21 of head size 128."""
    pairs = head_dim // 2
    spatial = pairs // 3
    return pairs - 2 * spatial, spatial, spatial


def frequencies(pairs: int, device: torch.device | str | None = None) -> Tensor:
    """``10000^(-i/pairs)``, float64 [pairs]."""
    exponent = torch.arange(pairs, dtype=torch.float64, device=device) / pairs
    return 10000.0**-exponent


def rotation(positions: Tensor, freqs: Tensor, dtype: torch.dtype) -> Tensor:
    """(cos, sin) of position times frequency: [N] and float64 [P] to [N, P, 2].

    The angle and its reduction are float64; only the result is rounded to ``dtype``.
    """
    angles = positions.double()[:, None] * freqs
    return torch.stack((angles.cos(), angles.sin()), dim=-1).to(dtype)


def spatial_table(grid: tuple[int, int], head_dim: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Rotations of the tokens of one frame, row-major: [rows * columns, row pairs + column pairs, 2]."""
    _, row_pairs, column_pairs = axis_pairs(head_dim)
    rows, columns = grid
    by_row = rotation(torch.arange(rows, device=device), frequencies(row_pairs, device), dtype)
    by_column = rotation(torch.arange(columns, device=device), frequencies(column_pairs, device), dtype)
    table = (by_row[:, None].expand(-1, columns, -1, -1), by_column[None].expand(rows, -1, -1, -1))
    return torch.cat(table, dim=2).flatten(0, 1).contiguous()


def table_dtype(dtype: torch.dtype) -> torch.dtype:
    """Tables are float32 beside half and float32 activations, float64 beside float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
