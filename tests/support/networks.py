"""Small networks filled as the conformance vectors ask, and at random."""

import torch

from longlive_optimized.bench.baseline import BaselineNetwork
from longlive_optimized.model.config import ModelConfig
from longlive_optimized.model.ring_cache import RingCache
from longlive_optimized.model.transformer import Transformer
from support.vectors import parameter

VECTOR_CONFIG = ModelConfig(
    dim=48, ffn_dim=64, freq_dim=16, in_dim=4, out_dim=4, num_heads=2, num_layers=2, text_len=8, text_dim=20
)
VECTOR_GRID = (4, 6)


def vector_network(dtype: torch.dtype = torch.float32) -> Transformer:
    """The network of docs/model.md 10.1: 0.2 h, norm gains 1 + 0.2 h."""
    model = Transformer(VECTOR_CONFIG, dtype=dtype)
    for key, slot in model.checkpoint_slots().items():
        gain = "norm" in key and key.endswith("weight")
        slot.write(parameter(key, slot.shape, 0.2, gain))
    return model


def ring_of(model: Transformer, grid, window=12, sink=3, relative=False, int8=False, values8=()) -> RingCache:
    where = {"dtype": model.kv_dtype, "device": model.device}
    how = {"relative": relative, "int8": int8, "values8": values8}
    return RingCache(model.config, grid, window=window, sink=sink, **where, **how)


def stored(model: Transformer) -> dict[str, torch.Tensor]:
    """The network's tensors by the checkpoint's keys."""
    return {key: slot.read() for key, slot in model.checkpoint_slots().items()}


def baseline_of(model: Transformer, grid, window=12, sink=3, relative=False) -> BaselineNetwork:
    return BaselineNetwork(model.config, stored(model), grid, window, sink, relative)
