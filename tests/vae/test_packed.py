"""The fused path's bookkeeping: histories that never move, calls that are replayed, memory; and their error."""

import contextlib
import gc
import logging
from dataclasses import dataclass

import pytest
import torch

from longlive_optimized.engine.graphs import GraphCache, GraphSwitch
from longlive_optimized.kernels import native
from longlive_optimized.kernels.registry import backend
from longlive_optimized.vae.autoencoder import to_uint8
from longlive_optimized.vae.backends import codec_for
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.vae.modules import ModulesCodec
from longlive_optimized.vae.packed.codec import PackedCodec
from longlive_optimized.vae.packed.weights import Convolution
from longlive_optimized.vae.stream import DecoderStream, EncoderStream
from longlive_optimized.vae.wan.model import WanVae
from support.vectors import h


@dataclass(frozen=True)
class Side:
    """A direction: its stream and that one's methods, and a function it calls at its end."""

    stream: type
    calls: tuple[str, ...]
    end: str

    def packed(self, vae, **options):
        return self.stream(PackedCodec(vae), **options)

    def shapes(self, sizes, grid):
        """Of the calls of a video, in latents each, from its beginning."""
        if self.stream is DecoderStream:
            return [(size, 16, *grid) for size in sizes]
        height, width = (8 * side for side in grid)
        return [(4 * size - 3 * (i == 0), 3, height, width) for i, size in enumerate(sizes)]

    def parts(self, sizes, seed=0, grid=(2, 3), dtype=torch.float32):
        return [h(seed + i, *shape, dtype=dtype) for i, shape in enumerate(self.shapes(sizes, grid))]

    def play(self, stream, parts):
        return [getattr(stream, self.calls[i % len(self.calls)])(part) for i, part in enumerate(parts)]


PACKED = "longlive_optimized.vae.packed"
DECODE = Side(DecoderStream, ("decode", "decode_uint8", "decode_uint8"), f"{PACKED}.decode.conv_pixels")
ENCODE = Side(EncoderStream, ("encode",), f"{PACKED}.encode.pointwise")


@pytest.fixture(params=[DECODE, ENCODE], ids=["decode", "encode"])
def side(request):
    return request.param


class Replay:
    """Behaves like a graph: does again what it was given first under this key, whatever it is asked now."""

    def __init__(self):
        self.works = {}

    def run(self, key, work):
        self.works.setdefault(key, work)()


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_replays_follow_the_lists(make_vae, side):
    """What a call would do anew and what a graph of the first such call does are the same, also after a reset."""
    eager, graphed = side.packed(make_vae()), side.packed(make_vae(), new_graphs=Replay)
    for turn in range(2):
        parts = side.parts([3, 3, 1, 3, 2, 3, 1, 3, 5], seed=10 * turn)
        assert same(side.play(graphed, parts), side.play(eager, parts))
        eager.reset(), graphed.reset()
    works = graphed._side.graphs.works
    assert len(works) >= 4 and len({id(work) for work in works.values()}) == len(works)


def test_results_are_the_callers(make_vae, side):
    stream = side.packed(make_vae(), new_graphs=Replay)
    first, *later = side.parts([3, 3, 3])
    call = getattr(stream, side.calls[-1])
    call(first)
    kept = call(later[0])
    before = kept.clone()
    call(later[1])
    assert torch.equal(kept, before)


def test_another_size_is_captured_anew(make_vae, side):
    made = []

    def new_graphs():
        made.append(Replay())
        return made[-1]

    stream = side.packed(make_vae(), new_graphs=new_graphs)
    for grid in ((1, 2), (2, 1), (1, 2)):
        for seed in range(2):
            stream.reset()
            parts = side.parts([3, 3], seed, grid)
            assert same(side.play(stream, parts), side.play(side.packed(make_vae()), parts))
    assert len(made) == 3 and len(made[2].works) == 2


@pytest.mark.parametrize("restart", [False, True])
def test_what_pools_held_before_is_never_seen(make_vae, side, restart):
    """All memory is poisoned before the first call, or before a reset's."""
    stream, sizes = side.packed(make_vae()), [1, 3, 2] if restart else [2, 1, 1]
    side.play(stream, side.parts([2], seed=3))
    stream.reset()
    for pool in stream._side.pools:
        pool.tensor.fill_(torch.nan)
    parts = side.parts(sizes)
    assert same(side.play(stream, parts), side.play(side.packed(make_vae()), parts))


def test_interleaved_streams_share_weights_only(make_vae, side):
    codec = PackedCodec(make_vae())
    videos = [side.parts([3, 3, 3], seed=10 * i) for i in range(2)]
    expected = [side.play(side.stream(codec), video) for video in videos]
    streams = [side.stream(codec, new_graphs=Replay), side.stream(codec, new_graphs=Replay)]
    for block in range(3):
        for stream, video, results in zip(streams, videos, expected, strict=True):
            got = getattr(stream, side.calls[block % len(side.calls)])(video[block])
            assert torch.equal(got, results[block])
    assert streams[0]._side.weights is streams[1]._side.weights


@pytest.mark.parametrize("fresh", [True, False])
def test_a_failed_call_resets(make_vae, side, fresh, monkeypatch):
    stream, parts = side.packed(make_vae()), side.parts([2, 1])
    expected = side.play(side.packed(make_vae()), parts)
    if not fresh:
        side.play(stream, parts[:1])
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(side.end, _out_of_memory)
        side.play(stream, parts[:1] if fresh else parts[1:])
    assert same(side.play(stream, parts), expected)


def test_no_room_for_pools_leaves_a_fresh_stream(make_vae, side, monkeypatch):
    stream, parts = side.packed(make_vae()), side.parts([2, 1])
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(f"{PACKED}.state.FramePool", _out_of_memory)
        side.play(stream, parts)
    assert same(side.play(stream, parts), side.play(side.packed(make_vae()), parts))


def _out_of_memory(*args, **kwargs):
    raise torch.OutOfMemoryError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_are_the_pixels(make_vae, dtype):
    latents = 4 * h(9, 3, 16, 3, 5, dtype=dtype)
    pixels, pictures = (getattr(DECODE.packed(make_vae(dtype)), call)(latents) for call in ("decode", "decode_uint8"))
    assert torch.equal(pictures, to_uint8(pixels).permute(0, 2, 3, 1)) and len(pictures.unique()) > 50


# Frames of a call: a fresh stream's may end with three that are in no latent; more than a call's are split.
@pytest.mark.parametrize("counts", [[13, 12, 4], [12, 12], [4, 4, 8], [8, 12], [28, 4], [33, 16]])
def test_encoding_is_the_modules(make_vae, counts):
    vae = make_vae(torch.float64)
    packed, modules = ENCODE.packed(vae), EncoderStream(ModulesCodec(vae))
    for _ in range(2):
        for seed, count in enumerate(counts):
            frames = h(seed, count, 3, 16, 8, dtype=torch.float64)
            latents = packed.encode(frames)
            assert len(latents) == (count + 3 * (seed == 0)) // 4
            torch.testing.assert_close(latents, modules.encode(frames), rtol=0, atol=1e-12)
        packed.reset(), modules.reset()


def test_a_codec_is_a_snapshot(make_vae, side):
    """What becomes of the VAE's weights is nothing to the codec and its streams; another codec has the new ones."""
    vae, other, parts = WanVae(VaeConfig(base=8)), make_vae(), side.parts([2, 1])
    codec = PackedCodec(vae)
    stream = side.stream(codec, new_graphs=Replay)
    before = side.play(stream, parts)
    vae.load_state_dict(other.state_dict())
    stream.reset()
    assert same(side.play(stream, parts), before) and same(side.play(side.stream(codec), parts), before)
    anew = side.play(side.packed(vae), parts)
    assert same(anew, side.play(side.packed(other), parts)) and not same(anew, before)
    assert side.play(side.packed(vae.double()), [part.double() for part in parts])[0].dtype == torch.float64


@pytest.mark.parametrize("fine", [1, 2, 3, 4, 5, 7])
def test_any_number_of_frames_may_pass_together(make_vae, side, fine, monkeypatch):
    vae, call = make_vae(torch.float64), side.calls[0]
    parts = side.parts([1, 3, 2, 4, 3], dtype=torch.float64)
    stream = side.packed(vae)
    expected = [getattr(stream, call)(part) for part in parts]
    for name in ("decode", "encode"):
        monkeypatch.setattr(f"{PACKED}.{name}._FINE_LOW", fine)
    stream = side.stream(PackedCodec(vae, low_memory=True), new_graphs=Replay)
    for _ in range(2):
        torch.testing.assert_close([getattr(stream, call)(part) for part in parts], expected, rtol=0, atol=1e-12)
        stream.reset()


def test_weights_may_lie_elsewhere_once_the_codec_is_made(make_vae, side):
    """Here those of the VAE lie on the CPU, and the codec computes on the meta device."""
    codec = PackedCodec(vae := make_vae())
    codec.device = torch.device("meta")
    assert codec.decoder_weights.conv1.weight.is_meta and codec.encoder_weights.moments.weight.is_meta
    assert vae.device.type == "cpu" and vae.dtype == torch.float32


def test_refuses_other_networks(make_vae):
    with pytest.raises(ValueError, match="vae must have widths that are multiples of 8"):
        PackedCodec(WanVae(VaeConfig(base=12), device="meta"))
    with pytest.raises(ValueError, match="vae must be a Wan VAE"):
        PackedCodec(make_vae(kind="tae"))


def test_is_taken_where_it_is_fast(monkeypatch, make_vae):
    def chosen(vae):
        return isinstance(codec_for(vae), PackedCodec)

    whole, light = (WanVae(config, device="meta").bfloat16() for config in (VaeConfig(), VaeConfig(base=24)))
    assert not chosen(whole)
    monkeypatch.setattr(native, "missing", lambda device: None)
    assert chosen(whole)
    assert not chosen(light) and not chosen(WanVae(device="meta")) and not chosen(make_vae(kind="tae"))


@pytest.mark.parametrize(
    ("capability", "forced", "taken"),
    [
        ((8, 9), None, True),
        ((12, 0), "triton", True),
        ((9, 0), "library", True),
        ((8, 0), "reference", False),
        ((7, 5), None, False),
    ],
)
def test_is_taken_on_triton(monkeypatch, capability, forced, taken):
    """Where the operators run on Triton and its products of bfloat16 are there."""
    pytest.importorskip("triton")
    monkeypatch.setattr(native, "capability", lambda index: capability)
    monkeypatch.setattr(native, "load", lambda: False)
    with backend(forced) if forced else contextlib.nullcontext():
        why = PackedCodec.why_slow(VaeConfig(), torch.bfloat16, torch.device("cuda", 0))
        assert (why is None) == taken and why in (None, "no Hopper GPU")
        assert PackedCodec.why_slow(VaeConfig(), torch.float32, torch.device("cuda", 0))
        assert PackedCodec.why_slow(VaeConfig(base=24), torch.bfloat16, torch.device("cuda", 0))
        assert PackedCodec.why_slow(VaeConfig(), torch.bfloat16, torch.device("cpu")) == "no CUDA GPU"


def convolutions(part):
    """All that are somewhere in this part of a packed network."""
    if isinstance(part, Convolution):
        return [part]
    if isinstance(part, dict):
        part = tuple(part.values())
    inner = part if isinstance(part, tuple) else vars(part).values() if hasattr(part, "__dict__") else []
    return [] if isinstance(part, torch.nn.Module) else [layer for each in inner for layer in convolutions(each)]


@pytest.mark.parametrize(
    ("new_side", "size", "low_memory", "layers", "weight_bytes", "pool_bytes"),
    [
        (PackedCodec.new_decoder, (60, 104), False, 35, (0.15e9, 0.2e9), (3.3e9, 3.6e9)),
        (PackedCodec.new_decoder, (60, 104), True, 35, (0.15e9, 0.2e9), (2.9e9, 3.2e9)),
        (PackedCodec.new_encoder, (480, 832), False, 24, (0.1e9, 0.12e9), (3e9, 3.7e9)),
        (PackedCodec.new_encoder, (480, 832), True, 24, (0.1e9, 0.12e9), (2.5e9, 2.8e9)),
    ],
    ids=["decode", "decode-low", "encode", "encode-low"],
)
def test_memory_at_full_size(new_side, size, low_memory, layers, weight_bytes, pool_bytes):
    """Bytes of all that stays, at 480x832."""
    packed = new_side(PackedCodec(WanVae(device="meta").bfloat16(), low_memory), size, None)
    found, pools = convolutions(packed.weights), packed.pools
    assert len(found) == layers
    assert weight_bytes[0] < sum(layer.weight.nbytes for layer in found) < weight_bytes[1]
    assert pool_bytes[0] < sum(pool.tensor.nbytes for pool in pools) < pool_bytes[1]


# Torch's own initialisation, with gains that differ.
@pytest.fixture(scope="module")
def full():
    torch.manual_seed(0)
    vae = WanVae()
    for key, p in vae.named_parameters():
        if key.endswith("gamma"):
            p.data = 1 + 0.2 * torch.randn_like(p)
    weights = {key: p.to("cuda", torch.bfloat16) for key, p in vae.state_dict().items()}

    def make(dtype):
        made = WanVae(device="meta")
        made.load_state_dict({key: p.to(dtype) for key, p in weights.items()}, assign=True)
        return made

    yield make
    gc.collect()
    torch.cuda.empty_cache()


def hopper_only():
    if not native.on_hopper(torch.empty(0, device="cuda")):
        pytest.skip("needs the library, and a Hopper GPU")


def graph_cache():
    return GraphCache(GraphSwitch(torch.device("cuda", torch.cuda.current_device())))


def draw(side, sizes, grid):
    generator = torch.Generator().manual_seed(len(sizes))
    shapes = side.shapes(sizes, grid)
    return [torch.randn(shape, generator=generator).clamp_(-1, 1).cuda().bfloat16() for shape in shapes]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnHopper:
    @pytest.fixture(autouse=True)
    def _hopper(self, monkeypatch):
        hopper_only()
        for library in (torch.backends.cuda.matmul, torch.backends.cudnn):
            monkeypatch.setattr(library, "allow_tf32", False)

    @pytest.mark.parametrize("grid", [(20, 36), (13, 21), (1, 1)])
    @pytest.mark.parametrize("sizes", [[3, 3], [1, 2, 1, 3], [4, 3]])
    def test_error_is_at_most_the_eager_networks(self, full, side, grid, sizes):
        streams = [
            side.stream(codec_for(full(torch.bfloat16))),
            side.stream(ModulesCodec(full(torch.bfloat16))),
            side.stream(ModulesCodec(full(torch.float32))),
        ]
        assert isinstance(streams[0].codec, PackedCodec)
        errors = [0.0, 0.0]
        for x in draw(side, sizes, grid):
            ours, eager, truth = (getattr(s, side.calls[0])(x.to(s.codec.dtype)).double() for s in streams)
            errors = [e + (y - truth).norm() ** 2 for e, y in zip(errors, (ours, eager), strict=True)]
        assert errors[0] ** 0.5 <= 1.1 * errors[1] ** 0.5

    def test_replays_are_the_eager_calls_and_do_not_wait(self, full, side, caplog):
        codec = codec_for(full(torch.bfloat16))
        eager, graphed = side.stream(codec), side.stream(codec, new_graphs=graph_cache)
        blocks = draw(side, [3, 3, 3, 1, 3, 2, 3, 1, 2], (12, 20))
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                for block in blocks:
                    call = side.calls[-1]
                    assert torch.equal(getattr(graphed, call)(block), getattr(eager, call)(block))
                eager.reset(), graphed.reset()
        graphs = graphed._side.graphs
        assert graphs.captured == 4 and not graphs.failed and not caplog.records
        expected = [getattr(eager, call)(block) for block in blocks]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = [getattr(graphed, call)(block) for block in blocks]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert same(got, expected)

    def test_fewer_frames_at_a_time_and_weights_on_the_host_give_the_same(self, full, side):
        vae = full(torch.bfloat16)
        codecs = codec_for(vae), codec_for(vae, low_memory=True), codec_for(vae, in_parts=True)
        blocks = draw(side, [3, 1, 3], (12, 20))
        expected = side.play(side.stream(codecs[0]), blocks)
        vae.cpu()
        for codec in codecs[1:]:
            got = side.play(side.stream(codec, new_graphs=graph_cache), blocks)
            if side is DECODE:
                assert same(got, expected)
            else:  # the encoder's strided convolutions are torch's: another count of frames, another order of sums
                worst = max(((a - b).norm() / b.norm()).item() for a, b in zip(got, expected, strict=True))
                assert worst <= 0.01
        assert vae.device.type == "cpu"

    @pytest.mark.parametrize(("chosen", "most"), [(DECODE, 4.5e9), (ENCODE, 4.5e9)], ids=["decode", "encode"])
    def test_memory(self, full, chosen, most):
        """Of a stream at 480x832, packed weights and temporaries included, beside the plain weights."""
        vae = full(torch.bfloat16)
        first, later = draw(chosen, [4, 3], (60, 104))
        torch.cuda.synchronize(), torch.cuda.empty_cache(), torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        stream = chosen.stream(codec_for(vae), new_graphs=graph_cache)
        for part in (first, later, later):
            getattr(stream, chosen.calls[-1])(part)
        half = vae.decoder if chosen is DECODE else vae.encoder
        assert torch.cuda.max_memory_allocated() - before + sum(p.nbytes for p in half.parameters()) <= most
