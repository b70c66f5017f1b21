"""A stream's settings are those in force; a change of them happens whole or not at all."""

import pytest
import torch

from longlive_optimized.engine.graphs import GraphSwitch
from longlive_optimized.engine.passes import Passes
from longlive_optimized.engine.request import BlockRequest
from longlive_optimized.model.ring_cache import RingCache

A, B = "a red circle", "a white cross"


def test_settings_show_the_seed_in_force(engine):
    stream = engine.open_stream(seed=1)
    seeds = [stream.settings.seed]
    for request in (BlockRequest(A, seed=2), BlockRequest(A), BlockRequest(A, seed=3, restart=True)):
        engine.generate_block(request, stream)
        seeds.append(stream.settings.seed)
    engine.generate_block(BlockRequest(A, seed=4, reset=True), stream)
    seeds.append(stream.settings.seed)
    engine.reset(stream, seed=5)
    engine.reset(stream)
    stream.configure(local_attn_size=9, seed=5)
    assert [*seeds, stream.settings.seed] == [1, 2, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="seed cannot change"):
        stream.configure(seed=1)
    frames = engine.generate_block(BlockRequest(A), stream)
    other = engine.open_stream(seed=5, local_attn_size=9)
    assert torch.equal(frames, engine.generate_block(BlockRequest(A), other))


def test_a_seed_that_cannot_change_shows_in_no_settings(engine):
    stream = engine.open_stream(seed=1, total_frames=6)
    engine.generate_block(BlockRequest(A), stream)
    with pytest.raises(ValueError, match="seed of a stream with total_frames"):
        engine.generate_block(BlockRequest(A, seed=2), stream)
    assert stream.settings.seed == 1


STEPS = [(RingCache, "__init__"), (RingCache, "take_sinks"), (RingCache, "resize"), (Passes, "__init__")]


@pytest.mark.parametrize(("cls", "name"), STEPS)
@pytest.mark.parametrize("own", [True, False])
def test_a_change_for_which_memory_is_short_changes_nothing(engine, monkeypatch, cls, name, own):
    def blocks(stream):
        return [engine.generate_block(BlockRequest(A if i < 2 else B), stream) for i in range(3)]

    wanted = blocks(engine.open_stream(local_attn_size=9))
    stream = engine.open_stream(local_attn_size=9)
    engine.generate_block(BlockRequest(A), stream)
    monkeypatch.setattr(engine, "_stream", stream)
    before, passes, window, config = stream.settings, stream.passes, stream.ring.window, engine.config
    turned = []

    def full(*args, **how):
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as short:
        short.setattr(cls, name, full)
        short.setattr(GraphSwitch, "turn", lambda switch, on: turned.append(on))
        with pytest.raises(torch.OutOfMemoryError):
            change = {"local_attn_size": 21, "denoising_steps": (1000,), "use_cuda_graphs": False}
            (engine if own else stream).configure(**change)
    assert (stream.settings, stream.passes, stream.ring.window) == (before, passes, window) and not turned
    assert not stream.recache_due and engine.config == config
    engine.reset(stream)
    assert all(map(torch.equal, wanted, blocks(stream)))
