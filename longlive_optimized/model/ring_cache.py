"""The ring: the KV cache of self-attention, a sliding window behind attention sinks, in static storage.

Sinks are the video's first ``sink`` latent frames: they stay in the window for ever, as in StreamingLLM (Xiao et al.
2023), so that softmax keeps the early tokens that draw most of its weight. Attention has no mask, so the keys are a set
and slots need no order.
The sinks keep slots 0..sink-1; every later frame f goes to slot sink + (f - sink) mod (window - sink), which holds
exactly the frame that a rolling cache (docs/model.md 3.2) would evict. Nothing is rolled, cloned or concatenated, and
the indices live on the device, so that captured passes stay good.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.ring_advance import ring_advance
from ..kernels.rotate_sinks import rotate_sinks
from . import rope
from .config import ModelConfig


class RingLayer(NamedTuple):
    """One layer's part of the ring, and where the pass reads and writes; as in RingCache."""

    k: Tensor  # [capacity, S, heads, head_dim], S tokens a frame
    v: Tensor
    k_sink: Tensor  # [sink, S, heads, head_dim]; none with base positions
    rope_time: Tensor  # [F, time pairs, 2], of the pass's F frames
    rope_space: Tensor  # [S, row and column pairs, 2]
    slots: Tensor  # int64 [F]
    valid: Tensor  # int32 [1]


class RingCache:
    """Keys and values of ``window`` latent frames for every layer, and where the next pass reads and writes.

    k, v [layers, capacity, S, heads, head_dim] of ``dtype``: the window that it was made with is its capacity,
    ``resize`` goes up to that. With ``relative`` positions the sinks' keys are kept un-rotated in ``k_sink`` and
    rotated anew as time advances; all other keys stay at their absolute position, since between them only differences
    of position matter (docs/model.md 3.6).
    """

    def __init__(
        self,
        config: ModelConfig,
        grid: tuple[int, int],
        *,
        window: int,
        sink: int,
        relative: bool,
        dtype: torch.dtype,
        device: torch.device | str,
    ):
        self.capacity, self.sink, self.relative = window, sink, relative
        tokens = grid[0] * grid[1]
        frame = (tokens, config.num_heads, config.head_dim)
        self.k = torch.zeros(config.num_layers, window, *frame, dtype=dtype, device=device)
        self.v = torch.zeros_like(self.k)
        self.k_sink = self.k.new_zeros(config.num_layers, sink if relative else 0, *frame)

        table = rope.table_dtype(dtype)
        self.rope_space = rope.spatial_table(grid, config.head_dim, table, device)
        self._freqs = rope.frequencies(rope.axis_pairs(config.head_dim)[0], device)
        self._rope_time = torch.zeros(window, len(self._freqs), 2, dtype=table, device=device)
        self._sink_time = self._rope_time.new_zeros(sink if relative else 0, len(self._freqs), 2)
        self._slots = torch.zeros(window, dtype=torch.int64, device=device)
        self._start, self._window = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
        self.valid = torch.zeros(1, dtype=torch.int32, device=device)  # tokens [0, valid) are attended to
        self.resize(window)
        self.reset()

    @property
    def slots(self) -> Tensor:
        """Write slots of the current pass, int64 [F]."""
        return self._slots[: self.frames]

    @property
    def rope_time(self) -> Tensor:
        """Rotations of the current pass's frames, [F, time pairs, 2]."""
        return self._rope_time[: self.frames]

    def layer(self, index: int) -> RingLayer:
        """What one layer's pass reads and writes.

        Views, not an index for the layer to apply: torch.compile (2.13) makes an int argument symbolic and then
        generates wrong code (tests/engine/test_compile.py).
        """
        keys = self.k[index], self.v[index], self.k_sink[index]
        return RingLayer(*keys, self.rope_time, self.rope_space, self.slots, self.valid)

    def reset(self) -> None:
        """Forget every frame; the storage stays."""
        self.frames = self._origin = 0
        self.rotates_sinks = self._sink_written = False

    def resize(self, window: int) -> None:
        """Attend to ``window`` frames from the next pass on; all but the sinks must then be written anew.

        Captured passes stay good: the window is read on the device. Raises ValueError for one beyond the capacity.
        """
        if not self.sink < window <= self.capacity:
            wanted = f"be larger than the {self.sink} sink frames and at most {self.capacity}"
            raise ValueError(f"window must {wanted}, got {window}")
        self.window = window
        self._window.fill_(window)

    def take_sinks(self, other: RingCache) -> None:
        """Copy the sinks of a ring that differs in window and capacity only."""
        s = self.sink
        self.k[:, :s], self.v[:, :s] = other.k[:, :s], other.v[:, :s]
        self.k_sink.copy_(other.k_sink)
        self._sink_written = other._sink_written

    def seek(self, start: int, frames: int, origin: int = 0) -> None:
        """Point the next passes at latent frames [start, start + frames).

        ``origin`` > 0 makes frames origin, origin+1, … the new sinks (a recache that replaces them). Raises ValueError
        for more frames than the window has.
        """
        self.seek_on_host(start, frames, origin)
        self.advance()

    def seek_on_host(self, start: int, frames: int, origin: int = 0) -> None:
        """The host's half of ``seek``: what a captured ``advance`` cannot change, and the start that it reads."""
        if not 1 <= frames <= self.window:
            raise ValueError(f"frames must lie in 1..{self.window}, got {frames}")
        self.frames, self._origin = frames, origin
        writes_sinks = start - origin < self.sink
        self.rotates_sinks = self.relative and self._sink_written and not writes_sinks
        self._sink_written |= writes_sinks
        self._start.fill_(start)
        self.valid.fill_(min(start + frames - origin, self.window) * self.k.shape[2])

    def advance(self) -> None:
        """The device's half of ``seek``: write slots, rotations and the sinks' keys where they stand now."""
        sink = self.sink, self._origin
        ring_advance(self._start, self._freqs, self.slots, self.rope_time, self._sink_time, self._window, *sink)
        if self.rotates_sinks:
            # Counted from where the window begins, sink i stands at position i wherever the stream is.
            rotate_sinks(self.k_sink, self._sink_time, self.rope_space, self.k)
