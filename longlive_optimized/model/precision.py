"""What runs in 8 bits: the one table of it.

Of a layer's products, that is. Attention, norms and all outside the layers (patch, time, text, head), a prompt's keys
and values, and the modulation run in the model's dtype whatever the precision.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from ..keywords import Precision


class Parts(NamedTuple):
    """Which products of a layer run in 8 bits, by the names of its linears."""

    qkv: bool = False
    out: bool = False
    cross_q: bool = False
    cross_out: bool = False
    ffn_in: bool = False
    ffn_out: bool = False


Policy = tuple[Parts, ...]  # one for each layer

# Exceptions, by part: layers, negative ones counted from the end, in which 8 bits cost more of the picture than
# ``bench quality`` allows. They run in the model's dtype. An entry is like ``"ffn_out": (0, 1, -3, -2, -1)``.
KEPT: dict[str, tuple[int, ...]] = {}


@functools.cache
def policy_of(precision: Precision, layers: int) -> Policy:
    """What ``precision`` runs in 8 bits in a network of so many layers."""
    if precision == "bf16":
        return (Parts(),) * layers
    kept = {part: {layer % layers for layer in which} for part, which in KEPT.items()}
    return tuple(Parts(*(layer not in kept.get(part, ()) for part in Parts._fields)) for layer in range(layers))


def in_8_bits(policy: Policy) -> bool:
    """Whether anything is."""
    return any(map(any, policy))
