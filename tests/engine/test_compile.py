"""torch.compile instead of graphs: the same pictures."""

import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig


def test_compiled_layers_give_the_same_pictures():
    plain, compiled = (
        LongLiveEngine("tiny", OptimizationConfig(height=32, width=32, use_torch_compile=c), device="cpu")
        for c in (False, True)
    )
    for prompt in ("a fox", "a fox", "a boat"):
        a, b = (engine.generate_block(BlockRequest(prompt)) for engine in (plain, compiled))
        assert (a.int() - b.int()).abs().max() <= 1
    assert not compiled.cuda_graphs_active
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
