"""A stream on the fused path: its causal state, which is never copied, and its calls, each a single CUDA graph."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.causal_conv import Kind
from ..codec import NewGraphs
from .frame_pool import FramePool
from .int8 import Saturated
from .plan import Plan
from .weights import Block, Convolution, Int8Convolution


class LevelPools(NamedTuple):
    """A level's pool, and that in which its first block finds its input: of another width, or the same one."""

    entry: FramePool
    pool: FramePool


class PackedState:
    """What a stream carries from call to call, and where it works, in ``like``'s dtype and on its device.

    Nothing is cleared or copied between calls: lists of indices, computed on the host and sent ahead of a call, say
    where history lies (``FramePool``). So one graph serves all calls with as many frames.
    """

    def __init__(self, like: Tensor, new_graphs: NewGraphs, saturated: Saturated | None):
        self.fresh = True
        self.pools: list[FramePool] = []
        self._dtype, self._device = like.dtype, like.device
        self._tables: dict[Hashable, Tensor] = {}
        self.graphs = new_graphs() if new_graphs else None
        self._saturated = saturated

    def reset(self) -> None:
        self.fresh = True
        for pool in self.pools:
            pool.forget()

    def _new_pool(
        self,
        channels: int,
        size: tuple[int, int],
        layers: Sequence[Convolution | Int8Convolution] = (),
        *,
        dtype: torch.dtype | None = None,
        **scratch: int,
    ) -> FramePool:
        pool = FramePool(channels, size, layers, **scratch, dtype=dtype or self._dtype, device=self._device)
        self.pools.append(pool)
        return pool

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
        width, in_int8 = blocks[0].channels, blocks[0].in_int8
        if in_int8:
            # b is wanted for time to be doubled alone.
            doubled = frames if any(layer.kind == Kind.TIME for layer in others) else 0
            pool = self._new_pool(width, size, others, a=frames, x=frames, b=doubled)
            layers = [first, *rest] if channels == width else rest
            pool.acts = self._new_pool(width, size, layers, a=frames, b=frames, dtype=torch.int8)
        elif channels == width:
            pool = self._new_pool(width, size, [first, *rest, *others], a=frames, x=frames, b=frames)
        else:
            pool = self._new_pool(width, size, [*rest, *others], a=frames, x=frames, b=frames)
        if channels == width:
            return LevelPools(pool, pool)
        entry = self._new_pool(channels, size, [] if in_int8 else [first], a=0 if in_int8 else frames, x=frames)
        if in_int8:
            entry.acts = self._new_pool(channels, size, [first], a=frames, dtype=torch.int8)
        return LevelPools(entry, pool)

    def _run(self, key: Hashable, plan: Plan) -> None:
        """Do it; ``key`` names all that its steps depend on but the indices."""
        table = self._send(key, plan.indices)
        if self.graphs is None:
            plan.run(table)
        else:
            self.graphs.run(key, lambda: plan.run(table))
        if self._saturated:
            self._saturated.bring()
        self.fresh = False

    def _send(self, key: Hashable, indices: list[int]) -> Tensor:
        """Bring the lists to the device, at an address of the key's own, without waiting for it."""
        if key not in self._tables:
            self._tables[key] = torch.empty(len(indices), dtype=torch.int32, device=self._device)
        host = torch.tensor(indices, dtype=torch.int32, device="cpu", pin_memory=self._device.type == "cuda")
        return self._tables[key].copy_(host, non_blocking=True)
