"""The fused path in int8: what it costs a picture, its scales, its counts, and that its bookkeeping is the same."""

import copy
from unittest.mock import MagicMock

import pytest
import torch

from longlive_optimized.kernels import native
from longlive_optimized.kernels.causal_conv import LEAST_SCALE
from longlive_optimized.kernels.registry import backend
from longlive_optimized.vae.backends import codec_for
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.vae.modules import ModulesCodec
from longlive_optimized.vae.packed.codec import PackedCodec
from longlive_optimized.vae.packed.int8 import Saturated, Scales, _Largest
from longlive_optimized.vae.packed.weights import Int8Convolution
from longlive_optimized.vae.stream import DecoderStream, EncoderStream
from longlive_optimized.vae.wan.model import WanVae
from longlive_optimized.weights.load import load_vae
from longlive_optimized.weights.locate import locate
from measure.vae_drift import drift
from support.vaes import decode, encode, noise, psnr, randomised


@pytest.fixture(scope="module")
def vae():
    return randomised(VaeConfig(base=16))


@pytest.fixture(scope="module")
def codec(vae):
    return PackedCodec(vae, int8=True)


def test_pictures_of_random_weights(vae, codec):
    latents = noise(9, (8, 12))
    want, got = (decode(each, latents.split(3)) for each in (ModulesCodec(vae), codec))
    assert 35 < psnr(got, want) < 60  # there, and no better than it can be


def test_latents_of_random_weights(vae, codec):
    frames = decode(ModulesCodec(vae), [noise(4, (8, 12))]).clamp(-1, 1)
    want, got = (encode(each, frames.split([1, 12])) for each in (ModulesCodec(vae), codec))
    assert 0.005 < ((got - want).norm() / want.norm()).item() < 0.1


def test_the_built_in_models():
    files = locate("tiny")
    vae = load_vae(files, torch.device("cpu"), torch.float32)
    latents = noise(6, (8, 12))
    want, got = (decode(each, latents.split(3)) for each in (ModulesCodec(vae), PackedCodec(vae, int8=True)))
    assert psnr(got, want) > 38


def test_scales(vae):
    """One for each norm of a residual block, at least SiLU's own least, with an inverse that half precision holds."""
    scales = Scales.of_decoder(vae, Saturated(vae.device)).of
    assert len(scales) == 2 * (2 + 4 * 3)
    for scale in scales.values():
        assert LEAST_SCALE < scale < 0.1 and float(torch.tensor(1 / scale).half()) == pytest.approx(1 / scale, rel=1e-7)
    encoder = Scales.of_encoder(vae, Saturated(vae.device)).of
    assert len(encoder) == 2 * (2 + 4 * 2) and not set(encoder) & set(scales)
    assert Scales.of_decoder(vae, Saturated(vae.device)).of == scales
    assert not any(module._forward_hooks for module in vae.modules())


def test_scales_are_not_of_the_callers_default_dtype(vae):
    wanted = Scales.of_decoder(vae, Saturated(vae.device)).of
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert Scales.of_decoder(vae, Saturated(vae.device)).of == wanted
    finally:
        torch.set_default_dtype(usual)


@pytest.mark.parametrize("sizes", [[3, 3], [1, 2, 3], [2, 1, 1, 2], [6]])
def test_any_split_of_a_stream(codec, sizes):
    latents = noise(6)
    whole, parts = decode(codec, latents.split(3)), decode(codec, latents.split(sizes))
    torch.testing.assert_close(parts, whole, rtol=0, atol=0.02)
    assert psnr(parts, whole) > 60


class Replay:
    """Behaves like a graph: does again what it was given first under this key, whatever it is asked now."""

    def __init__(self):
        self.works = {}

    def run(self, key, work):
        self.works.setdefault(key, work)()


@pytest.mark.parametrize("side", [DecoderStream, EncoderStream])
def test_replays_and_poisoned_pools(codec, side):
    """Calls that replay, on memory that is poisoned at each video's beginning, give what calls of their own give."""
    eager, graphed = side(codec), side(codec, new_graphs=Replay)
    for turn in range(2):
        for i, latents in enumerate((3, 3, 1, 3)):
            part = noise(latents, seed=10 * turn + i)
            if side is EncoderStream:
                count = 4 * latents - 3 * (i == 0)
                part = noise(count, (32, 48), seed=10 * turn + i)[:, :3].clamp(-1, 1)
            method = "decode" if side is DecoderStream else "encode"
            assert torch.equal(getattr(graphed, method)(part), getattr(eager, method)(part))
        eager.reset(), graphed.reset()
        for pool in graphed._side.pools:
            pool.tensor.fill_(torch.nan if pool.tensor.is_floating_point() else -128)


def test_values_beyond_the_scale_are_counted(vae):
    codec = PackedCodec(vae, int8=True)
    assert codec.saturated == 0
    parts = noise(6).split(3)
    decode(codec, parts)
    assert codec.saturated < 100  # of 2 million
    decoder = codec.decoder_weights
    for level in decoder.levels:
        for block in level:
            object.__setattr__(block.between, "scale", block.between.scale / 2)
    before = codec.saturated
    decode(codec, parts)
    once = codec.saturated - before
    decode(codec, parts)
    assert once > 1000 and codec.saturated == before + 2 * once
    assert ModulesCodec(vae).saturated == PackedCodec(vae).saturated == 0


def test_what_runs_in_int8(codec):
    """The convolutions of residual blocks; a shortcut, and what has no norm before it, does not."""
    for weights, shortcuts in ((codec.decoder_weights, 1), (codec.encoder_weights, 2)):
        blocks = [block for level in weights.levels for block in level]
        assert all(isinstance(layer, Int8Convolution) for block in blocks for layer in (block.first, block.second))
        assert sum(block.shortcut is not None for block in blocks) == shortcuts
        assert weights.head.saturated is None
    assert codec.decoder_weights.conv1.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("new_side", "size", "pool_bytes"),
    [(PackedCodec.new_decoder, (60, 104), (2.5e9, 2.8e9)), (PackedCodec.new_encoder, (480, 832), (2.7e9, 3.1e9))],
    ids=["decode", "encode"],
)
def test_memory_at_full_size(monkeypatch, new_side, size, pool_bytes):
    """Bytes of all that stays, at 480x832: less than in bfloat16."""
    monkeypatch.setattr(_Largest, "scales", lambda self: dict.fromkeys(self._norms, 0.03))
    monkeypatch.setattr("longlive_optimized.vae.packed.int8._decoded_noise", lambda vae: torch.zeros(1, 3, 8, 8))
    monkeypatch.setattr("longlive_optimized.vae.packed.int8.EncoderStream", MagicMock())
    packed = new_side(PackedCodec(WanVae(device="meta").bfloat16(), int8=True), size, None)
    assert pool_bytes[0] < sum(pool.tensor.nbytes for pool in packed.pools) < pool_bytes[1]


def test_states_do_not_drift(vae, codec):
    """Latents that repeat give pictures that repeat, bit for bit, once the beginning has left all history."""
    found = drift(PackedCodec(vae), codec, (1, 2), 28)
    assert found.changed == 0 and found.last == found.first
    assert 35 < min(found.first) and max(found.first) < 60


def test_refuses_what_has_no_int8(make_vae):
    with pytest.raises(ValueError, match="widths that are multiples of 16"):
        PackedCodec(WanVae(VaeConfig(base=24), device="meta"), int8=True)
    with pytest.raises(ValueError, match="vae_precision must not be int8 with this VAE: vae must have widths"):
        codec_for(WanVae(VaeConfig(base=8), device="meta"), precision="int8")
    with pytest.raises(ValueError, match="vae_precision must not be int8 with this VAE: vae must be a Wan VAE"):
        codec_for(make_vae(kind="tae"), precision="int8")


def test_auto_is_int8_where_it_is_fast(monkeypatch):
    whole, half = WanVae(device="meta").bfloat16(), WanVae(VaeConfig(base=48), device="meta").bfloat16()
    assert codec_for(whole, in_8_bits=True).precision == codec_for(whole).precision == "bf16"
    monkeypatch.setattr(native, "missing", lambda device: None)
    assert [codec_for(whole, in_8_bits=wanted).precision for wanted in (True, False)] == ["int8", "bf16"]
    assert codec_for(whole, precision="bf16", in_8_bits=True).precision == "bf16"
    assert codec_for(half, in_8_bits=True).precision == "bf16"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnHopper:
    @pytest.fixture(scope="class")
    def full(self):
        if not native.on_hopper(torch.empty(0, device="cuda")):
            pytest.skip("needs the library, and a Hopper GPU")
        return randomised(VaeConfig(), torch.bfloat16, "cuda")

    @pytest.fixture(scope="class")
    def codecs(self, full):
        return codec_for(full), codec_for(full, precision="int8")

    @pytest.mark.parametrize("size", [(20, 36), (13, 21), (60, 104)])
    def test_decoded(self, codecs, size):
        parts = [noise(3, size, seed, torch.bfloat16, "cuda") for seed in range(3)]
        plain, int8 = (decode(codec, parts) for codec in codecs)
        found = [psnr(a, b) for a, b in zip(int8.split(12), plain.split(12), strict=True)]
        assert min(found) > 35 and sorted(found)[1] > 38, found

    def test_encoded(self, full, codecs):
        parts = [noise(3, (20, 36), seed, torch.bfloat16, "cuda") for seed in range(3)]
        frames = decode(codecs[0], parts).clamp(-1, 1)
        plain, int8 = (encode(codec, frames.split([9, 12, 12])) for codec in codecs)
        again = [decode(codecs[0], latents.split(3)) for latents in (int8, plain)]
        assert psnr(*again) > 35
        assert ((int8 - plain).double().norm() / plain.double().norm()).item() < 0.1

    def test_is_as_close_as_the_reference(self, full):
        """The kernels and the definitions, against the modules in float32. Between themselves they are hardly closer:
        where y, or SiLU, differs in its last bits, some values are rounded to another step, and so on layer by layer.
        """
        parts = [noise(3, (8, 12), seed, torch.bfloat16, "cuda") for seed in range(2)]
        truth = decode(ModulesCodec(copy.deepcopy(full).float()), [part.float() for part in parts])
        codec = codec_for(full, precision="int8")
        ours = decode(codec, parts)
        with backend("reference"):
            reference = decode(codec, parts)
        assert psnr(ours, truth) > psnr(reference, truth) - 0.5
        assert psnr(ours, reference) > 37

    def test_replays_count_and_do_not_wait(self, full):
        from longlive_optimized.engine.graphs import GraphCache, GraphSwitch

        codec = codec_for(full, precision="int8")

        def new_graphs():
            return GraphCache(GraphSwitch(torch.device("cuda", torch.cuda.current_device())))

        parts = [noise(3, (12, 20), seed, torch.bfloat16, "cuda") for seed in range(4)]
        eager, graphed = DecoderStream(codec), DecoderStream(codec, new_graphs=new_graphs)
        for _ in range(2):
            for part in parts:
                assert torch.equal(graphed.decode(part), eager.decode(part))
            eager.reset(), graphed.reset()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for part in parts:
                graphed.decode(part)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_states_do_not_drift(self, codecs):
        from longlive_optimized.engine.graphs import GraphCache, GraphSwitch

        def new_graphs():
            return GraphCache(GraphSwitch(torch.device("cuda", torch.cuda.current_device())))

        found = drift(*codecs, (12, 20), 300, new_graphs)
        assert found.changed == 0 and found.last == found.first
        assert min(found.first) > 35
