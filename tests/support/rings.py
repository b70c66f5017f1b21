"""Rings whose storage holds what nobody may read."""

import math

import torch

from longlive_optimized.model.ring_cache import RingCache


def poison(ring: RingCache) -> None:
    """What no pass has written yet may hold anything."""
    floats = [*ring.v.values(), ring.k_sink]
    if ring.k is not None:
        floats.append(ring.k)
    if ring.cache8 is not None:
        keys, values = ring.cache8
        keys.k.fill_(127)
        floats += [ring._own_k, ring._own_v, keys.scale, keys.offset]
        for of_layer in filter(None, values):
            of_layer.v.view(torch.uint8).fill_(0x7F)
            floats += of_layer[1:]
    for t in floats:
        t.fill_(math.nan)


def in_8_bits(ring: RingCache) -> list[torch.Tensor]:
    """All that it has in 8 bits; e4m3 as bytes, which torch compares."""
    keys, values = ring.cache8
    of_values = [t for v, *rest in filter(None, values) for t in (v.view(torch.uint8), *rest)]
    return [*keys, *of_values]
