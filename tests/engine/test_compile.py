"""torch.compile instead of graphs: the same pictures."""

import pytest
import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig


@pytest.mark.parametrize(("precision", "most"), [("bf16", 1), ("int8", 4)])
def test_compiled_layers_give_the_same_pictures(precision, most):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    how = {"height": 64, "width": 96, "precision": precision}
    plain, compiled = (
        LongLiveEngine("tiny", OptimizationConfig(**how, use_torch_compile=c), device="cpu") for c in (False, True)
    )
    for prompt in ("a red circle moves left over a black night",) * 2 + ("a white cross rests on a blue sea",):
        a, b = (engine.generate_block(BlockRequest(prompt)) for engine in (plain, compiled))
        assert (a.int() - b.int()).abs().max() <= most
    assert not compiled.stream.cuda_graphs_active
    # One for all five layers, of each kind of pass: a graph for each layer would be too many for the real model.
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] < 10


def test_compiled_layers_expand_weights_in_8_bits():
    how = {"height": 64, "width": 96, "low_memory": True}
    plain, compiled = (
        LongLiveEngine("tiny", OptimizationConfig(**how, use_torch_compile=c), device="cpu") for c in (False, True)
    )
    a, b = (engine.generate_block(BlockRequest("a white cross rests on a blue sea")) for engine in (plain, compiled))
    assert (a.int() - b.int()).abs().max() <= 1
