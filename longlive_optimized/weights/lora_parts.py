"""Parts of an adapter as one module's matrices: fused projections are taken apart, convolutions made matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# Parts whose first dimension is that of the weight's rows.
_ROWS = "B", "B bias", "magnitude", "difference", "bias difference", "hada_w1_a", "hada_w2_a"
# A Tucker decomposition's core, the factor of its columns, and that of its rows where it is stored transposed.
_TUCKER = ("core", "A", None), ("hada_t1", "hada_w1_b", "hada_w1_a"), ("hada_t2", "hada_w2_b", "hada_w2_a")
_TUCKER = (*_TUCKER, ("lokr_t2", "lokr_w2_b", "lokr_w2_a"))


def taken_apart(parts: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """The parts of each of ``count`` projections that were trained as one, their rows one below the other.

    ValueError for parts whose rows belong to no single one of them.
    """
    if mixed := [name for name in parts if name.startswith("lokr")]:
        raise ValueError(f"its {mixed[0]} is of all of them")
    if "magnitude" in parts and len(parts["magnitude"]) == 1:
        raise ValueError("its magnitude is of columns")
    rows = {name: tensor.tensor_split(count) for name, tensor in parts.items() if name in _ROWS and tensor.ndim}
    return [{name: rows[name][i] if name in rows else tensor for name, tensor in parts.items()} for i in range(count)]


def as_matrices(parts: Mapping[str, Tensor], weight: Sequence[int]) -> dict[str, Tensor]:
    """The factors of a convolution's change as matrices [rows, all the rest]; ``weight`` is its weight's shape.

    A Tucker core (LyCORIS' ``use_tucker``) is a convolution of the weight's size between two of size 1: it is folded
    into the second. ValueError for one that does not fit.
    """
    if len(weight) <= 2:
        return dict(parts)
    whole = ("difference", "magnitude", *(core for core, *_ in _TUCKER))
    matrices = {part: t.flatten(1) if part not in whole and t.ndim > 2 else t for part, t in parts.items()}
    for core, columns, rows in _TUCKER:
        if core in matrices and columns in matrices:
            matrices[columns] = _folded(core, matrices.pop(core), matrices[columns], weight[2:])
            if rows in matrices and matrices[rows].ndim == 2:
                matrices[rows] = matrices[rows].T
    return matrices


def _folded(name: str, core: Tensor, columns: Tensor, kernel: Sequence[int]) -> Tensor:
    """``core`` [i, j, *kernel] times ``columns`` [j, n], summed over j: [i, n times the kernel's size]."""
    if core.shape[1:] != (len(columns), *kernel) or columns.ndim != 2:
        raise ValueError(f"{name} is {list(core.shape)}, expected {[len(columns), len(columns), *kernel]}")
    if not (core.is_floating_point() and columns.is_floating_point()):
        raise ValueError(f"{name} is {core.dtype}, not floating point")
    return torch.einsum("ijk,jn->ink", core.flatten(2).float(), columns.float()).flatten(1)
