"""The steps of one call on the fused path, which read lists of indices."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...kernels.causal_conv import causal_conv, from_groups, to_groups
from ...kernels.causal_conv_int8 import causal_conv_int8
from ...kernels.norm_silu import norm_silu
from ..wan.layers import AttentionBlock
from .frame_pool import FramePool, Frames
from .weights import Act, Block, Convolution, Int8Convolution


class Plan:
    """The steps of one call, noted on the host and run together. All lists of indices lie in one tensor on the device.

    Making a plan moves every layer's history on; running it computes. A graph of one plan serves all later plans with
    the same steps: only what that tensor holds differs.
    """

    def __init__(self) -> None:
        self.indices: list[int] = []
        self._steps: list[Callable[[Tensor], None]] = []

    def run(self, table: Tensor) -> None:
        """Do it; ``table`` holds ``indices`` on the device."""
        for step in self._steps:
            step(table)

    def add(self, step: Callable[..., object], *frames: Frames | None) -> None:
        """Call ``step`` with the tensor and the indices of each of ``frames``; two None for None."""
        spans = [(None, slice(0)) if part is None else (part.tensor, self._span(part.indices)) for part in frames]

        def run(table: Tensor) -> None:
            args = ((tensor, None if tensor is None else table[span]) for tensor, span in spans)
            step(*itertools.chain.from_iterable(args))

        self._steps.append(run)

    def convolve(
        self,
        layer: Convolution | Int8Convolution,
        source: Frames,
        *,
        residual: Frames | None = None,
        raw: Frames | None = None,
        act: Frames | None = None,
        norm: Act | None = None,
    ) -> None:
        """See ``causal_conv``: the result into ``raw``, SiLU of its ``norm`` into ``act``, or both."""
        last = () if norm is None else (norm.gain, norm.scale, norm.saturated)

        def step(x: Tensor, indices: Tensor, *rest: Tensor | None) -> None:
            if isinstance(layer, Int8Convolution):
                causal_conv_int8(x, indices, layer.weight, layer.scale, layer.bias, *rest, *last)
            else:
                causal_conv(x, indices, layer.weight, layer.bias, int(layer.kind), *rest, *last)

        self.add(step, source, residual, raw, act)

    def blocks(
        self,
        blocks: Sequence[Block],
        source: FramePool,
        pool: FramePool,
        count: int,
        raw: list[int] | None = None,
        norm: Act | None = None,
    ) -> None:
        """From x and a of ``source``, through ``pool``, to its list ``raw``, or SiLU of ``norm`` to a."""
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            to, after = (raw, norm) if following is None else (pool.x, following.before)
            acts = pool if following is None else pool.acts
            read = source.acts.read(block.first, source.acts.a, 0, count)
            self.convolve(block.first, read, act=pool.acts.at(pool.acts.b, count), norm=block.between)
            read, residual = pool.acts.read(block.second, pool.acts.b, 0, count), source.at(source.x, count)
            if block.shortcut:
                shortcut = pool.at(pool.x, count)
                self.convolve(block.shortcut, residual, raw=shortcut)
                residual = shortcut
            sums = None if to is None else pool.at(to, count)
            normed = None if after is None else acts.at(acts.a, count)
            self.convolve(block.second, read, residual=residual, raw=sums, act=normed, norm=after)
            source = pool

    def attend(self, attention: AttentionBlock, pool: FramePool, count: int) -> None:
        """Attention on ``pool``'s x, in place."""
        x = pool.fixed(count)
        self.add(lambda: x.copy_(to_groups(attention(from_groups(x)))))

    def activate(self, block: Block, pool: FramePool, count: int) -> None:
        """SiLU(norm(x)) of ``pool``'s x into a, for ``block`` to read, where no convolution could write it."""
        x, norm = pool.fixed(count), block.before

        def step(to: Tensor, indices: Tensor) -> None:
            norm_silu(x, norm.gain, to, indices, norm.scale, norm.saturated)

        self.add(step, pool.acts.at(pool.acts.a, count))

    def crop(self, source: Tensor, rows: slice, to: Frames) -> None:
        """These rows of ``source`` [T, C / 8, H, W, 8] into ``to``."""

        def step(tensor: Tensor, indices: Tensor) -> None:
            # Eight bytes at a time: a copy by indices takes its time by the element.
            tensor.view(torch.int64)[indices] = source[:, :, rows].view(torch.int64)

        self.add(step, to)

    def _span(self, indices: list[int]) -> slice:
        start = len(self.indices)
        self.indices += indices
        return slice(start, len(self.indices))
