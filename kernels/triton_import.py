"""Triton, or None where it is not installed; Any to type checkers, to whom ``kernel[grid](...)`` is no call."""

from typing import TYPE_CHECKING, Any

import torch

from . import native

triton: Any
try:
    import triton
except ImportError:
    triton = None
if TYPE_CHECKING or triton:
    import triton.language as tl
else:
    tl = None


def generation(device: torch.device) -> tuple[int, int]:
    """The compute capability that a kernel's tiles are chosen for; where kernels are interpreted, Hopper's."""
    return native.capability(device.index) if device.type == "cuda" else (9, 0)
