"""One stream through the decoder on the fused path."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.causal_conv import to_groups
from ...kernels.conv_pixels import conv_pixels
from ...video_time import BLOCK_FRAMES
from ..band import Band, rows_of
from ..codec import NewGraphs, join
from ..convolution import pointwise
from .frame_pool import FramePool, Frames
from .plan import Plan
from .state import LevelPools, PackedState
from .weights import DecoderWeights

# Frames of the two largest sizes that pass together, of a block's twelve: their number changes no bit, and what lies
# between takes most of a stream's memory.
_FINE, _FINE_LOW = 3, 2


class PackedDecoder(PackedState):
    """See ``CausalDecoder``; ``size`` is the latents' height and width.

    A ``band`` is computed in frames of fewer rows, bit for bit as in whole frames: every result is a sum of its own,
    in an order that does not depend on where it stands.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        size: tuple[int, int],
        new_graphs: NewGraphs,
        low_memory: bool = False,
        in_parts: bool = False,
        band: Band | None = None,
    ):
        super().__init__(weights.conv1.weight, new_graphs, weights.saturated)
        self.weights, self._size, self._rows = weights, size, rows_of(band, size[0], weights.reaches)
        self._fine = 1 if in_parts else _FINE_LOW if low_memory else _FINE
        self._most = 1 if in_parts else BLOCK_FRAMES  # latents of a call
        self._z = torch.empty(self._most, *size, weights.z_dim, dtype=self._dtype, device=self._device)
        self._latents = self._new_pool(weights.z_dim, size, [weights.conv1], a=self._most)
        self._levels = [self._level_pools(index) for index in range(4)]
        self._middle = self._middle_pool()
        self._kept = [self._kept_pool(index) for index in range(3)]
        self._outs: dict[torch.dtype, Tensor] = {}

    def decode(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        return join([self._decode(part, dtype) for part in z.split(self._most)])

    def _decode(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        out = self.out(dtype)[: 4 * len(z) - 3 * self.fresh]
        key, plan = (len(z), self.fresh, dtype), self._plan(len(z), out)
        self._z[: len(z)].copy_(z)
        self._run(key, plan)
        return out[:, self._rows.crops[4]].clone()  # the next call writes to the same addresses

    def out(self, dtype: torch.dtype) -> Tensor:
        """Where a call leaves its frames, of this dtype."""
        if dtype not in self._outs:
            shape = 4 * self._most, *self._size_of(3), 3
            self._outs[dtype] = torch.empty(shape, dtype=dtype, device=self._device)
        return self._outs[dtype]

    def _size_of(self, index: int) -> tuple[int, int]:
        """Height and width of a level's frames."""
        return self._rows.heights[index + 1], self._size[1] << index

    def _frames_of(self, index: int) -> int:
        """How many of them pass together."""
        return (self._most, 2 * self._most, self._fine, self._fine)[index]

    def _level_pools(self, index: int) -> LevelPools:
        weights, rows = self.weights, self._rows
        blocks = weights.levels[index] if index or rows.cuts(0) else (weights.before, *weights.levels[0])
        channels = weights.ups[index - 1].channels if index else weights.conv1.channels
        others = [weights.pixels] if index == 3 else [] if rows.cuts(index + 1) else weights.times[index : index + 1]
        return self._new_level(channels, blocks, self._size_of(index), self._frames_of(index), others)

    def _middle_pool(self) -> FramePool:
        """Where attention works: the first level's, if that has all rows."""
        if not self._rows.cuts(0):
            return self._levels[0].pool
        weights = self.weights
        return self._new_level(weights.conv1.channels, [weights.before], self._size, self._most).pool

    def _kept_pool(self, index: int) -> FramePool:
        """Where a level's result is upsampled: its own, if no rows are cut off before."""
        pool, crop = self._levels[index].pool, self._rows.crops[index + 1]
        if not self._rows.cuts(index + 1):
            return pool
        channels, frames = self.weights.levels[index][-1].channels, self._frames_of(index)
        times = self.weights.times[index : index + 1]
        size = crop.stop - crop.start, self._size_of(index)[1]
        return self._new_pool(channels, size, times, a=frames, b=2 * frames if times else 0)

    def _plan(self, latents: int, out: Tensor) -> Plan:
        """All steps for so many latents, up to the pictures in ``out``; moves all history on."""
        plan = Plan()
        self._begin(plan, latents)
        self._level(plan, 0, latents)
        count = self._upsample_space(plan, 1, self._upsample_time(plan, 0, latents))
        self._level(plan, 1, count)
        frames = self._upsample_time(plan, 1, count)
        for start in range(0, len(frames.indices), self._fine):
            part = Frames(frames.tensor, frames.indices[start : start + self._fine])
            count = self._upsample_space(plan, 2, part)
            self._level(plan, 2, count)
            self._upsample_space(plan, 3, self._kept[2].at(self._kept[2].a, count))
            self._level(plan, 3, count)
            self._end(plan, out[start : start + count])
        return plan

    def _begin(self, plan: Plan, count: int) -> None:
        """Latents to the residual stream of the first level, through the first block and attention."""
        weights, pool, latents, z = self.weights, self._middle, self._latents, self._z[:count]

        def enter(to: Tensor, indices: Tensor) -> None:
            to[indices] = to_groups(pointwise(weights.conv2, z))

        plan.add(enter, latents.at(latents.a, count))
        read = latents.read(weights.conv1, latents.a, 0, count)
        raw, act = pool.at(pool.x, count), pool.acts.at(pool.acts.a, count)
        plan.convolve(weights.conv1, read, raw=raw, act=act, norm=weights.before.before)
        plan.blocks([weights.before], pool, pool, count, raw=pool.x)
        plan.attend(weights.attention, pool, count)
        first = self._levels[0].pool
        if first is not pool:
            plan.crop(pool.fixed(count), self._rows.crops[0], first.at(first.x, count))
        plan.activate(weights.levels[0][0], first, count)

    def _level(self, plan: Plan, index: int, count: int) -> None:
        """Run a level's blocks on ``x`` and ``a``. The result goes to ``a`` of what is upsampled: the plain residual
        sum, or at the last level SiLU(norm) for the head.
        """
        entry, pool, blocks = self._levels[index].entry, self._levels[index].pool, self.weights.levels[index]
        if index == 3:
            plan.blocks(blocks, entry, pool, count, norm=self.weights.head)
        elif (kept := self._kept[index]) is pool:
            plan.blocks(blocks, entry, pool, count, raw=pool.a)
        else:
            plan.blocks(blocks, entry, pool, count, raw=pool.x)
            plan.crop(pool.fixed(count), self._rows.crops[index + 1], kept.at(kept.a, count))

    def _upsample_time(self, plan: Plan, index: int, count: int) -> Frames:
        """Temporal 2x upsampling of the level's frames in ``a``.

        A video's first frame is passed through and does not enter the convolution's history.
        """
        layer, pool, single = self.weights.times[index], self._kept[index], int(self.fresh)
        doubled = pool.at(pool.b + pool.x, 2 * (count - single))  # both are free here
        if doubled.indices:
            plan.convolve(layer, pool.read(layer, pool.a, single, count), raw=doubled)
        return Frames(pool.tensor, pool.a[:single] + doubled.indices)

    def _upsample_space(self, plan: Plan, index: int, frames: Frames) -> int:
        """Spatial 2x upsampling of the level before's ``frames`` into this one's ``x`` and ``a``; their number."""
        entry, count = self._levels[index].entry, len(frames.indices)
        raw, act = entry.at(entry.x, count), entry.acts.at(entry.acts.a, count)
        plan.convolve(self.weights.ups[index - 1], frames, raw=raw, act=act, norm=self.weights.levels[index][0].before)
        return count

    def _end(self, plan: Plan, out: Tensor) -> None:
        """What the head's norm left in ``a`` of the last level, to the pictures."""
        pool, layer = self._levels[3].pool, self.weights.pixels

        def step(x: Tensor, indices: Tensor) -> None:
            conv_pixels(x, indices, layer.weight, layer.bias, out)

        plan.add(step, pool.read(layer, pool.a, 0, len(out)))
