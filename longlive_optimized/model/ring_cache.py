"""The ring: the KV cache of self-attention, a sliding window behind attention sinks, in static storage.

Sinks are the video's first ``sink`` latent frames: they stay in the window for ever, as in StreamingLLM (Xiao et al.
2023), so that softmax keeps the early tokens that draw most of its weight. Attention has no mask, so the keys are a set
and slots need no order.
The sinks keep slots 0..sink-1; every later frame f goes to slot sink + (f - sink) mod (window - sink), which holds
exactly the frame that a rolling cache (docs/model.md 3.2) would evict. Nothing is rolled, cloned or concatenated, and
the indices live on the device, so that captured passes stay good.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..kernels.quantize_keys import KEY_RUN, dequantize_keys, quantize_keys
from ..kernels.ring_advance import ring_advance
from ..kernels.rotate_sinks import rotate_sinks, rotate_sinks_int8
from . import rope
from .config import ModelConfig


class Int8Keys(NamedTuple):
    """Keys as ``quantize_keys`` leaves them, of all layers; of one layer without the first dimension."""

    k: Tensor  # int8 [layers, capacity, S, heads, head_dim]
    scale: Tensor  # float32 [layers, heads, capacity * S / KEY_RUN or a little more]
    offset: Tensor  # float32 [layers, heads, head_dim], taken from every key

    def layer(self, index: int) -> Int8Keys:
        """One layer's."""
        return Int8Keys(*(each[index] for each in self))

    def renew(self, k: Tensor, offset: Tensor | None = None) -> None:
        """One layer's: take rotated keys k [F, S, heads, head_dim] into slots 0, 1, ...; no other slot holds keys then.

        ``offset`` [heads, head_dim] is in force from then on: their mean if None, which leaves them small.
        """
        # Any offset gives the same attention. One that is not finite would outlive the keys that it came from.
        self.offset.copy_(k.mean((0, 1), dtype=torch.float32).nan_to_num_(0, 0, 0) if offset is None else offset)
        quantize_keys(k, self.offset, self.k, self.scale, torch.arange(len(k), device=k.device))


class RingLayer(NamedTuple):
    """One layer's part of the ring, and where the pass reads and writes; as in RingCache."""

    keys: Tensor | Int8Keys  # which the pass attends to: [capacity, S, heads, head_dim], S tokens a frame
    kept: Int8Keys | None  # the ring, where ``keys`` are the pass's own alone: takes them in int8 (``renew``)
    v: Tensor  # [capacity, S, heads, head_dim]
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

    Keys are of one kind at a time, ``dtype`` (in k) or int8 (in ``k_int8``): ``holds_int8``, which ``hold`` changes.
    Storage of a kind is allocated when it is first asked for, and stays; it is None until then. Where the ring's are
    int8, a pass without older keys than its own attends to these in ``dtype``, in storage that all layers share; the
    ring then takes them in int8, and their mean as the offset of all keys to come.
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
        int8: bool = False,
    ):
        self.capacity, self.sink, self.relative = window, sink, relative
        self._tokens = grid[0] * grid[1]
        frame = (self._tokens, config.num_heads, config.head_dim)
        self.k: Tensor | None = None
        self.k_int8: Int8Keys | None = None
        self.v = torch.zeros(config.num_layers, window, *frame, dtype=dtype, device=device)
        self.k_sink = self.v.new_zeros(config.num_layers, sink if relative else 0, *frame)
        self.holds_int8 = int8
        self.reserve(int8)

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

    @property
    def keys_read(self) -> Literal["dtype", "int8", "own"]:
        """The keys that the current pass attends to: the ring's, or beside keys in int8 its own, in ``dtype``."""
        if not self.holds_int8:
            return "dtype"
        return "own" if self._alone else "int8"

    def layer(self, index: int) -> RingLayer:
        """What one layer's pass reads and writes.

        Views, not an index for the layer to apply: torch.compile (2.13) makes an int argument symbolic and then
        generates wrong code (tests/engine/test_compile.py).
        """
        rest = self.v[index], self.k_sink[index], self.rope_time, self.rope_space, self.slots, self.valid
        if not self.holds_int8:
            return RingLayer(self._in_dtype()[index], None, *rest)
        int8 = self._in_int8().layer(index)
        return RingLayer(self._own, int8, *rest) if self._alone else RingLayer(int8, None, *rest)

    def keys(self, index: int) -> Tensor:
        """One layer's keys in ``dtype``, [capacity, S, heads, head_dim]: what those in int8 stand for is a copy."""
        if self.holds_int8:
            return dequantize_keys(*self._in_int8().layer(index), self.v.dtype)
        return self._in_dtype()[index]

    @property
    def stale(self) -> bool:
        """Whether the last pass was in another window, or there was none: all but the sinks must be written anew."""
        return self._last_window != self.window

    def reserve(self, int8: bool) -> None:
        """Allocate storage for keys in int8, or in ``dtype``, if there is none yet.

        Raises ValueError for int8 where a frame is no multiple of KEY_RUN tokens.
        """
        if int8:
            self._in_int8()
        else:
            self._in_dtype()

    def _in_dtype(self) -> Tensor:
        if self.k is None:
            self.k = torch.zeros_like(self.v)
        return self.k

    def _in_int8(self) -> Int8Keys:
        if self.k_int8 is None:
            if self._tokens % KEY_RUN:
                raise ValueError(f"grid must have a multiple of {KEY_RUN} tokens for int8, got {self._tokens}")
            layers, _, _, heads, head_dim = self.v.shape
            runs = self.capacity * self._tokens // KEY_RUN
            scales = -(-runs // 4) * 4  # each head's begin at a multiple of 16 bytes, as attention copies them
            where = {"dtype": torch.float32, "device": self.v.device}
            offset, scale = (torch.zeros(layers, heads, each, **where) for each in (head_dim, scales))
            self._own = torch.zeros_like(self.v[0])
            self.k_int8 = Int8Keys(torch.zeros_like(self.v, dtype=torch.int8), scale, offset)
        return self.k_int8

    def hold(self, int8: bool, offset: Tensor | None = None) -> None:
        """Keep keys in int8, or in ``dtype``, from here on; those that there are become keys of that kind.

        ``offset`` [layers, heads, head_dim], float32, is what int8 takes from every key: their mean if None.
        """
        if int8 == self.holds_int8:
            return
        k, keys = self._in_dtype(), self._in_int8()
        for index in range(len(k) if self._filled else 0):
            if not int8:
                k[index] = self.keys(index)
            else:
                keys.layer(index).renew(k[index, : self._filled], None if offset is None else offset[index])
        self.holds_int8 = int8

    def reset(self) -> None:
        """Forget every frame; the storage stays."""
        self.frames = self._origin = self._filled = 0
        self.rotates_sinks = self._sink_written = self._alone = False
        self._last_window: int | None = None

    def resize(self, window: int) -> None:
        """Attend to ``window`` frames from the next pass on; unless it is the last pass's, the ring is then ``stale``.

        Captured passes stay good: the window is read on the device. Raises ValueError for one beyond the capacity.
        """
        if not self.sink < window <= self.capacity:
            wanted = f"be larger than the {self.sink} sink frames and at most {self.capacity}"
            raise ValueError(f"window must {wanted}, got {window}")
        self.window = window
        self._window.fill_(window)

    def take_sinks(self, other: RingCache) -> None:
        """Copy the sinks of a ring that differs in window and capacity only, and hold keys of the same kind."""
        s, runs = self.sink, self.sink * self._tokens // KEY_RUN
        self.reset()
        self.hold(other.holds_int8)
        self.v[:, :s] = other.v[:, :s]
        if other.holds_int8:
            mine, theirs = self._in_int8(), other._in_int8()
            mine.k[:, :s], mine.scale[:, :, :runs] = theirs.k[:, :s], theirs.scale[:, :, :runs]
            mine.offset.copy_(theirs.offset)
        else:
            self._in_dtype()[:, :s] = other._in_dtype()[:, :s]
        self.k_sink.copy_(other.k_sink)
        self._sink_written, self._filled = other._sink_written, min(other._filled, s)

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
        self.frames, self._origin, self._last_window = frames, origin, self.window
        writes_sinks = start - origin < self.sink
        self.rotates_sinks = self.relative and self._sink_written and not writes_sinks
        self._sink_written |= writes_sinks
        self._alone = start == origin
        self._filled = min(start + frames - origin, self.window)
        self._start.fill_(start)
        self.valid.fill_(self._filled * self._tokens)

    def advance(self) -> None:
        """The device's half of ``seek``: write slots, rotations and the sinks' keys where they stand now."""
        sink = self.sink, self._origin
        ring_advance(self._start, self._freqs, self.slots, self.rope_time, self._sink_time, self._window, *sink)
        if self.rotates_sinks:
            # Counted from where the window begins, sink i stands at position i wherever the stream is.
            turned = self.k_sink, self._sink_time, self.rope_space
            if self.holds_int8:
                k, scale, offset = self._in_int8()
                rotate_sinks_int8(*turned, offset, k, scale)
            else:
                rotate_sinks(*turned, self._in_dtype())
