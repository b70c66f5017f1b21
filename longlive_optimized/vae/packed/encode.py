"""One stream through the encoder on the fused path."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels.causal_conv import GROUP, from_groups, to_groups
from ...video_time import BLOCK_PIXEL_FRAMES
from ..codec import NewGraphs, join, split_frames
from ..convolution import conv2d, pointwise
from .frame_pool import FramePool, Frames
from .plan import Plan
from .state import LevelPools, PackedState
from .weights import EncoderWeights

_FINE, _FINE_LOW = 4, 2  # frames of the two largest sizes that pass together, as in the decoder


class PackedEncoder(PackedState):
    """See ``CausalEncoder``; ``size`` is the frames' height and width."""

    def __init__(
        self,
        weights: EncoderWeights,
        size: tuple[int, int],
        new_graphs: NewGraphs,
        low_memory: bool = False,
        in_parts: bool = False,
    ):
        super().__init__(weights.pixels.weight, new_graphs, weights.saturated)
        self._fine = 1 if in_parts else _FINE_LOW if low_memory else _FINE
        self._group = 4 if in_parts else BLOCK_PIXEL_FRAMES
        # Most latents of a call: the first call may hold a frame more, and up to 3 that do not complete a latent.
        self._most = self._group // 4 + 1
        make = {"dtype": self._dtype, "device": self._device}
        self.weights, self._sizes = weights, [(size[0] >> i, size[1] >> i) for i in range(4)]
        self._frames = torch.zeros(4 * self._most, 1, *size, GROUP, **make)  # three channels are ever written
        self._pixels = self._new_pool(GROUP, size, [weights.pixels], a=self._fine)
        self._levels = [self._level_pools(index) for index in range(4)]
        self._paired = {index: self._pair_pool(index) for index in weights.times}
        self._moments = self._new_pool(weights.moments.channels, self._sizes[3], x=self._most)
        self._out = torch.empty(self._most, *self._sizes[3], weights.z_dim, **make)

    def encode(self, frames: Tensor) -> Tensor:
        return join([self._encode(part) for part in split_frames(frames, self._group, int(self.fresh))])

    def _encode(self, frames: Tensor) -> Tensor:
        """At most four for each of the most latents."""
        count, key = len(frames), (len(frames), self.fresh)
        out = self._out[: (count + 3 * self.fresh) // 4]
        plan = self._plan(count, out)
        self._frames[:count, 0, ..., :3].copy_(frames)
        self._run(key, plan)
        return out.clone()  # the next call writes to the same addresses

    def _level_pools(self, index: int) -> LevelPools:
        weights = self.weights
        blocks = weights.levels[index] if index < 3 else (*weights.levels[3], weights.after)
        channels = weights.levels[index - 1][0].channels if index else weights.pixels.channels
        frames = (self._fine, self._fine, 2 * self._most, self._most)[index]
        return self._new_level(channels, blocks, self._sizes[index], frames, [weights.moments] if index == 3 else [])

    def _pair_pool(self, index: int) -> FramePool:
        """What temporal downsampling after the level reads, in ``x``: the last frame before a call, then the call's."""
        frames = 4 * self._most >> index - 1
        return self._new_pool(self.weights.levels[index][0].channels, self._sizes[index + 1], x=1 + frames)

    def _plan(self, count: int, out: Tensor) -> Plan:
        """All steps for so many frames, up to the means in ``out``; moves all history on."""
        plan, paired, first = Plan(), self._paired, int(not self.fresh)
        for start in range(0, count, self._fine):
            part = self._frames[start : min(start + self._fine, count)]
            self._begin(plan, part)
            self._level(plan, 0, len(part))
            self._downsample_space(plan, 0, self._levels[1].entry.fixed(len(part)))
            plan.activate(self.weights.levels[1][0], self._levels[1].entry, len(part))
            self._level(plan, 1, len(part))
            self._downsample_space(plan, 1, paired[1].tensor[first + start : first + start + len(part)])
        count = self._downsample_time(plan, 1, count)
        self._level(plan, 2, count)
        self._downsample_space(plan, 2, paired[2].tensor[first : first + count])
        self._downsample_time(plan, 2, count)
        self._level(plan, 3, len(out))
        self._end(plan, out)
        return plan

    def _begin(self, plan: Plan, frames: Tensor) -> None:
        """Frames to the residual stream of the first level."""
        layer, source, pool, count = self.weights.pixels, self._pixels, self._levels[0].entry, len(frames)

        def enter(to: Tensor, indices: Tensor) -> None:
            to[indices] = frames

        plan.add(enter, source.at(source.a, count))
        read = source.read(layer, source.a, 0, count)
        raw, act = pool.at(pool.x, count), pool.acts.at(pool.acts.a, count)
        plan.convolve(layer, read, raw=raw, act=act, norm=self.weights.levels[0][0].before)

    def _level(self, plan: Plan, index: int, count: int) -> None:
        """The blocks of a level, from ``x`` and ``a`` to ``x``."""
        level = self._levels[index]
        plan.blocks(self.weights.levels[index], level.entry, level.pool, count, raw=level.pool.x)

    def _downsample_space(self, plan: Plan, index: int, to: Tensor) -> None:
        """Spatial 2x downsampling of the level's ``x`` into the frames ``to``."""
        layer, x = self.weights.downs[index], self._levels[index].pool.fixed(len(to))
        plan.add(lambda: to.copy_(to_groups(_strided(layer, x))))

    def _downsample_time(self, plan: Plan, index: int, count: int) -> int:
        """Temporal 2x downsampling of ``count`` frames into the next level's ``x`` and ``a``; their number.

        A video's first frame is passed through. Later ones go in pairs, with the frame before them.
        """
        pool, entry, single = self._paired[index], self._levels[index + 1].entry, int(self.fresh)
        last = count - single
        pairs = last // 2
        if pairs:
            source, before = Frames(_pairs(pool), list(range(pairs))), pool.at(pool.x[::2], pairs)
            to = entry.at(entry.x[single:], pairs)
            plan.convolve(self.weights.times[index], source, residual=before, raw=to)

        def pass_on() -> None:
            if single:
                entry.fixed(1).copy_(pool.fixed(1))
            pool.fixed(1).copy_(pool.tensor[last : last + 1])

        plan.add(pass_on)
        plan.activate(self.weights.levels[index + 1][0], entry, single + pairs)
        return single + pairs

    def _end(self, plan: Plan, out: Tensor) -> None:
        """The last level's ``x`` through attention, a block and the head to the means."""
        weights, pool, count = self.weights, self._levels[3].pool, len(out)
        moments = self._moments.fixed(count)
        plan.attend(weights.attention, pool, count)
        plan.activate(weights.after, pool, count)
        plan.blocks([weights.after], pool, pool, count, norm=weights.head)
        read = pool.read(weights.moments, pool.a, 0, count)
        plan.convolve(weights.moments, read, raw=self._moments.at(self._moments.x, count))

        def mean() -> None:
            seen = from_groups(moments)[..., : weights.conv1.in_channels]  # the others only fill up the kernel's width
            out.copy_(pointwise(weights.conv1, seen)[..., : weights.z_dim])

        plan.add(mean)


def _pairs(pool: FramePool) -> Tensor:
    """Frames 1 and 2 of x as one of twice the channels, 3 and 4, and so on."""
    x = pool.fixed(len(pool.x))[1:]
    return x.view(len(x) // 2, -1, *x.shape[2:])


def _strided(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The stride-2 convolution of [T, C / 8, H, W, 8], zero-padded right and below, to [T, H / 2, W / 2, C]."""
    count, groups, height, width, _ = x.shape
    padded = x.new_empty(count, height + 1, width + 1, groups * GROUP)
    padded[:, height:] = 0
    padded[:, :, width:] = 0
    to_groups(padded)[:, :, :height, :width].copy_(x)
    return conv2d(layer, padded)
