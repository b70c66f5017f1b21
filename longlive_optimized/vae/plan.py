"""The steps of one call of a packed network, which read lists of places."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ..kernels.causal_conv import GROUP, causal_conv, from_groups
from .layers import AttentionBlock
from .packed_layers import Block, Convolution
from .places import Frames, Pool


def in_groups(x: Tensor) -> Tensor:
    """``to_groups`` as a view."""
    return x.unflatten(-1, (-1, GROUP)).movedim(3, 1)


class Plan:
    """The steps of one call. All lists of places lie in one tensor, which each step is given.

    In a ``Pool``, x is the residual stream, a what the first convolution of a block reads, b the second.
    """

    def __init__(self) -> None:
        self.places: list[int] = []
        self._steps: list[Callable[[Tensor], None]] = []

    def run(self, table: Tensor) -> None:
        """Do it; ``table`` holds ``places`` on the device."""
        for step in self._steps:
            step(table)

    def add(self, step: Callable[..., None], *frames: Frames | None) -> None:
        """Call ``step`` with tensor and list of each of ``frames``; two None for None."""
        spans = [(None, None) if part is None else (part.tensor, self._span(part.places)) for part in frames]

        def run(table: Tensor) -> None:
            args = ((tensor, None if tensor is None else table[span]) for tensor, span in spans)
            step(*itertools.chain.from_iterable(args))

        self._steps.append(run)

    def convolve(
        self,
        layer: Convolution,
        source: Frames,
        *,
        residual: Frames | None = None,
        raw: Frames | None = None,
        act: Frames | None = None,
        gain: Tensor | None = None,
    ) -> None:
        """See ``causal_conv``."""

        def step(x: Tensor, places: Tensor, *rest: Tensor | None) -> None:
            causal_conv(x, places, layer.weight, layer.bias, int(layer.kind), *rest, gain)

        self.add(step, source, residual, raw, act)

    def blocks(
        self,
        blocks: list[Block],
        source: Pool,
        pool: Pool,
        count: int,
        raw: list[int] | None = None,
        act: list[int] | None = None,
        gain: Tensor | None = None,
    ) -> None:
        """From x and a of ``source``, through ``pool``, to its lists ``raw`` and ``act`` as they are by then."""
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            if following is None:
                self._block(block, source, pool, count, raw, act, gain)
            else:
                self._block(block, source, pool, count, pool.x, pool.a, following.gain)
            source = pool

    def _block(
        self,
        block: Block,
        source: Pool,
        pool: Pool,
        count: int,
        raw: list[int] | None,
        act: list[int] | None,
        gain: Tensor | None,
    ) -> None:
        read = source.read(block.first, source.a, 0, count)
        self.convolve(block.first, read, act=pool.at(pool.b, count), gain=block.between)
        read = pool.read(block.second, pool.b, 0, count)
        results = {name: pool.at(to, count) for name, to in (("raw", raw), ("act", act)) if to is not None}
        self.convolve(block.second, read, residual=source.at(source.x, count), gain=gain, **results)

    def attend(self, attention: AttentionBlock, pool: Pool, count: int) -> None:
        """Attention on ``pool``'s x, in place."""
        x = pool.fixed(count)
        self.add(lambda: x.copy_(in_groups(attention(from_groups(x)))))

    def activate(self, block: Block, pool: Pool, count: int) -> None:
        """From ``pool``'s x, what ``block`` reads into a, where no convolution could write it."""
        x = pool.fixed(count)

        def step(to: Tensor, places: Tensor) -> None:
            to[places] = in_groups(F.silu(block.norm(from_groups(x))))

        self.add(step, pool.at(pool.a, count))

    def _span(self, places: list[int]) -> slice:
        start = len(self.places)
        self.places += places
        return slice(start, len(self.places))
