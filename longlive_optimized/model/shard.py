"""One sequence over several ranks: each computes an equal share of a pass's tokens (docs/several_gpus.md).

The only file that calls a collective inside a pass.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .peer_memory import PeerMemory

_POLL = 5e-5  # seconds between two looks at a collective on a CPU
_HEARD = 5.0  # seconds within which it is known which rank has ended
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name up to torch 2.12
_log = logging.getLogger(__name__)


class Shard:
    """Which rows of a pass's tokens this rank computes, and how it gets those of the others.

    rank, count: of ``count`` ranks this one has the rows [rank * N / count, (rank + 1) * N / count) of N.
    group: torch's process group of all of them; None for one rank, which then does nothing but return what it is given.
    watch: raises where another rank has failed; asked while a collective on a CPU is waited for.
    """

    def __init__(
        self,
        rank: int = 0,
        count: int = 1,
        group: dist.ProcessGroup | None = None,
        watch: Callable[[], None] = lambda: None,
    ):
        self.rank, self.count = rank, count
        self._group, self._watch = group, watch
        backend = None if group is None else dist.get_backend(group)
        self._polled, self._reaches_peers = backend == "gloo", backend == "nccl"
        self._peers: list[PeerMemory] = []  # the last one is the largest; graphs may hold others

    def check(self, tokens: int, size: tuple[int, int]) -> None:
        """Raises ValueError where a frame of ``size`` pixels, so many tokens, cannot be divided among the ranks."""
        if tokens % self.count:
            height, width = size
            raise ValueError(
                f"height, width must give a frame a multiple of {self.count} tokens, one share for each of "
                f"{self.count} ranks, got {height}x{width}: {tokens} tokens"
            )

    def rows(self, x: Tensor, dim: int = 0) -> Tensor:
        """This rank's rows of x [N, ...], a view; or of another dimension."""
        if self.count == 1:
            return x
        share = x.shape[dim] // self.count
        return x.narrow(dim, self.rank * share, share)

    def reserve(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> None:
        """Let ``gather_for_now`` take up to so many rows in all: a collective, not for a capture."""
        nbytes = rows * columns * dtype.itemsize
        if not self._reaches_peers or (self._peers and self._peers[-1].nbytes >= nbytes):
            return
        assert self._group
        made = None
        try:
            made = PeerMemory(self._group, nbytes, device)
        except (RuntimeError, ImportError) as error:
            _log.warning("GPUs do not read each other's memory, NCCL is slower: %s", error)
        all_have = torch.tensor([made is not None], dtype=torch.int32, device=device)
        dist.all_reduce(all_have, dist.ReduceOp.MIN, group=self._group)
        self._reaches_peers = bool(all_have.item())
        self._peers += [made] if made and self._reaches_peers else []

    def gather_for_now(self, x: Tensor, first: int) -> Tensor:
        """``gather`` of x [N / count, D], good until the next call; of other ranks' rows only columns from ``first`` on
        need to be there."""
        if self._peers and self._reaches_peers and self.count * x.nbytes <= self._peers[-1].nbytes:
            return self._peers[-1].gather(x, first)
        return self.gather(x)

    def gather(self, x: Tensor) -> Tensor:
        """All rows [N, ...] of this rank's x [N / count, ...]."""
        if self.count == 1:
            return x
        whole = x.new_empty(self.count * len(x), *x.shape[1:])
        self._meet(_all_gather, whole, x.contiguous())
        return whole

    def join(self, x: Tensor, sizes: Sequence[int], dim: int) -> Tensor:
        """A tensor of which each rank has a part along ``dim``, of these sizes; x is this rank's."""
        if self.count == 1:
            return x
        longest = list(x.shape)
        longest[dim] = max(sizes)
        own = x.new_empty(longest)
        own.narrow(dim, 0, x.shape[dim]).copy_(x)
        parts = self.gather(own).chunk(self.count)
        return torch.cat([part.narrow(dim, 0, size) for part, size in zip(parts, sizes, strict=True)], dim)

    def of_first(self, x: Tensor) -> Tensor:
        """Rank 0's x, bit for bit: for what each rank computes whole, and all must have alike."""
        if self.count == 1:
            return x
        same = x.contiguous()
        self._meet(dist.broadcast, same, 0)
        return same

    def number_of_first(self, x: float, device: torch.device) -> float:
        """Rank 0's number; waits for the device."""
        if self.count == 1:
            return x
        return self.of_first(torch.tensor([x], dtype=torch.float64, device=device)).item()

    def _meet(self, collective: Callable, *args: Tensor | int) -> None:
        if not self._polled:
            collective(*args, group=self._group)  # NCCL's: enqueued, or captured
            return
        self._watch()
        work = collective(*args, group=self._group, async_op=True)
        while not work.is_completed():
            self._watch()
            time.sleep(_POLL)
        try:
            work.wait()
        except RuntimeError:  # a connection has closed: ``watch`` will hear of it, and knows whose
            until = time.monotonic() + _HEARD
            while time.monotonic() < until:
                self._watch()
                time.sleep(_POLL)
            raise


ALONE = Shard()
