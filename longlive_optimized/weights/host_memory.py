"""Host memory that a GPU reads without the processor's help."""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import torch
from torch import Tensor


class _Pinned(mmap.mmap):
    """Memory of the process's own that is registered with CUDA as long as it lives."""

    address: int | None = None
    device: torch.device | None = None

    def register(self, address: int, device: torch.device | None) -> None:
        status = int(_cuda().cudaHostRegister(address, len(self), 0))
        if status:
            raise OSError(
                f"text_residence must not be parked here: the system pins no {len(self)} bytes of host memory "
                f"(CUDA error {status})"
            )
        self.address, self.device = address, device

    def __del__(self):
        if self.address is not None:
            with contextlib.suppress(Exception):  # the interpreter may be going down
                torch.cuda.synchronize(self.device)  # copies from it may be under way
                _cuda().cudaHostUnregister(self.address)


def _cuda() -> Any:
    """CUDA's runtime, as torch has it."""
    return torch.cuda.cudart()


def pinned_empty(nbytes: int, device: torch.device | None = None) -> Tensor:
    """Pinned memory, uint8 [nbytes], of just that size; torch's own comes in powers of two, a third more for umT5-XXL.

    device: the GPU that reads it, which is waited for before the memory is given back; None is the current one then.
    Raises OSError naming ``text_residence`` where the system pins no more.
    """
    area = _Pinned(-1, max(nbytes, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            area.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(area, dtype=torch.uint8)[:nbytes]
    area.register(memory.data_ptr(), device)
    return memory
