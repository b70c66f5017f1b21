"""Rings whose storage holds what nobody may read."""

import math

import torch

from longlive_optimized.model.ring_cache import RingCache


def poison(ring: RingCache) -> None:
    """What no pass has written yet may hold anything."""
    floats = [ring.k, ring.v, ring.k_sink]
    if ring.cache8 is not None:
        keys, values = ring.cache8
        keys.k.fill_(127)
        floats += [ring._own_k, ring._own_v, keys.scale, keys.offset]
        if values is not None:
            values.v.view(torch.uint8).fill_(0x7F)
            floats += [values.scale, values.offset]
    for t in floats:
        if t is not None:
            t.fill_(math.nan)


def in_8_bits(ring: RingCache) -> list[torch.Tensor]:
    """All that it has in 8 bits; e4m3 as bytes, which torch compares."""
    keys, values = ring.cache8
    return [*keys, *(() if values is None else (values.v.view(torch.uint8), *values[1:]))]
