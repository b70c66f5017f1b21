"""Triton, or None where it is not installed; Any to type checkers, to whom ``kernel[grid](...)`` is no call."""

import os
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

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # on a CPU; there is no product of bfloat16 then


def generation(device: torch.device) -> tuple[int, int]:
    """The compute capability that a kernel's tiles are chosen for; where kernels are interpreted, Hopper's."""
    return native.capability(device.index) if device.type == "cuda" else (9, 0)


def multiprocessors(device: torch.device) -> int:
    """How many there are; where kernels are interpreted, four."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
