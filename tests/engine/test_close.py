"""What is closed gives its memory back, and says so to whoever uses it."""

import gc
import threading
import weakref

import pytest
import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.demo.scope_integration import OptimizedScopePipeline, ScopeOptimizationConfig

SIZE = {"height": 32, "width": 48}
FOX = BlockRequest("a fox")


def engine(device="cpu"):
    return LongLiveEngine("tiny", OptimizationConfig(**SIZE), device)


def closed(what):
    return pytest.raises(RuntimeError, match=f"^this {what} is closed: make another one$")


ENGINE_CALLS = [
    lambda made: made.generate_block(FOX),
    lambda made: made.rest_of_block(),
    lambda made: made.open_stream(),
    lambda made: made.stream,
    lambda made: made.warmup(),
    lambda made: made.reset(),
    lambda made: made.configure(local_attn_size=9),
    lambda made: made.use_vae("tae"),
    lambda made: made.set_loras([]),
    lambda made: made.keep_loras([]),
    lambda made: made.block_times(),
    lambda made: made.memory_plan,
    lambda made: made.config,
    lambda made: made.__enter__(),
]
STREAM_CALLS = [
    lambda made, stream: made.generate_block(FOX, stream),
    lambda made, stream: made.rest_of_block(stream),
    lambda made, stream: made.reset(stream),
    lambda made, stream: made.warmup(stream=stream),
    lambda made, stream: made.block_times(stream),
    lambda made, stream: stream.configure(local_attn_size=9),
    lambda made, stream: stream.snapshot(),
    lambda made, stream: stream.reset(),
    lambda made, stream: stream.settings,
]
PIPELINE_CALLS = [
    lambda made: made.generate_frame("a fox"),
    lambda made: made.next_frame(),
    lambda made: made.next_block(),
    lambda made: made.switch_prompt("a fox"),
    lambda made: made.set_optimization_preset("turbo"),
    lambda made: made.configure(local_attn_size=9),
    lambda made: made.get_latency_stats(),
    lambda made: made.reset(),
    lambda made: made.warmup(),
    lambda made: made.story(),
    lambda made: made.replay({"version": 1, "blocks": 1, "prompts": [{"block": 0, "prompt": "a fox"}]}),
    lambda made: made.preset,
]


def test_an_engine():
    with engine() as made:
        stream, other = made.stream, made.open_stream()
        made.generate_block(FOX)
        made.generate_block(FOX, other)
        held = [weakref.ref(each) for each in (made.model, made.vae, made.codec, made.text, stream.ring, other.decoder)]
    made.close()
    gc.collect()
    assert made.closed and [ref() for ref in held] == [None] * len(held)
    for call in ENGINE_CALLS:
        with closed("LongLiveEngine"):
            call(made)
    for call in (lambda: stream.configure(), lambda: other.snapshot(), lambda: stream.settings):
        with closed("Stream"):
            call()


def test_a_stream_and_not_its_engine():
    made = engine()
    first = made.generate_block(FOX)
    with made.open_stream() as stream:
        assert torch.equal(made.generate_block(FOX, stream), first)
        ring = weakref.ref(stream.ring)
    gc.collect()
    assert ring() is None
    for call in STREAM_CALLS:
        with closed("Stream"):
            call(made, stream)
    stream.close()
    made.set_loras([])
    made.generate_block(FOX)  # of the engine's own
    own = made.stream
    own.close()
    assert made.stream is not own and torch.equal(made.generate_block(FOX), first)
    with pytest.raises(ValueError, match="one that this engine has opened"):
        engine().generate_block(FOX, own)


def test_an_attribute_that_there_never_was():
    with pytest.raises(AttributeError, match="'LongLiveEngine' object has no attribute 'colour'"):
        _ = engine().colour


def test_a_pipeline_closes_the_engine_that_it_has_made():
    with OptimizedScopePipeline("tiny", ScopeOptimizationConfig.preset_balanced(**SIZE), "cpu") as pipeline:
        pipeline.generate_frame("a fox")
        made = pipeline.engine
    assert made.closed
    pipeline.close()
    for call in PIPELINE_CALLS:
        with closed("OptimizedScopePipeline"):
            call(pipeline)


def test_a_pipeline_leaves_another_ones_engine():
    made = engine()
    with OptimizedScopePipeline.on(made) as pipeline:
        pipeline.generate_frame("a fox")
        stream = pipeline.stream
    assert stream.closed and not made.closed
    made.generate_block(FOX)


def test_a_block_under_way_is_finished():
    made = engine()
    made.generate_block(FOX)
    begun, blocks = threading.Event(), []
    decode = made.stream.decode

    def slow(latents):
        begun.set()
        return decode(latents)

    made.stream.decode = slow
    thread = threading.Thread(target=lambda: blocks.append(made.generate_block(FOX)))
    thread.start()
    assert begun.wait(20)
    made.close()
    thread.join(20)
    assert len(blocks[0]) == 12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_memory_of_a_gpu_comes_back():
    """That of the weights, at least; workspaces of libraries may stay."""
    with engine("cuda") as made:
        made.warmup()
        made.generate_block(FOX)
        weights = sum(weight.nbytes for weight in made.model.parameters())
        during = torch.cuda.memory_allocated()
    assert weights > 2**20 and torch.cuda.memory_allocated() <= during - weights
