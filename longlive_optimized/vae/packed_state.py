"""A stream through a packed network: past frames stay where they are, and a call is one CUDA graph.

The order of calls is that of ``Decoder`` and ``Encoder``, but each convolution also does what follows it: bias,
residual sum, norm and SiLU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .packed_layers import Block, Convolution
from .places import Pool
from .plan import Plan


class Graphs(Protocol):
    """Runs work that reads and writes fixed buffers only: as it is, or by replaying a capture of it."""

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do ``work``; ``key`` names all in it that a capture cannot follow."""


@dataclass
class Space:
    """The pool of a level, and that in which its first block finds its input: of another width, or the same."""

    entry: Pool
    pool: Pool


class PackedState:
    """What a stream carries from call to call, and where it works, in ``like``'s dtype and on its device.

    Nothing is cleared or copied between calls: lists of places, computed on the host and sent ahead of a call, say
    where history lies (``Pool``). So one graph serves all calls with as many frames.
    """

    def __init__(self, like: Tensor, graphs: Graphs | None):
        self.fresh = True  # no frame has been seen: the very first one is its own latent
        self.graphs = graphs
        self.pools: list[Pool] = []
        self._make = {"dtype": like.dtype, "device": like.device}
        self._tables: dict[Hashable, Tensor] = {}

    def reset(self) -> None:
        """Back to before the first frame."""
        self.fresh = True
        for pool in self.pools:
            pool.forget()

    def _pool(self, channels: int, size: tuple[int, int], layers: Sequence[Convolution] = (), **work: int) -> Pool:
        self.pools.append(Pool(channels, size, layers, **work, **self._make))
        return self.pools[-1]

    def _space(
        self,
        channels: int,
        blocks: Sequence[Block],
        size: tuple[int, int],
        frames: int,
        others: Sequence[Convolution | None] = (),
    ) -> Space:
        """Room for so many frames, which enter with ``channels``, and the history of ``blocks`` and ``others``."""
        first, *rest = (layer for block in blocks for layer in (block.first, block.second))
        rest += filter(None, others)
        work, width = dict.fromkeys("axb", frames), blocks[0].second.channels
        if channels == width:
            pool = self._pool(width, size, [first, *rest], **work)
            return Space(pool, pool)
        return Space(self._pool(channels, size, [first], a=frames, x=frames), self._pool(width, size, rest, **work))

    def _run(self, key: Hashable, plan: Plan) -> None:
        """Do it; ``key`` names all that its steps depend on but the places."""
        table = self._send(key, plan.places)
        if self.graphs is None:
            plan.run(table)
        else:
            self.graphs.run(key, lambda: plan.run(table))
        self.fresh = False

    def _send(self, key: Hashable, places: list[int]) -> Tensor:
        """Bring the lists to the device, at an address of the key's own, without waiting for it."""
        device = self._make["device"]
        if key not in self._tables:
            self._tables[key] = torch.empty(len(places), dtype=torch.int32, device=device)
        host = torch.tensor(places, dtype=torch.int32, pin_memory=device.type == "cuda")
        return self._tables[key].copy_(host, non_blocking=True)
