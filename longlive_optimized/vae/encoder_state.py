"""One stream through the packed encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..kernels.causal_conv import GROUP, from_groups
from .layers import conv2d, pointwise
from .packed_encoder import PackedEncoder
from .packed_state import Graphs, PackedState, Space
from .places import Frames, Pool
from .plan import Plan, in_groups

FRAMES = 12  # of a steady call: a block's
_LATENTS = 4  # of a call at most: a stream's first, whose first frame comes on top, as may three that are in no latent
_FINE = 4  # frames of the two largest sizes that pass together: a third of a block's, for the memory


class EncoderState(PackedState):
    """See ``PackedState``; ``size`` is the frames' height and width."""

    def __init__(self, net: PackedEncoder, size: tuple[int, int], graphs: Graphs | None):
        super().__init__(net.pixels.weight, graphs)
        self._net, self._sizes = net, [(size[0] >> i, size[1] >> i) for i in range(4)]
        self._frames = torch.zeros(4 * _LATENTS, 1, *size, GROUP, **self._make)  # three channels are ever written
        self._pixels = self._pool(GROUP, size, [net.pixels], a=_FINE)
        self._spaces = [self._level_space(index) for index in range(4)]
        # What is halved in time, after the last frame before it.
        self._singles = {
            index: self._pool(net.levels[index].channels, self._sizes[index + 1], x=1 + (4 * _LATENTS >> index - 1))
            for index in (1, 2)
        }
        self._moments = self._pool(net.moments.channels, self._sizes[3], x=_LATENTS)
        self._out = torch.empty(_LATENTS, *self._sizes[3], net.z_dim, **self._make)

    def encode(self, frames: Tensor) -> Tensor:
        """Pixels [F, 8h, 8w, 3] to the mean of the latents' distribution, [T, h, w, z_dim].

        A fresh stream's first frame is a latent of its own, then every four; up to three at the end, of at most 16
        frames in all, are in none yet.
        """
        count, key = len(frames), (len(frames), self.fresh)
        out = self._out[: (count + 3 * self.fresh) // 4]
        plan = self._plan(count, out)
        self._frames[:count, 0, ..., :3].copy_(frames)
        self._run(key, plan)
        return out.clone()  # the next call writes to the same addresses

    def _level_space(self, index: int) -> Space:
        net, blocks, others = self._net, self._net.levels[index].blocks, []
        channels = net.levels[index - 1].channels if index else net.pixels.channels
        if index == 3:
            blocks, others = [*blocks, net.after], [net.moments]
        frames = (_FINE, _FINE, 2 * _LATENTS, _LATENTS)[index]
        return self._space(channels, blocks, self._sizes[index], frames, others)

    def _plan(self, count: int, out: Tensor) -> Plan:
        """All steps for so many frames, up to the means in ``out``; moves all history on."""
        plan, singles, first = Plan(), self._singles, int(not self.fresh)
        for start in range(0, count, _FINE):
            part = self._frames[start : min(start + _FINE, count)]
            self._begin(plan, part)
            self._level(plan, 0, len(part))
            self._shrink(plan, 0, self._spaces[1].entry.fixed(len(part)))
            plan.activate(self._net.levels[1].blocks[0], self._spaces[1].entry, len(part))
            self._level(plan, 1, len(part))
            self._shrink(plan, 1, singles[1].tensor[first + start : first + start + len(part)])
        count = self._halve(plan, 1, count)
        self._level(plan, 2, count)
        self._shrink(plan, 2, singles[2].tensor[first : first + count])
        self._halve(plan, 2, count)
        self._level(plan, 3, len(out))
        self._end(plan, out)
        return plan

    def _begin(self, plan: Plan, frames: Tensor) -> None:
        """Frames to the residual stream of the first level."""
        layer, source, pool, count = self._net.pixels, self._pixels, self._spaces[0].entry, len(frames)

        def enter(to: Tensor, places: Tensor) -> None:
            to[places] = frames

        plan.add(enter, source.at(source.a, count))
        read = source.read(layer, source.a, 0, count)
        raw, act = pool.at(pool.x, count), pool.at(pool.a, count)
        plan.convolve(layer, read, raw=raw, act=act, gain=self._net.levels[0].blocks[0].gain)

    def _level(self, plan: Plan, index: int, count: int) -> None:
        """The blocks of a level, from ``x`` and ``a`` to ``x``."""
        space = self._spaces[index]
        plan.blocks(self._net.levels[index].blocks, space.entry, space.pool, count, raw=space.pool.x)

    def _shrink(self, plan: Plan, index: int, to: Tensor) -> None:
        """The level's ``x``, half as high and wide, into the frames ``to`` of the next size."""
        layer, x = self._net.levels[index].shrink, self._spaces[index].pool.fixed(len(to))
        plan.add(lambda: to.copy_(in_groups(_shrunk(layer, x))))

    def _halve(self, plan: Plan, index: int, count: int) -> int:
        """``count`` frames of the level, shrunk, to half as many in the next one's ``x`` and ``a``; how many they are.

        The very first frame of a stream is passed on as it is. Later ones go in pairs, with the frame before them.
        """
        pool, entry, single = self._singles[index], self._spaces[index + 1].entry, int(self.fresh)
        last = count - single
        pairs = last // 2
        if pairs:
            source, before = Frames(_pairs(pool), list(range(pairs))), pool.at(pool.x[::2], pairs)
            to = entry.at(entry.x[single:], pairs)
            plan.convolve(self._net.levels[index].time, source, residual=before, raw=to)

        def pass_on() -> None:
            if single:
                entry.fixed(1).copy_(pool.fixed(1))
            pool.fixed(1).copy_(pool.tensor[last : last + 1])

        plan.add(pass_on)
        plan.activate(self._net.levels[index + 1].blocks[0], entry, single + pairs)
        return single + pairs

    def _end(self, plan: Plan, out: Tensor) -> None:
        """The last level's ``x`` through attention, a block and the head to the means."""
        net, pool, count = self._net, self._spaces[3].pool, len(out)
        moments = self._moments.fixed(count)
        plan.attend(net.attention, pool, count)
        plan.activate(net.after, pool, count)
        plan.blocks([net.after], pool, pool, count, act=pool.a, gain=net.head)
        read = pool.read(net.moments, pool.a, 0, count)
        plan.convolve(net.moments, read, raw=self._moments.at(self._moments.x, count))

        def mean() -> None:
            seen = from_groups(moments)[..., : net.conv1.in_channels]  # the others only fill up the kernel's width
            out.copy_(pointwise(net.conv1, seen)[..., : net.z_dim])

        plan.add(mean)


def _pairs(pool: Pool) -> Tensor:
    """Frames 1 and 2 of x as one of twice the channels, 3 and 4, and so on."""
    x = pool.fixed(len(pool.x))[1:]
    return x.view(len(x) // 2, -1, *x.shape[2:])


def _shrunk(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """[T, C / 8, H, W, 8] to [T, H / 2, W / 2, C], zero-padded right and below."""
    count, groups, height, width, _ = x.shape
    padded = x.new_empty(count, height + 1, width + 1, groups * GROUP)
    padded[:, height:] = 0
    padded[:, :, width:] = 0
    in_groups(padded)[:, :, :height, :width].copy_(x)
    return conv2d(layer, padded)
