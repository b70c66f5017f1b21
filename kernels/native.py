"""The compiled CUDA extension, when this install has one."""

from __future__ import annotations

import functools

import torch


@functools.cache
def load() -> bool:
    """Load ``_C.so`` once; say whether its operators are there."""
    try:
        import longlive_optimized._C  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        return False
    return True


@functools.cache
def capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def missing(device: torch.device) -> str | None:
    """What the extension, which is built for Hopper (sm_90a) alone, lacks on a device; None if it runs there."""
    if device.type != "cuda":
        return "no CUDA GPU"
    if capability(device.index) != (9, 0):
        return "no Hopper GPU"
    return None if load() else "the CUDA library was not built"


def on_hopper(x: torch.Tensor) -> bool:
    """Whether the extension can run where x lies."""
    return x.is_cuda and missing(x.device) is None


def takes(x: torch.Tensor) -> bool:
    """Whether the extension can run on x: on Hopper, bfloat16 or float32."""
    return x.dtype in (torch.bfloat16, torch.float32) and on_hopper(x)


def rows_of_vectors(*tensors: torch.Tensor) -> bool:
    """Whether every row of these matrices starts at a multiple of 16 bytes, as the extension's loads need."""
    return all((t.data_ptr() | t.stride(0) * t.element_size()) % 16 == 0 for t in tensors)
