"""One stream through the packed decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.causal_conv import to_groups
from ..kernels.conv_pixels import conv_pixels
from .layers import pointwise
from .packed_decoder import PackedDecoder
from .packed_state import Graphs, PackedState, Space
from .places import Frames
from .plan import Plan

LATENTS = 3  # of a call at most: a block
_FINE = 6  # frames of the two largest sizes that pass together: half a block's, to halve the memory


class DecoderState(PackedState):
    """See ``PackedState``; ``size`` is the latents' height and width."""

    def __init__(self, net: PackedDecoder, size: tuple[int, int], graphs: Graphs | None):
        super().__init__(net.conv1.weight, graphs)
        self._net, self._size = net, size
        self._z = torch.empty(LATENTS, *size, net.z_dim, **self._make)
        self._latents = self._pool(net.z_dim, size, [net.conv1], a=LATENTS)
        self._spaces = [self._level_space(index) for index in range(4)]
        self._outs: dict[torch.dtype, Tensor] = {}

    def decode(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        """Latents [T, h, w, z_dim], T at most ``LATENTS``, to [F, 8h, 8w, 3]: pixels, or pictures if dtype is uint8."""
        out = self._out(dtype)[: 4 * len(z) - 3 * self.fresh]
        key, plan = (len(z), self.fresh, dtype), self._plan(len(z), out)
        self._z[: len(z)].copy_(z)
        self._run(key, plan)
        return out.clone()  # the next call writes to the same addresses

    def _out(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._outs:
            height, width = self._size
            shape = 4 * LATENTS, 8 * height, 8 * width, 3
            self._outs[dtype] = torch.empty(shape, dtype=dtype, device=self._make["device"])
        return self._outs[dtype]

    def _level_space(self, index: int) -> Space:
        net, level, blocks, others = self._net, self._net.levels[index], self._net.levels[index].blocks, []
        if index == 0:
            blocks, channels = [net.before, *blocks], net.conv1.channels
        else:
            channels = net.levels[index - 1].up.channels
        if index == 3:
            others = [net.pixels]
        size = tuple(side << index for side in self._size)
        return self._space(channels, blocks, size, min(LATENTS << index, _FINE), [level.time, *others])

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

        plan.add(enter, latents.at(latents.a, count))
        read = latents.read(net.conv1, latents.a, 0, count)
        raw, act = pool.at(pool.x, count), pool.at(pool.a, count)
        plan.convolve(net.conv1, read, raw=raw, act=act, gain=net.before.gain)
        plan.blocks([net.before], pool, pool, count, raw=pool.x)
        plan.attend(net.attention, pool, count)
        plan.activate(net.levels[0].blocks[0], pool, count)

    def _level(self, plan: Plan, index: int, count: int) -> None:
        """The blocks of a level, from ``x`` and ``a`` to ``a``: the plain sum, and what the head reads at the last."""
        space, blocks = self._spaces[index], self._net.levels[index].blocks
        if index == 3:
            plan.blocks(blocks, space.entry, space.pool, count, act=space.pool.a, gain=self._net.head)
        else:
            plan.blocks(blocks, space.entry, space.pool, count, raw=space.pool.a)

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
        up, gain = self._net.levels[index - 1].up, self._net.levels[index].blocks[0].gain
        plan.convolve(up, frames, raw=entry.at(entry.x, count), act=entry.at(entry.a, count), gain=gain)
        return count

    def _end(self, plan: Plan, out: Tensor) -> None:
        pool, layer = self._spaces[3].pool, self._net.pixels

        def step(x: Tensor, places: Tensor) -> None:
            conv_pixels(x, places, layer.weight, layer.bias, out)

        plan.add(step, pool.read(layer, pool.a, 0, len(out)))
