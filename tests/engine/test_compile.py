"""torch.compile instead of graphs: the same pictures."""

import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig


def test_compiled_layers_give_the_same_pictures():
    torch._dynamo.utils.counters.clear()
    plain, compiled = (
        LongLiveEngine("tiny", OptimizationConfig(height=64, width=96, use_torch_compile=c), device="cpu")
        for c in (False, True)
    )
    for prompt in ("a red circle moves left over a black night",) * 2 + ("a white cross rests on a blue sea",):
        a, b = (engine.generate_block(BlockRequest(prompt)) for engine in (plain, compiled))
        assert (a.int() - b.int()).abs().max() <= 1
    assert not compiled.stream.cuda_graphs_active
    # One for all five layers, of each kind of pass: a graph for each layer would be too many for the real model.
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] < 10


def test_compiled_layers_expand_weights_in_8_bits():
    plain, compiled = (
        LongLiveEngine("tiny", OptimizationConfig(low_memory=True, use_torch_compile=c), device="cpu")
        for c in (False, True)
    )
    a, b = (engine.generate_block(BlockRequest("a white cross rests on a blue sea")) for engine in (plain, compiled))
    assert (a.int() - b.int()).abs().max() <= 1
