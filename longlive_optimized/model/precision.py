"""What runs in 8 bits: the one table of it.

Of a layer's products, and attention over the ring, whose queries and keys are then int8, and in some layers its values
e4m3, where the CUDA kernels run. Norms, cross-attention's scores, all outside the layers (patch, time, text, head), a
prompt's keys and values, and the modulation stay in the model's dtype whatever the precision.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ..kernels import native
from ..kernels.quantize_keys import KEY_RUN
from ..kernels.registry import forced
from ..keywords import Precision
from ..plain import dtype_name


class Parts(NamedTuple):
    """Which products of a layer run in 8 bits, by the names of its linears."""

    qkv: bool = False
    out: bool = False
    cross_q: bool = False
    cross_out: bool = False
    ffn_in: bool = False
    ffn_out: bool = False


Policy = tuple[Parts, ...]  # one for each layer; none at all where nothing runs in 8 bits
PLAIN: Policy = ()

# Exceptions, by part: layers, negative ones counted from the end, in which 8 bits cost more of the picture than
# ``bench quality`` allows. They run in the model's dtype. An entry is like ``"ffn_out": (0, 1, -3, -2, -1)``; one for
# ``"attention"`` keeps it out of all layers, since their keys lie in one ring.
KEPT: dict[str, tuple[int, ...]] = {}

# So many of a network's first and of its last layers keep attention's values in the model's dtype, of 30 layers; of
# others the same share, rounded up. The picture pays for each layer in e4m3: with all of them ``bench quality`` gives
# 39.0 dB, with 18 of 30 40.8, with 15 41.4; its bound is 40.
VALUES_KEPT = 6, 6


@functools.cache
def policy_of(precision: Precision, layers: int) -> Policy:
    """Which products ``precision`` runs in 8 bits in a network of so many layers."""
    if precision == "bf16":
        return PLAIN
    kept = {part: {layer if layer >= 0 else layer + layers for layer in which} for part, which in KEPT.items()}
    policy = tuple(Parts(*(layer not in kept.get(part, ()) for part in Parts._fields)) for layer in range(layers))
    return policy if any(map(any, policy)) else PLAIN


def parts_at(policy: Policy, layer: int) -> Parts:
    """What a layer runs in 8 bits; what comes after the last one runs nothing."""
    return policy[layer] if layer < len(policy) else Parts()


def attention_in_8_bits(precision: Precision, head_dim: int, tokens: int) -> bool:
    """Whether ``precision`` runs attention over the ring in 8 bits, with frames of so many tokens: in all layers or in
    none. Keys in int8 want whole runs of tokens in a frame, and the kernels heads of 32, 64 or 128 channels."""
    fits = tokens % KEY_RUN == 0 and head_dim in (32, 64, 128)
    return precision == "int8" and fits and not KEPT.get("attention")


def values_in_8_bits(dtype: torch.dtype, device: torch.device, head_dim: int, layers: int) -> tuple[bool, ...]:
    """For each layer, whether attention in 8 bits has values in e4m3, too: in the middle ones (``VALUES_KEPT``) where
    its CUDA kernel serves a model of ``dtype``. Elsewhere there is none that they would make faster."""
    middle = _middle(layers)
    fits = dtype == torch.bfloat16 and head_dim == 128
    serves = len(middle) > 0 and fits and native.missing(device) is None and forced() in (None, "cuda")
    return tuple(serves and layer in middle for layer in range(layers))


def _middle(layers: int) -> range:
    """The layers of so many whose values may be in e4m3."""
    first, last = (-(-kept * layers // 30) for kept in VALUES_KEPT)
    return range(first, layers - last)


def runs_in(precision: Precision, dtype: torch.dtype, layers: int, head_dim: int, tokens: int) -> str:
    """What the layers of a model of ``dtype`` run in: ``int8``, ``int8 products`` where attention over the ring is not
    in 8 bits, or the model's dtype, ``bf16`` or ``float32``. A frame has so many tokens."""
    if policy_of(precision, layers):
        return "int8" if attention_in_8_bits(precision, head_dim, tokens) else "int8 products"
    return dtype_name(dtype)
