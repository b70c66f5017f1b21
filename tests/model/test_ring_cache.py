"""The ring against the rolling cache of section 3.2, in float64, on whole networks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longlive_optimized.engine.recache import plan_recache
from longlive_optimized.model.config import ModelConfig
from longlive_optimized.model.ring_cache import RingCache
from longlive_optimized.model.transformer import Transformer
from support.networks import baseline_of, ring_of
from support.rings import poison

CONFIG = ModelConfig(
    dim=24, ffn_dim=16, freq_dim=8, in_dim=2, out_dim=2, num_heads=2, num_layers=2, text_len=3, text_dim=4
)
GRID = (1, 2)
TOLERANCE = {"rtol": 0, "atol": 1e-9}


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    net = Transformer(CONFIG, dtype=torch.float64)
    for parameter in net.parameters():
        parameter.normal_(0, 0.4)
    return net


def stream(model, window, relative, first, blocks, switches=(), global_sink=True, sink=3, seed=0):
    """Drive both networks through the same blocks and prompt switches; compare every pass."""
    noise = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=noise, dtype=torch.float64)

    ring = ring_of(model, GRID, window, sink, relative)
    poison(ring)
    baseline = baseline_of(model, GRID, window, sink, relative)
    prompt = draw(2, 4)
    cross, history, p = model.cross_cache(prompt), draw(0, 2, 2, 4), 0

    def both(x, t, start, force=False, origin=0, skip=0):
        ring.seek(start + skip, len(x) - skip, origin)
        t = torch.full((1,), t, dtype=torch.float64)
        ours = model(x[skip:], model.modulation(t), ring, cross)
        theirs = baseline.forward(x, t.expand(len(x)), prompt, start, force)
        return ours, theirs[skip:]

    for block in range(blocks):
        if block in switches:
            prompt = draw(2, 4)
            cross = model.cross_cache(prompt)
            baseline.new_prompt(forget=not global_sink)
            if p:
                plan = plan_recache(p, window, sink, global_sink)
                n = min(window, p)  # the source recomputes n frames; ours skips those that nobody reads
                both(history[p - n : p], 0.0, p - n, not global_sink, plan.origin, n - plan.frames)
                baseline.new_prompt()
        frames = first if block == 0 else 3
        for t in (1000.0, 0.0):
            x = draw(frames, 2, 2, 4)
            ours, theirs = both(x, t, p)
            torch.testing.assert_close(ours, theirs, **TOLERANCE)
        history, p = torch.cat((history, x)), p + frames


@pytest.mark.parametrize("relative", [False, True], ids=["base", "relative"])
@pytest.mark.parametrize("first", [3, 4])
@pytest.mark.parametrize("window", [6, 8, 9, 12])
def test_thirty_blocks_equal_the_rolling_cache(model, window, first, relative):
    stream(model, window, relative, first, blocks=30, switches=(0, 1, 2, 3, 4, 5, 17))


@settings(max_examples=40, deadline=None)
@given(
    window=st.integers(6, 14),
    relative=st.booleans(),
    first=st.sampled_from([3, 4]),
    switches=st.sets(st.integers(0, 11)),
    global_sink=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_stream_equals_the_rolling_cache(model, window, relative, first, switches, global_sink, seed):
    stream(model, window, relative, first, 12, switches, global_sink, seed=seed)


def slots_of(ring, *place):
    ring.seek(*place)
    return ring.slots.tolist()


def test_slots_follow_the_ring_and_keep_the_sinks(model):
    ring = ring_of(model, GRID, window=8)
    assert slots_of(ring, 0, 8) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert slots_of(ring, 6, 8) == [6, 7, 3, 4, 5, 6, 7, 3]


def test_replaced_sinks_and_their_window_fill_every_slot_once(model):
    for window in range(6, 15):
        ring = ring_of(model, GRID, window=window)
        for origin in range(1, 40):
            slots = slots_of(ring, origin, window, origin)
            assert sorted(slots) == list(range(window)) and slots[:3] == [0, 1, 2]


@pytest.mark.parametrize("frames", [0, 9])
def test_a_pass_fits_the_window(model, frames):
    with pytest.raises(ValueError, match=r"frames must lie in 1\.\.8"):
        ring_of(model, GRID, window=8).seek(0, frames)


@pytest.mark.parametrize("relative", [False, True], ids=["base", "relative"])
@pytest.mark.parametrize("window", [6, 7, 9, 12])
def test_another_window_is_a_ring_of_that_size(model, window, relative):
    """In the storage of 12 frames a window sees what a ring of its own sees, whatever lies in the other slots."""
    torch.manual_seed(3)
    cross, modulation = model.cross_cache(torch.randn(2, 4).double()), model.modulation(torch.zeros(1).double())
    large = ring_of(model, GRID, 12, relative=relative)
    large.seek(0, 12)
    model(torch.randn(12, 2, 2, 4).double(), modulation, large, cross)
    small = ring_of(model, GRID, window, relative=relative)
    small.take_sinks(large)
    large.resize(window)
    for k, v in zip(large.k, large.v.values(), strict=True):
        k[window:], v[window:] = float("nan"), float("nan")
    plan = plan_recache(12, window, 3, global_sink=True)
    for start, frames in [(plan.start, plan.frames)] + [(p, 3) for p in range(12, 40, 3)]:
        x = torch.randn(frames, 2, 2, 4, dtype=torch.float64)
        for ring in (small, large):
            ring.seek(start, frames)
        torch.testing.assert_close(*(model(x, modulation, ring, cross) for ring in (small, large)), rtol=0, atol=0)


@pytest.mark.parametrize("window", [3, 9])
def test_a_ring_neither_loses_its_sinks_nor_grows(model, window):
    ring = ring_of(model, GRID, window=8)
    with pytest.raises(ValueError, match=f"window must be larger than the 3 sink frames and at most 8, got {window}"):
        ring.resize(window)
    assert ring.window == 8


def test_window_must_exceed_the_sinks(model):
    with pytest.raises(ValueError, match="window must be larger than the 3 sink frames and at most 3, got 3"):
        RingCache(model.config, GRID, window=3, sink=3, relative=False, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("far", [10**6, 10**8])
def test_relative_positions_are_the_same_everywhere(model, far):
    """A stream that begins at frame ``far`` gives what one that begins at frame 0 gives."""
    torch.manual_seed(1)
    cross, rings = model.cross_cache(torch.randn(2, 4).double()), [ring_of(model, GRID, 8, relative=True) for _ in "ab"]
    for block in range(30):
        for t in (1000.0, 0.0):
            x, out = torch.randn(3, 2, 2, 4, dtype=torch.float64), []
            for ring, begin in zip(rings, (0, far), strict=True):
                ring.seek(begin + 3 * block, 3, origin=begin)
                modulation = model.modulation(torch.tensor([t], dtype=torch.float64))
                out.append(model(x, modulation, ring, cross))
            # 1e8 radians are known to 1.5e-8 in float64.
            torch.testing.assert_close(out[1], out[0], rtol=0, atol=1e-12 * far)


def test_thousands_of_blocks_drift_nowhere(model):
    """Block 5000 sees what block 12 sees: the same latents at the same places in the window."""
    ring = ring_of(model, GRID, 8, relative=True)
    torch.manual_seed(2)
    cross, modulation = model.cross_cache(torch.randn(2, 4).double()), model.modulation(torch.zeros(1).double())
    latents = torch.randn(5, 3, 2, 2, 4, dtype=torch.float64)  # the ring's period of five blocks
    seen = {}
    for block in range(5005):
        ring.seek(3 * block, 3)
        if 0 < block < 10 or block > 4990:
            seen[block] = model(latents[block % 5 if block else 0], modulation, ring, cross)
        elif block in (0, *range(4980, 4991)):
            model(latents[block % 5 if block else 0], modulation, ring, cross, store_only=True)
    torch.testing.assert_close(seen[5002], seen[4997], rtol=0, atol=1e-11)
    torch.testing.assert_close(seen[5002], seen[7], rtol=0, atol=1e-10)
