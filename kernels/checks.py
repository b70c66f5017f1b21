"""Argument checks shared by the operators: the message names the argument and what was wanted."""

import torch
from torch import Tensor


def expect(
    name: str,
    t: Tensor,
    shape: tuple[int | None, ...],
    dtype: torch.dtype,
    device: torch.device,
    dense_from: int = 0,
) -> None:
    """Raise ValueError unless ``t`` is as said; None in ``shape`` is any size.

    ``dense_from`` is the first dimension from which t must be contiguous: 0 for all of it, 1 for rows with any stride.
    """
    if t.dim() != len(shape) or any(want is not None and got != want for got, want in zip(t.shape, shape, strict=True)):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} must be [{wanted}], got {list(t.shape)}")
    if t.dtype != dtype:
        raise ValueError(f"{name} must be {dtype}, got {t.dtype}")
    if t.device != device:
        raise ValueError(f"{name} must be on {device}, got {t.device}")
    if not (t.is_contiguous() if dense_from == 0 else t.stride(-1) == 1):
        raise ValueError(f"{name} must be contiguous in its last dimension{'s' if dense_from == 0 else ''}")


def expect_float(name: str, t: Tensor) -> None:
    """Raise ValueError unless ``t`` is of a dtype that the operators compute in."""
    if t.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"{name} must be bfloat16, float32 or float64, got {t.dtype}")


def on_gpu(x: Tensor, *rest) -> bool:
    """Whether the Triton kernels are meant for floats x, an operator's first argument."""
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float32)


def is_cuda(x: Tensor, *rest) -> bool:
    """Whether x, an operator's first argument, is on a GPU: all that Triton kernels of one dtype ask."""
    return x.is_cuda
