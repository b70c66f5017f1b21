"""One stream through the packed decoder: past frames stay where they are, and a call is one CUDA graph.

The order of calls is that of ``Decoder``, but each convolution also does what follows it: bias, residual sum, norm and
SiLU. At every level ``x`` is the residual stream, ``a`` what the first convolution of a block reads, ``b`` the second.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.causal_conv import causal_conv, from_groups, to_groups
from ..kernels.conv_pixels import conv_pixels
from .layers import pointwise
from .packed_decoder import Block, Convolution, PackedDecoder
from .places import Frames, Pool

LATENTS = 3  # of a call at most: a block
_FINE = 6  # frames of the two largest sizes that pass together: half a block's, to halve the memory


class Graphs(Protocol):
    """Runs work that reads and writes fixed buffers only: as it is, or by replaying a capture of it."""

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do ``work``; ``key`` names all in it that a capture cannot follow."""


class Plan:
    """The steps of one call. All lists of places lie in one tensor, which each step is given."""

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

    def _span(self, places: list[int]) -> slice:
        start = len(self.places)
        self.places += places
        return slice(start, len(self.places))


@dataclass
class _Space:
    """The pool of a level, and that in which its first block finds its input: of another width, or the same."""

    entry: Pool
    pool: Pool


class PackedState:
    """What a stream carries from call to call, and where the decoder works; ``size`` is the latents' height and width.

    Nothing is cleared or copied between calls: lists of places, computed on the host and sent ahead of a call, say
    where history lies (``Pool``). So one graph serves all calls with as many latents.
    """

    def __init__(self, net: PackedDecoder, size: tuple[int, int], graphs: Graphs | None):
        self.fresh = True  # no frame has been seen: the very first one is not doubled in time
        self.graphs = graphs
        self._net, self._size = net, size
        self._make = {"dtype": net.conv1.weight.dtype, "device": net.conv1.weight.device}
        self._z = torch.empty(LATENTS, *size, net.z_dim, **self._make)
        self._latents = Pool(net.z_dim, size, [net.conv1], a=LATENTS, **self._make)
        self._spaces = [self._space(level) for level in range(4)]
        both = [pool for space in self._spaces for pool in (space.entry, space.pool)]
        self.pools = list(dict.fromkeys([self._latents, *both]))
        self._tables: dict[Hashable, Tensor] = {}
        self._outs: dict[torch.dtype, Tensor] = {}

    def reset(self) -> None:
        """Back to before the first frame."""
        self.fresh = True
        for pool in self.pools:
            pool.forget()

    def decode(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        """Latents [T, h, w, z_dim], T at most ``LATENTS``, to [F, 8h, 8w, 3]: pixels, or pictures if dtype is uint8."""
        key = len(z), self.fresh, dtype
        out = self._out(dtype)[: 4 * len(z) - 3 * self.fresh]
        plan = self._plan(len(z), out)
        self._z[: len(z)].copy_(z)
        table = self._send(key, plan.places)
        if self.graphs is None:
            plan.run(table)
        else:
            self.graphs.run(key, lambda: plan.run(table))
        self.fresh = False
        return out.clone()  # the next call writes to the same addresses

    def _out(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._outs:
            height, width = self._size
            shape = 4 * LATENTS, 8 * height, 8 * width, 3
            self._outs[dtype] = torch.empty(shape, dtype=dtype, device=self._make["device"])
        return self._outs[dtype]

    def _send(self, key: Hashable, places: list[int]) -> Tensor:
        """Bring the lists to the device, at an address of the key's own, without waiting for it."""
        device = self._make["device"]
        if key not in self._tables:
            self._tables[key] = torch.empty(len(places), dtype=torch.int32, device=device)
        host = torch.tensor(places, dtype=torch.int32, pin_memory=device.type == "cuda")
        return self._tables[key].copy_(host, non_blocking=True)

    def _space(self, index: int) -> _Space:
        level, frames = self._net.levels[index], min(LATENTS << index, _FINE)
        size = tuple(side << index for side in self._size)
        beside = {0: [self._net.before.first, self._net.before.second], 3: [self._net.pixels]}
        layers, first = [*level.looking_back, *beside.get(index, [])], level.blocks[0].first
        wide = level.blocks[0].second.channels
        narrow = self._net.levels[index - 1].up.channels if index else wide
        if narrow == wide:
            pool = Pool(wide, size, [first, *layers], a=frames, x=frames, b=frames, **self._make)
            return _Space(pool, pool)
        entry = Pool(narrow, size, [first], a=frames, x=frames, **self._make)
        return _Space(entry, Pool(wide, size, layers, a=frames, x=frames, b=frames, **self._make))

    def _plan(self, latents: int, out: Tensor) -> Plan:
        """All steps for so many latents, up to the pictures in ``out``; moves all history on."""
        plan = Plan()
        self._begin(plan, latents)
        self._level(plan, 0, latents)
        count = self._rise(plan, 1, self._double(plan, 0, latents))
        self._level(plan, 1, count)
        frames = self._double(plan, 1, count)
        for start in range(0, len(frames.places), _FINE):
            part = Frames(frames.tensor, frames.places[start : start + _FINE])
            count = self._rise(plan, 2, part)
            self._level(plan, 2, count)
            self._rise(plan, 3, self._spaces[2].pool.at(self._spaces[2].pool.a, count))
            self._level(plan, 3, count)
            self._end(plan, out[start : start + count])
        return plan

    def _begin(self, plan: Plan, count: int) -> None:
        """Latents to the residual stream of the first level, through the first block and attention."""
        net, pool, latents, z = self._net, self._spaces[0].pool, self._latents, self._z[:count]

        def enter(to: Tensor, places: Tensor) -> None:
            to[places] = to_groups(pointwise(net.conv2, z))

        def attend(x: Tensor, here: Tensor, _: Tensor, places: Tensor) -> None:
            y = net.attention(from_groups(x[here]))
            x[here], x[places] = to_groups(y), to_groups(F.silu(net.after_attention(y)))

        x = pool.at(pool.x, count)
        plan.add(enter, latents.at(latents.a, count))
        read = latents.read(net.conv1, latents.a, 0, count)
        plan.convolve(net.conv1, read, raw=x, act=pool.at(pool.a, count), gain=net.before.norm)
        self._first(plan, net.before, pool, pool, count)
        plan.convolve(net.before.second, pool.read(net.before.second, pool.b, 0, count), residual=x, raw=x)
        plan.add(attend, x, pool.at(pool.a, count))

    def _level(self, plan: Plan, index: int, count: int) -> None:
        """The blocks of a level, from ``x`` and ``a`` to ``a``: the plain sum, and what the head reads at the last."""
        source, pool, blocks = self._spaces[index].entry, self._spaces[index].pool, self._net.levels[index].blocks
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            self._first(plan, block, source, pool, count)
            read, residual = pool.read(block.second, pool.b, 0, count), source.at(source.x, count)
            x, a = pool.at(pool.x, count), pool.at(pool.a, count)
            if following is not None:
                to = {"raw": x, "act": a, "gain": following.norm}
            else:
                to = {"act": a, "gain": self._net.head} if index == 3 else {"raw": a}
            plan.convolve(block.second, read, residual=residual, **to)
            source = pool

    def _first(self, plan: Plan, block: Block, source: Pool, pool: Pool, count: int) -> None:
        """The first half of a block, from ``source``'s ``a`` to ``pool``'s ``b``."""
        read = source.read(block.first, source.a, 0, count)
        plan.convolve(block.first, read, act=pool.at(pool.b, count), gain=block.between)

    def _double(self, plan: Plan, index: int, count: int) -> Frames:
        """Two frames for each one in ``a``, but for the very first one of a stream, which stays and is not seen."""
        layer, pool, single = self._net.levels[index].time, self._spaces[index].pool, int(self.fresh)
        # Nothing else is alive here: the stream's end is in ``a``.
        doubled = pool.at(pool.b + pool.x, 2 * (count - single))
        if doubled.places:
            plan.convolve(layer, pool.read(layer, pool.a, single, count), raw=doubled)
        return Frames(pool.tensor, pool.a[:single] + doubled.places)

    def _rise(self, plan: Plan, index: int, frames: Frames) -> int:
        """Frames of the level before, enlarged into this one's ``x`` and ``a``; how many they are."""
        entry, count = self._spaces[index].entry, len(frames.places)
        up, norm = self._net.levels[index - 1].up, self._net.levels[index].blocks[0].norm
        plan.convolve(up, frames, raw=entry.at(entry.x, count), act=entry.at(entry.a, count), gain=norm)
        return count

    def _end(self, plan: Plan, out: Tensor) -> None:
        pool, layer = self._spaces[3].pool, self._net.pixels

        def step(x: Tensor, places: Tensor) -> None:
            conv_pixels(x, places, layer.weight, layer.bias, out)

        plan.add(step, pool.read(layer, pool.a, 0, len(out)))
