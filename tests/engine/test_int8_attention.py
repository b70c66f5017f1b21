"""Streams whose attention runs in 8 bits: over which keys, and what a change of them leaves as it was."""

import math
import statistics
from collections.abc import Iterator

import pytest
import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.engine.stream import Stream
from longlive_optimized.model.precision import PLAIN
from longlive_optimized.model.ring_cache import RingCache
from longlive_optimized.model.transformer import Transformer
from support.rings import in_8_bits, poison

FOX, BOAT = "a red square stands still over a green field", "a white cross rests on a black night"
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
NAN = float("nan")


NONE, SOME, ALL = (False,) * 5, (False, True, False, True, True), (True,) * 5  # the built-in model's layers
ENGINES = [("cpu", NONE), ("cpu", SOME), ("cpu", ALL)]
ENGINES += [pytest.param(("cuda", values8), marks=ON_GPU) for values8 in (NONE, SOME)]


@pytest.fixture(scope="module", params=ENGINES, ids=lambda param: f"{param[0]}-{sum(param[1])}-layers")
def engine(request) -> Iterator[LongLiveEngine]:
    """With values in 8 bits in none, some or all layers."""
    device, values8 = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("longlive_optimized.engine.stream.values_in_8_bits", lambda *where: values8)
        yield LongLiveEngine("tiny", OptimizationConfig(height=32, width=64, vae_type="tae"), device)


def blocks(engine, stream, *prompts, **wishes) -> list[torch.Tensor]:
    return [engine.generate_block(BlockRequest(prompt, **wishes), stream).cpu() for prompt in prompts]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    error = (a.float() - b.float()).square().mean().item()
    return 10 * math.log10(255**2 / error) if error else math.inf


def close(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Most blocks: at a prompt switch small differences may decide between two pictures."""
    return statistics.median(map(psnr, a, b)) >= 35


@pytest.fixture
def passes(monkeypatch) -> list[tuple[str, int]]:
    """(the keys that attention reads, latent frames) of each pass through the network."""
    seen, forward = [], Transformer.forward

    def watch(model, latents, modulation, ring, *args, **how):
        seen.append((ring.keys_read, len(latents)))
        return forward(model, latents, modulation, ring, *args, **how)

    monkeypatch.setattr(Transformer, "forward", watch)
    return seen


def settings(**changes) -> dict:
    return {"denoising_steps": (1000,), "use_cuda_graphs": False, **changes}


def test_a_pass_over_its_own_keys_alone_reads_them_in_dtype(engine, passes):
    stream = engine.open_stream(**settings(precision="int8"))
    blocks(engine, stream, FOX, FOX)
    assert passes == [("own", 3), ("own", 3), ("int8", 3)]  # denoised; context pass, denoised
    blocks(engine, stream, BOAT)  # a recache from nothing
    assert passes[3:] == [("own", 6), ("int8", 3)]
    blocks(engine, stream, BOAT, BOAT, FOX)  # a recache that keeps the sinks
    assert passes[5:] == [("int8", 3)] * 4 + [("int8", 9), ("int8", 3)]
    stream.configure(global_sink=False)
    blocks(engine, stream, BOAT)  # makes others the sinks
    assert passes[11:] == [("own", 12), ("int8", 3)]
    blocks(engine, stream, BOAT, restart=True)
    assert passes[13:] == [("own", 3)]


def test_sinks_longer_than_a_block_are_written_over_keys_in_int8(engine, passes):
    stream = engine.open_stream(**settings(precision="int8", sink_size=6))
    blocks(engine, stream, FOX, FOX, FOX)
    assert passes == [("own", 3)] * 2 + [("int8", 3)] * 3


def test_a_change_takes_hold_after_the_last_blocks_context_pass(engine, passes):
    stream = engine.open_stream(**settings())
    for precision in ("bf16", "int8", "bf16"):
        stream.configure(precision=precision)
        blocks(engine, stream, FOX)
    assert passes == [("dtype", 3), ("dtype", 3), ("int8", 3), ("int8", 3), ("dtype", 3)]
    stream.configure(precision="int8")
    blocks(engine, stream, BOAT)  # before a recache
    assert passes[5:] == [("own", 9), ("int8", 3)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sink_size": 0},
        {"sink_size": 1},
        {"sink_size": 6},
        {"positions": "base"},
        {"positions": "base", "sink_size": 6},
        {"global_sink": False},
        {"global_sink": False, "positions": "base"},
        {"local_attn_size": 6},
        {"local_attn_size": 7},
        {"restart_at": 9},
    ],
    ids=str,
)
def test_streams_stay_close_to_bf16_whatever_lies_in_the_ring(engine, changes):
    changes = {"denoising_steps": (1000, 500), **changes}
    plain, int8, poisoned = (engine.open_stream(**changes, precision=each) for each in ("bf16", "int8", "int8"))
    assert int8.precision == "int8" and int8.ring.k is None and plain.ring.cache8 is None
    poison(poisoned.ring)
    prompts = [*[FOX] * 3, *[BOAT] * 4, *[FOX] * 2]
    made = [blocks(engine, stream, *prompts) for stream in (plain, int8, poisoned)]
    assert torch.equal(made[0][0], made[1][0]) and all(map(torch.equal, made[1], made[2]))
    assert not all(map(torch.equal, made[0], made[1])) and close(made[0], made[1])
    assert int8.fallback_blocks == poisoned.fallback_blocks == 0
    engine.reset(poisoned)
    poison(poisoned.ring)
    assert all(map(torch.equal, blocks(engine, poisoned, *prompts[:5]), made[1]))


def test_attention_makes_a_difference_of_its_own(engine, monkeypatch):
    """With products in 8 bits in both."""
    int8 = engine.open_stream(precision="int8")
    with monkeypatch.context() as without:
        without.setattr("longlive_optimized.model.precision.KEPT", {"attention": (0,)})
        products = engine.open_stream(precision="int8")
        assert products.precision == "int8 products" and products.ring.cache8 is None
    a, b = (blocks(engine, stream, *[FOX] * 4) for stream in (int8, products))
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1]) and close(a, b)


def test_frames_that_are_no_whole_runs_keep_attention_in_dtype(engine):
    plain, products = (engine.open_stream(32, 48, precision=each) for each in ("bf16", "int8"))
    assert products.precision == "int8 products" and plain.precision in ("float32", "bf16")
    assert products.ring.cache8 is None and products.ring.keys_read == "dtype"
    a, b = (blocks(engine, stream, *[FOX] * 3) for stream in (plain, products))
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1]) and close(a, b)


@pytest.mark.parametrize("positions", ["relative", "base"])
def test_precision_changes_back_and_forth_and_recomputes_nothing(engine, positions):
    plain, changed = (engine.open_stream(positions=positions) for _ in range(2))
    wanted, made, places = blocks(engine, plain, *[FOX] * 14), [], []
    for i in range(14):
        changed.configure(precision=("bf16", "int8")[i // 2 % 2])
        made += blocks(engine, changed, FOX)
        ring = changed.ring
        storage = [ring.k, *ring.v.values(), *(in_8_bits(ring) if ring.cache8 else [])]
        places.append(tuple(t.data_ptr() for t in storage))
    assert all(map(torch.equal, wanted[:2], made[:2])) and close(wanted, made)
    assert not any("recache" in times.stages for times in engine.block_times(changed))
    assert {*places[2:]} == {places[2]} and changed.fallback_blocks == 0
    assert len(places[2]) == 1 + 5 + 3 + 3 * sum(changed.ring.values8)


def test_presets_change_window_and_precision_at_once(engine):
    """Also to a window larger than any before, in new storage."""
    plain, changed = engine.open_stream(local_attn_size=9), engine.open_stream(local_attn_size=9)
    made: list[list[torch.Tensor]] = [[], []]
    for window, precision in ((9, "bf16"), (6, "int8"), (12, "int8"), (9, "bf16"), (15, "bf16"), (18, "int8")):
        plain.configure(local_attn_size=window)
        changed.configure(local_attn_size=window, precision=precision)
        for stream, frames in zip((plain, changed), made, strict=True):
            frames += blocks(engine, stream, *[FOX] * 3)
        assert changed.ring.holds_int8 == (precision == "int8") and changed.ring.window == window
    assert close(*made) and changed.fallback_blocks == 0


def test_int8_after_the_first_block_is_int8_from_the_start(engine):
    changed, int8 = engine.open_stream(), engine.open_stream(precision="int8")
    made = blocks(engine, changed, FOX)
    changed.configure(precision="int8")
    made += blocks(engine, changed, *[FOX] * 3)
    assert all(map(torch.equal, made, blocks(engine, int8, *[FOX] * 4)))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_change_and_back_before_a_block_changes_nothing(engine, precision):
    stream, other = (engine.open_stream(precision=precision) for _ in range(2))
    wanted, made = blocks(engine, other, *[FOX] * 7), []
    for change in ({"precision": "bf16"}, {"local_attn_size": 6}, {"precision": "int8", "local_attn_size": 9}):
        made += blocks(engine, stream, FOX, FOX)  # the window of 12 is full after four
        stream.configure(**change), stream.configure(precision=precision, local_attn_size=12)
    assert all(map(torch.equal, wanted, [*made, *blocks(engine, stream, FOX)]))


def test_a_window_half_recomputed_is_recomputed_whatever_comes(engine, monkeypatch):
    """Also where the one before is wished for again: its keys may be gone."""
    stream, other = (engine.open_stream(precision="int8") for _ in range(2))
    for each in (stream, other):
        blocks(engine, each, *[FOX] * 5)
    other.recache_due = True
    context = stream.passes.context

    def fail(latents, policy):
        context(latents, policy)
        raise torch.OutOfMemoryError("no memory")

    stream.configure(local_attn_size=9)
    with monkeypatch.context() as short, pytest.raises(torch.OutOfMemoryError):
        short.setattr(stream.passes, "context", fail)
        blocks(engine, stream, FOX)
    stream.configure(local_attn_size=12)
    assert all(map(torch.equal, *(blocks(engine, each, FOX, FOX) for each in (stream, other))))


def test_the_first_blocks_offset_holds_until_all_keys_are_others(engine):
    stream = engine.open_stream(**settings(precision="int8"))

    def offset() -> torch.Tensor:
        return stream.ring.cache8.keys.offset.clone()

    blocks(engine, stream, FOX)
    noisy = offset()
    blocks(engine, stream, FOX)
    first = offset()
    assert first.abs().amax() > 0.1 and not torch.equal(first, noisy)  # the context pass's keys count
    blocks(engine, stream, *[FOX] * 5, BOAT, BOAT)  # also over a recache that keeps the sinks
    assert torch.equal(offset(), first)
    stream.configure(global_sink=False)
    blocks(engine, stream, FOX)
    assert not torch.equal(offset(), first)
    blocks(engine, stream, FOX, reset=True)
    assert torch.equal(offset(), noisy)


def test_loras_renew_sinks_and_offset_together(engine):
    """Keys of the sinks' recache and of the window's have one offset: that of the sinks."""
    stream = engine.open_stream(**settings(precision="int8"))
    blocks(engine, stream, *[FOX] * 6)
    first = stream.ring.cache8.keys.offset.clone()
    engine.set_loras([])
    made = blocks(engine, stream, FOX)
    torch.testing.assert_close(stream.ring.cache8.keys.offset, first, rtol=1e-3, atol=1e-3)
    assert made[0].float().std() > 5 and stream.fallback_blocks == 0


def test_no_memory_for_keys_changes_nothing(engine, monkeypatch):
    def full(*args, **how):
        raise torch.OutOfMemoryError("no memory")

    stream, plain = engine.open_stream(), engine.open_stream()
    wanted, made, before = blocks(engine, plain, *[FOX] * 3), blocks(engine, stream, FOX), stream.settings
    with monkeypatch.context() as short:
        short.setattr(RingCache, "reserve", full)
        for change in ({}, {"local_attn_size": 9}, {"local_attn_size": 15}):
            with pytest.raises(torch.OutOfMemoryError):
                stream.configure(precision="int8", **change)
    assert stream.settings == before and not stream.int8_keys and stream.ring.window == 12
    assert all(map(torch.equal, wanted, [*made, *blocks(engine, stream, FOX, FOX)]))


def test_a_change_that_fails_half_way_is_made_again(engine, monkeypatch):
    stream, other = engine.open_stream(), engine.open_stream()
    for each in (stream, other):
        blocks(engine, each, *[FOX] * 2)
        each.configure(precision="int8")
    hold, failures = RingCache.hold, [1]

    def fail(ring, int8):
        if failures:
            hold(ring, int8)
            ring.holds_int8 = bool(failures.pop() - 1)
            raise RuntimeError("no kernel")
        hold(ring, int8)

    monkeypatch.setattr(RingCache, "hold", fail)
    with pytest.raises(RuntimeError, match="no kernel"):
        blocks(engine, stream, FOX)
    assert all(map(torch.equal, blocks(engine, stream, FOX, FOX), blocks(engine, other, FOX, FOX)))


def test_a_block_over_int8_keys_that_fails_may_be_asked_for_again(engine, monkeypatch):
    stream, other = (engine.open_stream(precision="int8") for _ in range(2))
    wanted, made, forward = blocks(engine, other, *[FOX] * 3, BOAT), [], Transformer.forward

    def fail(*args, **how):
        monkeypatch.setattr(Transformer, "forward", forward)
        raise RuntimeError("out of memory")

    stream.configure(use_cuda_graphs=False)
    for prompt in (FOX, FOX, FOX, BOAT):
        monkeypatch.setattr(Transformer, "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            blocks(engine, stream, prompt)
        made += blocks(engine, stream, prompt)
    assert all(map(torch.equal, wanted, made))


def test_values_beyond_e4m3_make_a_block_again_and_later_ones_fit(engine, monkeypatch):
    plain, stream = (engine.open_stream(precision=each) for each in ("bf16", "int8"))
    if not any(stream.ring.values8):
        pytest.skip("values are in the model's dtype")
    wanted = blocks(engine, plain, *[FOX] * 6)
    with monkeypatch.context() as tight:
        tight.setattr("longlive_optimized.model.ring_cache.VALUE_RANGE", 440)  # no room for larger ones
        made = blocks(engine, stream, FOX, FOX)
    assert stream.fallback_blocks == 1 and stream.ring.keys_read == "dtype"
    assert all(map(torch.equal, wanted[:1], made[:1])) and close(wanted[:2], made)
    made += blocks(engine, stream, *[FOX] * 4)
    assert stream.fallback_blocks == 1 and stream.ring.holds_int8 and close(wanted, made)


def test_what_attention_in_8_bits_leaves_not_finite_is_seen_without_products(engine):
    """Of a block that writes sinks over older ones: no product of it is in 8 bits."""
    stream: Stream = engine.open_stream(precision="int8", sink_size=6)
    wanted = blocks(engine, engine.open_stream(sink_size=6), FOX, FOX)
    made, settle_again = blocks(engine, stream, FOX), stream.passes.context

    def context(latents, policy):
        settle_again(latents, policy)
        stream.ring.cache8.keys.scale[2, 0, 0] = NAN

    stream.passes.context = context
    made += blocks(engine, stream, FOX)
    assert stream.fallback_blocks == 1 and stream.made_with == PLAIN and close(wanted, made)
