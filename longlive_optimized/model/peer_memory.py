"""Rows that travel between GPUs of one host: each rank reads the others' out of their GPUs' memory, over NVLink."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

_LONGEST = 10_000  # milliseconds that a kernel waits for a rank, which makes the same call: then CUDA fails
_WORD = torch.complex128  # copies take 16 bytes at a time


class PeerMemory:
    """As many bytes on each rank's GPU, which all of ``group`` can read: torch's symmetric memory.

    All ranks make it alike, not while a graph is captured. Raises RuntimeError where GPUs do not reach each other.
    """

    def __init__(self, group: dist.ProcessGroup, nbytes: int, device: torch.device):
        import torch.distributed._symmetric_memory as symmetric  # which not every build of torch has

        self.nbytes = nbytes
        self._own = symmetric.empty(nbytes, dtype=torch.uint8, device=device)
        self._all = symmetric.rendezvous(self._own, group)

    def gather(self, x: Tensor, first: int = 0) -> Tensor:
        """All ranks' rows of x [N / count, D], good until the next call; of the others' only columns from ``first`` on.

        Can be captured. All rows must fit ``nbytes``.
        """
        rank, count = self._all.rank, self._all.world_size
        shape = count, *x.shape
        whole = self._all.get_buffer(rank, shape, x.dtype)
        whole[rank].copy_(x)
        self._all.barrier(channel=0, timeout_ms=_LONGEST)  # all have written
        for other in (*range(rank + 1, count), *range(rank)):  # so that not all read from the same one
            theirs = self._all.get_buffer(other, shape, x.dtype)
            _wide(whole[other, :, first:]).copy_(_wide(theirs[other, :, first:]))
        self._all.barrier(channel=1, timeout_ms=_LONGEST)  # all have read: they may write again
        return whole.flatten(0, 1)


def _wide(x: Tensor) -> Tensor:
    """The same memory in words, where rows consist of such."""
    per_word = _WORD.itemsize // x.itemsize
    fits = x.shape[-1] % per_word == 0 == x.stride(-2) % per_word and x.data_ptr() % _WORD.itemsize == 0
    return x.view(_WORD) if fits else x
