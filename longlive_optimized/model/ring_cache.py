"""The ring: the KV cache of self-attention, a sliding window behind attention sinks, in static storage.

Sinks are the video's first ``sink`` latent frames: they stay in the window for ever, as in StreamingLLM (Xiao et al.
2023), so that softmax keeps the early tokens that draw most of its weight. Attention has no mask, so the keys are a set
and slots need no order.
The sinks keep slots 0..sink-1; every later frame f goes to slot sink + (f - sink) mod (window - sink), which holds
exactly the frame that a rolling cache (docs/model.md 3.2) would evict. Nothing is rolled, cloned or concatenated, and
the indices live on the device, so that captured passes stay good.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..kernels.quantize_keys import KEY_RUN, dequantize_keys, quantize_keys
from ..kernels.quantize_values import VALUE_GROUP, dequantize_values, quantize_values
from ..kernels.ring_advance import ring_advance
from ..kernels.rotate_sinks import rotate_sinks, rotate_sinks_int8
from . import rope
from .config import ModelConfig
from .shard import ALONE, Shard

# What the first values use of e4m3's 448, so that later ones may be 128 times as large. It costs no accuracy: an e4m3
# is off by a 16th of itself at most down to 2^-6, and below that by 2^-10.
VALUE_RANGE = 3.5


class Int8Keys(NamedTuple):
    """Keys as ``quantize_keys`` leaves them, of all layers; of one layer without the first dimension."""

    k: Tensor  # int8 [layers, capacity, S, heads, head_dim]
    scale: Tensor  # float32 [layers, heads, capacity * S / KEY_RUN or a little more]
    offset: Tensor  # float32 [layers, heads, head_dim], taken from every key

    def renew(self, k: Tensor, like: Int8Keys | None) -> None:
        """One layer's: take rotated keys k [F, S, heads, head_dim] into slots 0, 1, ...; no other slot holds keys then.

        The offset of ``like`` is in force from then on: their mean if None, which leaves them small.
        """
        self.offset.copy_(_finite_mean(k) if like is None else like.offset)
        quantize_keys(k, self.offset, self.k, self.scale, torch.arange(len(k), device=k.device))


class Fp8Values(NamedTuple):
    """One layer's values as ``quantize_values`` leaves them."""

    v: Tensor  # e4m3 [heads, head_dim, capacity * S, or up to a multiple of VALUE_GROUP]
    scale: Tensor  # float32 [heads, head_dim]
    offset: Tensor  # float32 [heads, head_dim], taken from every value

    def renew(self, v: Tensor, like: Fp8Values | None) -> None:
        """Take values v [F, S, heads, head_dim] into slots 0, 1, ...; no other slot holds values then.

        Scale and offset of ``like`` are in force from then on; if None, those that take v to +-VALUE_RANGE.
        """
        scale, offset = _range_of(v) if like is None else like[1:]
        self.scale.copy_(scale)
        self.offset.copy_(offset)
        slots = torch.arange(len(v), device=v.device)
        quantize_values(v.flatten(0, 1), self.offset, self.scale, self.v, slots)


class LayerCache8(NamedTuple):
    """One layer's part of the ring in 8 bits."""

    keys: Int8Keys
    values: Fp8Values | None  # None: they are in the model's dtype

    def renew(self, k: Tensor, v: Tensor, like: LayerCache8 | None = None) -> None:
        """Take keys and values [F, S, heads, head_dim] as the only ones, with offsets and scales as ``like`` has them,
        or as is best for them."""
        self.keys.renew(k, like and like.keys)
        if self.values is not None:
            self.values.renew(v, like and like.values)


class Cache8(NamedTuple):
    """The ring in 8 bits, of all layers."""

    keys: Int8Keys
    values: tuple[Fp8Values | None, ...]  # one for each layer; None: they are in the model's dtype

    def layer(self, index: int) -> LayerCache8:
        """One layer's."""
        return LayerCache8(Int8Keys(*(each[index] for each in self.keys)), self.values[index])


def _finite_mean(x: Tensor) -> Tensor:
    """Over frames and tokens: an offset. One that is not finite would outlive what it came from."""
    return x.mean((0, 1), dtype=torch.float32).nan_to_num_(0, 0, 0)


def _range_of(v: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and offset of values v, for each channel: their largest difference from the mean over VALUE_RANGE."""
    offset = _finite_mean(v)
    largest = torch.maximum(v.amax((0, 1)) - offset, offset - v.amin((0, 1))).nan_to_num_(0, 0, 0)
    return torch.where(largest > 2**-100, largest / VALUE_RANGE, 1), offset


def _whole_groups(tokens: int) -> int:
    """So many positions, or up to a multiple of VALUE_GROUP."""
    return -(-tokens // VALUE_GROUP) * VALUE_GROUP


class RingLayer(NamedTuple):
    """One layer's part of the ring, and where the pass reads and writes; as in RingCache."""

    keys: Tensor | Int8Keys  # which the pass attends to: [capacity, S, heads, head_dim], S tokens a frame
    values: Tensor | Fp8Values  # theirs
    kept: LayerCache8 | None  # the ring, where ``keys`` are the pass's own alone: takes them in 8 bits (``renew``)
    k_sink: Tensor  # [sink, S, heads, head_dim]; none with base positions
    rope_time: Tensor  # [F, time pairs, 2], of the pass's F frames
    rope_space: Tensor  # [S, row and column pairs, 2]
    slots: Tensor  # int64 [F]
    valid: Tensor  # int32 [1]
    shard: Shard = ALONE  # the ranks that the pass's tokens are divided among; the ring is whole on each


class RingCache:
    """Keys and values of ``window`` latent frames for every layer, and where the next pass reads and writes.

    k [layers, capacity, S, heads, head_dim], and v, the same for each layer by its index, are of ``dtype``: the window
    that it was made with is its capacity, ``resize`` goes up to that. With ``relative`` positions the sinks' keys are
    kept un-rotated in ``k_sink`` and rotated anew as time advances; all other keys stay at their absolute position,
    since between them only differences of position matter (docs/model.md 3.6).

    Keys are of one kind at a time, ``dtype`` (in k) or int8 (in ``cache8``): ``holds_int8``, which ``hold`` changes.
    Values are of ``dtype``, but in the layers that ``values8`` names (a bool for each; none at all: in no layer) e4m3
    where keys are int8. Storage of a kind is allocated when it is first asked for, and stays; until then ``k`` and
    ``cache8`` are None, and ``v`` lacks the layer. Where the ring is in 8 bits, a pass without older keys than its own
    attends to these in ``dtype``; what the ring then takes in 8 bits lies in storage that all layers share, and gives
    the offsets and scales of all to come.

    ``shard``: the ranks that a pass's tokens are divided among. Each has the whole ring, and writes all of it.

    Raises ValueError for ``values8`` of another number of layers, and what ``reserve`` and ``resize`` raise.
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
        values8: tuple[bool, ...] = (),
        shard: Shard = ALONE,
    ):
        if len(values8) not in (0, config.num_layers):
            raise ValueError(f"values8 must have an entry for each of {config.num_layers} layers, got {len(values8)}")
        self.capacity, self.sink, self.relative, self.shard = window, sink, relative, shard
        shard.reserve(window * grid[0] * grid[1], 3 * config.dim, dtype, torch.device(device))
        self.values8 = values8 or (False,) * config.num_layers
        self._tokens = grid[0] * grid[1]
        frame = (self._tokens, config.num_heads, config.head_dim)
        self.k: Tensor | None = None
        self.v: dict[int, Tensor] = {}
        self.cache8: Cache8 | None = None
        self.k_sink = torch.zeros(config.num_layers, sink if relative else 0, *frame, dtype=dtype, device=device)
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
        rest = self.k_sink[index], self.rope_time, self.rope_space, self.slots, self.valid, self.shard
        if not self.holds_int8:
            k, v = self._in_dtype()
            return RingLayer(k[index], v[index], None, *rest)
        cache = self._in_8_bits().layer(index)
        if self._alone:
            return RingLayer(self._own_k, self._own_v if cache.values else self.v[index], cache, *rest)
        return RingLayer(cache.keys, cache.values or self.v[index], None, *rest)

    def keys(self, index: int) -> Tensor:
        """One layer's keys in ``dtype``, [capacity, S, heads, head_dim]: what those in int8 stand for is a copy."""
        if self.holds_int8:
            return dequantize_keys(*self._in_8_bits().layer(index).keys, self.k_sink.dtype)
        return self._in_dtype()[0][index]

    def values(self, index: int) -> Tensor:
        """One layer's values in ``dtype``, [capacity, S, heads, head_dim]: what those in e4m3 stand for is a copy."""
        values = self._values_in_8_bits(index)
        if values is None:
            return self.v[index]
        return dequantize_values(*values, self.capacity, self._tokens, self.k_sink.dtype)

    @property
    def stale(self) -> bool:
        """Whether the last pass was in another window, or there was none: all but the sinks must be written anew."""
        return self._last_window != self.window

    def reserve(self, int8: bool) -> None:
        """Allocate storage for keys in int8, or in ``dtype``, and for values beside them, if there is none yet.

        Raises ValueError for int8 where a frame is no multiple of KEY_RUN tokens.
        """
        if int8:
            self._in_8_bits()
        else:
            self._in_dtype()

    def _in_dtype(self) -> tuple[Tensor, dict[int, Tensor]]:
        """Keys and values."""
        if self.k is None:
            self._values_in_dtype(range(len(self.values8)))
            self.k = self._new_ring(self.k_sink.dtype)
        return self.k, self.v

    def _values_in_dtype(self, layers: Iterable[int]) -> None:
        self.v |= {index: self._new_frames() for index in layers if index not in self.v}

    def _in_8_bits(self) -> Cache8:
        if self.cache8 is None:
            if self._tokens % KEY_RUN:
                raise ValueError(f"grid must have a multiple of {KEY_RUN} tokens for int8, got {self._tokens}")
            self._values_in_dtype(index for index, in_8_bits in enumerate(self.values8) if not in_8_bits)
            self._own_k = self._new_frames()
            self._own_v = self._new_frames() if any(self.values8) else self._own_k[:0]  # no layer's
            values = tuple(self._new_values() if in_8_bits else None for in_8_bits in self.values8)
            self.cache8 = Cache8(self._new_keys(), values)
        return self.cache8

    def _values_in_8_bits(self, index: int) -> Fp8Values | None:
        """One layer's, where they are in 8 bits now."""
        return self._in_8_bits().values[index] if self.holds_int8 else None

    def _new_keys(self) -> Int8Keys:
        layers, _, _, heads, head_dim = self.k_sink.shape
        runs = self.capacity * self._tokens // KEY_RUN
        scales = -(-runs // 4) * 4  # each head's begin at a multiple of 16 bytes, as attention copies them
        where = {"dtype": torch.float32, "device": self.k_sink.device}
        offset, scale = (torch.zeros(layers, heads, each, **where) for each in (head_dim, scales))
        return Int8Keys(self._new_ring(torch.int8), scale, offset)

    def _new_values(self) -> Fp8Values:
        shape, places = self.k_sink.shape[3:], _whole_groups(self.capacity * self._tokens)
        v = self.k_sink.new_zeros(*shape, places, dtype=torch.float8_e4m3fn)
        offset = v.new_zeros(shape, dtype=torch.float32)
        return Fp8Values(v, torch.ones_like(offset), offset)

    def _new_ring(self, dtype: torch.dtype) -> Tensor:
        layers, _, *frame = self.k_sink.shape
        return self.k_sink.new_zeros(layers, self.capacity, *frame, dtype=dtype)

    def _new_frames(self) -> Tensor:
        """Of one layer, in ``dtype``."""
        return self.k_sink.new_zeros(self.capacity, *self.k_sink.shape[2:])

    def hold(self, int8: bool, like: Cache8 | None = None) -> None:
        """Keep keys in int8, or in ``dtype``, from here on, and values as they then are; those that there are become
        keys and values of that kind.

        ``like``, all layers of another ring, gives the offsets and scales that 8 bits take: if None, as is best for
        those that there are.
        """
        if int8 == self.holds_int8:
            return
        (k, v), cache = self._in_dtype(), self._in_8_bits()
        for index in range(len(k) if self._filled else 0):
            if int8:
                of_layer = k[index, : self._filled], v[index][: self._filled]
                cache.layer(index).renew(*of_layer, like and like.layer(index))
            else:
                k[index] = self.keys(index)
                if self.values8[index]:
                    v[index].copy_(self.values(index))
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
        if other.holds_int8:
            mine, theirs = self._in_8_bits().keys, other._in_8_bits().keys
            mine.k[:, :s], mine.scale[:, :, :runs] = theirs.k[:, :s], theirs.scale[:, :, :runs]
            mine.offset.copy_(theirs.offset)
        else:
            self._in_dtype()[0][:, :s] = other._in_dtype()[0][:, :s]
        for index in range(len(self.values8)):
            self._take_values(other, index)
        self.k_sink.copy_(other.k_sink)
        self._sink_written, self._filled = other._sink_written, min(other._filled, s)

    def _take_values(self, other: RingCache, index: int) -> None:
        """One layer's, of the sinks, from a ring of the same kind."""
        mine, theirs = (ring._values_in_8_bits(index) for ring in (self, other))
        if mine is None or theirs is None:
            self.v[index][: self.sink] = other.v[index][: self.sink]
            return
        places = _whole_groups(self.sink * self._tokens)
        mine.v[..., :places] = theirs.v[..., :places]
        mine.scale.copy_(theirs.scale)
        mine.offset.copy_(theirs.offset)

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
                k, scale, offset = self._in_8_bits().keys
                rotate_sinks_int8(*turned, offset, k, scale)
            else:
                rotate_sinks(*turned, self._in_dtype()[0])
