"""A stream on the fused path: its causal state, which is never copied, and its calls, each a single CUDA graph."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..codec import NewGraphs
from .frame_pool import FramePool
from .plan import Plan
from .weights import Block, Convolution


class LevelPools(NamedTuple):
    """A level's pool, and that in which its first block finds its input: of another width, or the same one."""

    entry: FramePool
    pool: FramePool


class PackedState:
    """What a stream carries from call to call, and where it works, in ``like``'s dtype and on its device.

    Nothing is cleared or copied between calls: lists of indices, computed on the host and sent ahead of a call, say
    where history lies (``FramePool``). So one graph serves all calls with as many frames.
    """

    def __init__(self, like: Tensor, new_graphs: NewGraphs):
        self.fresh = True
        self.pools: list[FramePool] = []
        self._dtype, self._device = like.dtype, like.device
        self._tables: dict[Hashable, Tensor] = {}
        self.graphs = new_graphs() if new_graphs else None

    def reset(self) -> None:
        self.fresh = True
        for pool in self.pools:
            pool.forget()

    def _new_pool(
        self, channels: int, size: tuple[int, int], layers: Sequence[Convolution] = (), **scratch: int
    ) -> FramePool:
        self.pools.append(FramePool(channels, size, layers, **scratch, dtype=self._dtype, device=self._device))
        return self.pools[-1]

    def _new_level(
        self,
        channels: int,
        blocks: Sequence[Block],
        size: tuple[int, int],
        frames: int,
        others: Sequence[Convolution] = (),
    ) -> LevelPools:
        """For so many frames at once, which enter with ``channels``, and the history of ``blocks`` and ``others``."""
        first, *rest = (layer for block in blocks for layer in (block.first, block.second))
        rest += others
        width = blocks[0].channels
        if channels == width:
            pool = self._new_pool(width, size, [first, *rest], a=frames, x=frames, b=frames)
            return LevelPools(pool, pool)
        entry = self._new_pool(channels, size, [first], a=frames, x=frames)
        return LevelPools(entry, self._new_pool(width, size, rest, a=frames, x=frames, b=frames))

    def _run(self, key: Hashable, plan: Plan) -> None:
        """Do it; ``key`` names all that its steps depend on but the indices."""
        table = self._send(key, plan.indices)
        if self.graphs is None:
            plan.run(table)
        else:
            self.graphs.run(key, lambda: plan.run(table))
        self.fresh = False

    def _send(self, key: Hashable, indices: list[int]) -> Tensor:
        """Bring the lists to the device, at an address of the key's own, without waiting for it."""
        if key not in self._tables:
            self._tables[key] = torch.empty(len(indices), dtype=torch.int32, device=self._device)
        host = torch.tensor(indices, dtype=torch.int32, device="cpu", pin_memory=self._device.type == "cuda")
        return self._tables[key].copy_(host, non_blocking=True)
