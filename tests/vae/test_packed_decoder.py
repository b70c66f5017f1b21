"""The packed decoder's bookkeeping: histories that never move, calls that are replayed, memory; and its error."""

import gc
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longlive_optimized.engine.graphs import GraphCache
from longlive_optimized.kernels import native
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.vae.model import WanVae
from longlive_optimized.vae.packed_decoder import PackedDecoder
from longlive_optimized.vae.packed_state import PackedState
from longlive_optimized.vae.places import Pool
from longlive_optimized.vae.stream import DecoderStream, to_uint8
from support.vectors import h

SETTINGS = settings(max_examples=15, deadline=None, derandomize=True)


def latents_of(seed, frames, grid=(3, 5), dtype=torch.float32):
    return h(seed, frames, 16, *grid, dtype=dtype)


class Replay:
    """Behaves like a graph: does again what it was given first under this key, whatever it is asked now."""

    def __init__(self):
        self.works = {}

    def run(self, key, work):
        self.works.setdefault(key, work)()


def packed(vae, **options):
    return DecoderStream(vae, packed=True, **options)


@given(data=st.data())
@SETTINGS
def test_pools_remember_like_a_list(data):
    """Two layers share work places; each sees the last two frames of what it read, or zeros."""
    pool = Pool(8, (1, 1), ["first", "second"], a=3)
    pool.tensor.fill_(torch.nan)
    told, count = {"first": [], "second": []}, 0
    for layer in data.draw(st.lists(st.sampled_from(["first", "second", None]), max_size=12)):
        if layer is None:
            pool.forget()
            told = {"first": [], "second": []}
            continue
        frames = data.draw(st.integers(1, 3))
        first = data.draw(st.integers(0, 3 - frames))
        for place in pool.a[first : first + frames]:
            count += 1
            pool.tensor[place] = count
            told[layer].append(count)
        tensor, places = pool.read(layer, pool.a, first, first + frames)
        seen = [0 if p < 0 else tensor[p].flatten()[0].item() for p in places]
        assert seen == ([0, 0, *told[layer]])[-2 - frames :]
        assert sorted(pool.a) == sorted(set(pool.a)) and min(pool.a) >= 0


def test_replays_follow_the_lists(make_vae):
    """What a call would do anew and what a graph of the first such call does are the same, also after a reset."""
    eager, graphed = packed(make_vae()), packed(make_vae(), new_graphs=Replay)
    for turn in range(2):
        for i, frames in enumerate([3, 3, 1, 3, 2, 3, 1, 3, 5]):
            latents = latents_of(10 * turn + i, frames)
            assert torch.equal(graphed.decode(latents), eager.decode(latents))
            if i % 3 == 0:
                assert torch.equal(graphed.decode_uint8(latents), eager.decode_uint8(latents))
        eager.reset(), graphed.reset()
    assert len(graphed._state.graphs.works) > 4


def test_results_are_the_callers(make_vae):
    stream = packed(make_vae(), new_graphs=Replay)
    stream.decode_uint8(latents_of(0, 3))
    frames = stream.decode_uint8(latents_of(1, 3))
    before = frames.clone()
    stream.decode_uint8(latents_of(2, 3))
    assert torch.equal(frames, before)


def test_another_size_is_captured_anew(make_vae):
    made = []

    def new_graphs():
        made.append(Replay())
        return made[-1]

    stream = packed(make_vae(), new_graphs=new_graphs)
    for grid in ((2, 3), (4, 3), (2, 3)):
        stream.reset()
        for frames in (3, 3):
            stream.decode(latents_of(0, frames, grid))
        expected = packed(make_vae())
        expected.decode(latents_of(0, 3, grid))
        stream.reset()
        stream.decode(latents_of(0, 3, grid))
        assert torch.equal(stream.decode(latents_of(1, 3, grid)), expected.decode(latents_of(1, 3, grid)))
    assert len(made) == 3
    stream.use_graphs(None)
    stream.decode(latents_of(0, 3, (2, 3)))
    assert len(made) == 3 and len(made[2].works) == 2


@pytest.mark.parametrize("restart", [False, True])
def test_what_pools_held_before_is_never_seen(make_vae, restart):
    """All memory is poisoned before the first call, or before a reset's."""
    stream = packed(make_vae())
    stream.decode(latents_of(3, 2))
    stream.reset()
    for pool in stream._state.pools:
        pool.tensor.fill_(torch.nan)
    for frames in [1, 3, 2] if restart else [2, 1, 1]:
        assert stream.decode(latents_of(0, frames)).isfinite().all()


def test_interleaved_streams_share_weights_only(make_vae):
    vae = make_vae()
    alone = [packed(vae), packed(vae)]
    expected = [[s.decode(latents_of(10 * i + block, 3)) for block in range(3)] for i, s in enumerate(alone)]
    streams = [packed(vae, new_graphs=Replay), packed(vae, new_graphs=Replay)]
    for block in range(3):
        for i, stream in enumerate(streams):
            assert torch.equal(stream.decode(latents_of(10 * i + block, 3)), expected[i][block])
    assert streams[0]._state._net is streams[1]._state._net


@pytest.mark.parametrize("fresh", [True, False])
def test_a_failed_call_resets(make_vae, fresh, monkeypatch):
    stream, expected = packed(make_vae()), packed(make_vae()).decode(latents_of(1, 3))
    if not fresh:
        stream.decode(latents_of(0, 3))
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr("longlive_optimized.vae.packed_state.conv_pixels", _out_of_memory)
        stream.decode(latents_of(1, 3))
    assert torch.equal(stream.decode(latents_of(1, 3)), expected)


def test_no_room_for_pools_leaves_a_fresh_stream(make_vae, monkeypatch):
    stream = packed(make_vae())
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr("longlive_optimized.vae.packed_state.Pool", _out_of_memory)
        stream.decode(latents_of(1, 3))
    assert torch.equal(stream.decode(latents_of(1, 3)), packed(make_vae()).decode(latents_of(1, 3)))


def _out_of_memory(*args, **kwargs):
    raise torch.OutOfMemoryError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_are_the_pixels(make_vae, dtype):
    latents = 4 * latents_of(9, 3).to(dtype)
    pixels, pictures = packed(make_vae(dtype)).decode(latents), packed(make_vae(dtype)).decode_uint8(latents)
    assert torch.equal(pictures, to_uint8(pixels).permute(0, 2, 3, 1)) and len(pictures.unique()) > 50


def test_other_weights_are_packed_anew():
    config = VaeConfig(base=8)
    vae, other = WanVae(config), WanVae(config)
    before = vae.packed_decoder
    assert vae.packed_decoder is before
    vae.load_state_dict(other.state_dict())
    assert vae.packed_decoder is not before
    latents = latents_of(0, 2)
    torch.testing.assert_close(packed(vae).decode(latents), DecoderStream(other).decode(latents))
    assert packed(vae.double()).decode(latents.double()).dtype == torch.float64


def test_refuses_other_widths(make_vae):
    with pytest.raises(ValueError, match="vae must have widths that are multiples of 8"):
        PackedDecoder(WanVae(VaeConfig(base=12), device="meta"))
    with pytest.raises(ValueError, match="vae must be a Wan VAE"):
        packed(make_vae(kind="tae"))


def test_is_taken_where_it_is_fast(monkeypatch, make_vae):
    def chosen(vae):
        return DecoderStream(vae).packed

    whole, light = (WanVae(config, device="meta").bfloat16() for config in (VaeConfig(), VaeConfig(base=24)))
    assert not chosen(whole)
    monkeypatch.setattr(native, "on_hopper", lambda x: True)
    assert chosen(whole)
    assert not chosen(light) and not chosen(WanVae(device="meta")) and not chosen(make_vae(kind="tae"))


def test_memory_at_full_size():
    """Bytes of all that stays, at 480x832."""
    net = PackedDecoder(WanVae(device="meta").bfloat16())
    state = PackedState(net, (60, 104), None)
    layers = [net.conv1, net.pixels, net.before.first, net.before.second]
    layers += [layer for level in net.levels for block in level.blocks for layer in (block.first, block.second)]
    layers += [layer for level in net.levels for layer in (level.time, level.up) if layer]
    weights = sum(layer.weight.nbytes for layer in layers)
    pools = sum(pool.tensor.nbytes for pool in state.pools)
    assert 0.15e9 < weights < 0.2e9 and 4e9 < pools < 4.8e9


# Torch's own initialisation, with gains that differ.
@pytest.fixture(scope="module")
def full():
    torch.manual_seed(0)
    vae = WanVae(encoder=False)
    for key, p in vae.named_parameters():
        if key.endswith("gamma"):
            p.data = 1 + 0.2 * torch.randn_like(p)
    weights = {key: p.to("cuda", torch.bfloat16) for key, p in vae.state_dict().items()}

    def make(dtype):
        made = WanVae(encoder=False, device="meta")
        made.load_state_dict({key: p.to(dtype) for key, p in weights.items()}, assign=True)
        return made

    yield make
    gc.collect()
    torch.cuda.empty_cache()


def hopper_only():
    if not native.on_hopper(torch.empty(0, device="cuda")):
        pytest.skip("needs the library, and a Hopper GPU")


def graph_cache():
    return GraphCache(torch.device("cuda", torch.cuda.current_device()))


def draw(seed, frames, grid):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, 16, *grid, generator=generator).cuda().bfloat16()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnHopper:
    @pytest.fixture(autouse=True)
    def _hopper(self, monkeypatch):
        hopper_only()
        for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
            monkeypatch.setattr(backend, "allow_tf32", False)

    @pytest.mark.parametrize("grid", [(20, 36), (13, 21), (1, 1)])
    @pytest.mark.parametrize("sizes", [[3, 3], [1, 2, 1, 3]])
    def test_error_is_at_most_the_eager_networks(self, full, grid, sizes):
        streams = [
            DecoderStream(full(torch.bfloat16)),
            DecoderStream(full(torch.bfloat16), packed=False),
            DecoderStream(full(torch.float32), packed=False),
        ]
        assert streams[0].packed
        errors = [0.0, 0.0]
        for seed, frames in enumerate(sizes):
            x = draw(seed, frames, grid)
            ours, eager, truth = (stream.decode(x.to(stream.vae.dtype)).double() for stream in streams)
            errors = [e + (y - truth).norm() ** 2 for e, y in zip(errors, (ours, eager), strict=True)]
        assert errors[0] ** 0.5 <= 1.1 * errors[1] ** 0.5

    def test_replays_are_the_eager_calls_and_do_not_wait(self, full, caplog):
        vae = full(torch.bfloat16)
        eager, graphed = DecoderStream(vae), DecoderStream(vae, new_graphs=graph_cache)
        blocks = [draw(seed, frames, (12, 20)) for seed, frames in enumerate([3, 3, 3, 1, 3, 2, 3, 1, 2])]
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                for block in blocks:
                    assert torch.equal(graphed.decode_uint8(block), eager.decode_uint8(block))
                eager.reset(), graphed.reset()
        graphs = graphed._state.graphs
        assert graphs.captured == 4 and not graphs.failed and not caplog.records
        expected = [eager.decode_uint8(block) for block in blocks]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = [graphed.decode_uint8(block) for block in blocks]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    def test_memory(self, full):
        vae = full(torch.bfloat16)
        latents = draw(0, 3, (60, 104))
        torch.cuda.synchronize(), torch.cuda.empty_cache(), torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        stream = DecoderStream(vae, new_graphs=graph_cache)
        for _ in range(3):
            stream.decode_uint8(latents)
        peak = torch.cuda.max_memory_allocated() - before
        assert peak + sum(p.nbytes for p in vae.decoder.parameters()) <= 5.5e9
