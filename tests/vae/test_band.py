"""Bands of rows, decoded apart, are the rows of the whole: bit for bit, whatever the calls, and no row too many."""

import importlib
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from longlive_optimized.engine.graphs import GraphCache, GraphSwitch
from longlive_optimized.kernels import native
from longlive_optimized.kernels.registry import backend
from longlive_optimized.vae.band import Band, rows_of
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.vae.packed.codec import PackedCodec
from longlive_optimized.vae.state import CausalState
from longlive_optimized.vae.stream import DecoderStream
from longlive_optimized.vae.wan.layers import Upsample
from longlive_optimized.vae.wan.model import WanVae
from measure.vae_bands import tflop
from support.vaes import noise, randomised

ROOT = Path(__file__).parents[2]

SIZE = 47, 1
BANDS = [Band(rank, count) for count in (1, 2, 3, 4) for rank in range(count)]
BANDS += [Band(2, 5)]  # cut off on both sides behind attention, too
# Latents of each call of a video; after the first video the stream is reset.
VIDEOS = (3, 3), (1, 1, 2)


def once(convolution):
    return lambda x, *args, **named: convolution(x.double(), args[0].double(), *args[1:], **named).to(x.dtype)


def once_normed(x, shape, gain, eps):
    return F.rms_norm(x.double(), shape, gain.double(), eps=eps).to(x.dtype)


@pytest.fixture
def sums_of_any_size(monkeypatch):
    """Torch on a CPU adds up in an order that depends on the size of a tensor; in float64, rounded once, none does."""
    functions = SimpleNamespace(
        conv2d=once(F.conv2d), conv3d=once(F.conv3d), rms_norm=once_normed, pad=F.pad, silu=F.silu
    )
    monkeypatch.setattr(importlib.import_module("longlive_optimized.kernels.causal_conv"), "F", functions)


@cache
def codec_of(precision, low_memory=False, in_parts=False):
    int8 = precision == "int8"
    return PackedCodec(randomised(VaeConfig(base=16 if int8 else 8)), low_memory, int8, in_parts)


def play(stream, size=SIZE, videos=VIDEOS, poison=False):
    """Pixels and pictures in turn, of all calls."""
    results = []
    for seed, video in enumerate(videos):
        for index, part in enumerate(noise(sum(video), size, seed, stream.codec.dtype).split(video)):
            results.append((stream.decode if index % 2 == 0 else stream.decode_uint8)(part))
        stream.reset()
        if poison:
            for tensor in [*(pool.tensor for pool in stream._side.pools), *stream._side._outs.values()]:
                tensor.fill_(torch.nan if tensor.is_floating_point() else -128 if tensor.dtype == torch.int8 else 77)
    return results


def rows_of_results(results, band, height=SIZE[0]):
    rows = slice(8 * band.rows(height).start, 8 * band.rows(height).stop)
    return [result[:, rows] if result.dtype == torch.uint8 else result[:, :, rows] for result in results]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Replay:
    """Behaves like a graph: does again what it was given first under this key, whatever it is asked now."""

    def __init__(self):
        self.works = {}

    def run(self, key, work):
        self.works.setdefault(key, work)()


@pytest.mark.parametrize("height", range(1, 30))
def test_bands_are_all_rows_and_differ_by_one_at_most(height):
    for count in range(1, height + 1):
        bands = [Band(rank, count).rows(height) for rank in range(count)]
        assert [row for band in bands for row in band] == list(range(height))
        assert max(map(len, bands)) - min(map(len, bands)) <= 1


@pytest.mark.usefixtures("sums_of_any_size")
class TestPacked:
    whole: dict = {}  # noqa: RUF012

    def wanted(self, precision, band):
        if precision not in self.whole:
            self.whole[precision] = play(DecoderStream(codec_of(precision)))
        return rows_of_results(self.whole[precision], band)

    @pytest.mark.parametrize("precision", ["float32", "int8"])
    @pytest.mark.parametrize("band", BANDS, ids=str)
    def test_a_band_is_its_rows_of_the_whole(self, precision, band):
        """The first block and later ones, one latent at a time, after a reset; in calls that replay, on memory that is
        poisoned before the second video."""
        stream = DecoderStream(codec_of(precision), Replay, band)
        got = play(stream, poison=True)
        assert same(got, self.wanted(precision, band))
        assert all(pictures.is_contiguous() for pictures in got[1::2] if pictures.dtype == torch.uint8)

    @pytest.mark.parametrize("options", [{"low_memory": True}, {"in_parts": True}], ids=str)
    def test_in_less_memory_too(self, options):
        band = Band(1, 3)
        assert same(play(DecoderStream(codec_of("float32", **options), band=band)), self.wanted("float32", band))

    def test_one_band_is_no_other_work(self):
        decoders = [codec_of("float32").new_decoder(SIZE, None, band) for band in (None, Band(0, 1))]
        assert [pool.tensor.shape for pool in decoders[0].pools] == [pool.tensor.shape for pool in decoders[1].pools]
        assert decoders[1]._middle is decoders[1]._levels[0].pool
        assert all(kept is level.pool for kept, level in zip(decoders[1]._kept, decoders[1]._levels, strict=False))

    def test_values_beyond_the_scale_are_counted_in_halos_too(self):
        codec = PackedCodec(randomised(VaeConfig(base=16)), int8=True)
        for block in codec.decoder_weights.levels[3]:
            object.__setattr__(block.between, "scale", block.between.scale / 2)
        latents, counts = noise(1, SIZE), []
        for bands in ([None], [Band(0, 2), Band(1, 2)]):
            before = codec.saturated
            for band in bands:
                DecoderStream(codec, band=band).decode(latents)
            counts.append(codec.saturated - before)
        assert 100 < counts[0] < counts[1] < 1.5 * counts[0]


@pytest.mark.parametrize("kind", ["wan", "tae"])
@pytest.mark.parametrize("band", [Band(0, 2), Band(1, 3), Band(3, 4)], ids=str)
def test_the_modules_too(make_codec, kind, band):
    codec = make_codec(torch.float64, kind=kind)
    size = (43, 2)
    whole, got = play(DecoderStream(codec), size), play(DecoderStream(codec, band=band), size)
    for x, y in zip(got, rows_of_results(whole, band, size[0]), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1 if x.dtype == torch.uint8 else 1e-12)


def rest_of(decoder, place):
    """What comes behind a place of ``BandRows`` of Wan's decoder."""
    layers, places = [decoder.middle[2], *decoder.upsamples, decoder.head], [0]
    places += [index for index, layer in enumerate(layers) if isinstance(layer, Upsample)]
    return layers[places[place] :]


def kept_rows(rows):
    """Of each place, counted from the frame's top."""
    top, kept = 0, []
    for place, crop in enumerate(rows.crops):
        kept.append(range(top + crop.start, top + crop.stop))
        top = kept[-1].start * (1 if place == 0 else 2)
    return kept


def seen(layers, x, band, height):
    """Whether the band's pixels see a NaN of x [1, H, W, C]."""
    state = CausalState()
    for layer in layers:
        x = layer(x, state)
    rows = band.rows(height)
    return bool(x[:, 8 * rows.start : 8 * rows.stop].isnan().any())


@pytest.mark.parametrize("band", [Band(0, 2), Band(1, 2), Band(1, 3), Band(2, 5)], ids=str)
@pytest.mark.parametrize("place", range(4))
def test_probe_of_the_receptive_field(make_vae, band, place):
    """The rows that are kept are those that the band's pixels see, one by one; of any other they see nothing."""
    vae, height = make_vae(torch.float64), 50
    layers = rest_of(vae.decoder, place)
    kept = kept_rows(rows_of(band, height, vae.reaches))[place]
    level = max(0, place - 1)
    channels = vae.config.widths[::-1][level]
    x = torch.ones(1, height << level, 1, channels, dtype=torch.float64)
    outside = x.clone()
    outside[:, : kept.start] = outside[:, kept.stop :] = torch.nan
    assert len(kept) < height << level and not seen(layers, outside, band, height)
    for row in (kept.start, kept.stop - 1):
        one = x.clone()
        one[:, row] = torch.nan
        assert seen(layers, one, band, height)


@pytest.mark.parametrize("band", [Band(0, 2), Band(1, 3), Band(4, 5)], ids=str)
def test_probe_of_a_tae(make_vae, band):
    vae, height = make_vae(torch.float64, kind="tae"), 60
    kept = kept_rows(rows_of(band, height, vae.reaches))[0]
    rows = slice(8 * band.rows(height).start, 8 * band.rows(height).stop)
    x = torch.ones(1, height, 1, vae.config.z_dim, dtype=torch.float64)
    outside = x.clone()
    outside[:, : kept.start] = outside[:, kept.stop :] = torch.nan
    assert len(kept) < height and not vae.decode(outside, CausalState())[:, rows].isnan().any()
    for row in (kept.start, kept.stop - 1):
        one = x.clone()
        one[:, row] = torch.nan
        assert vae.decode(one, CausalState())[:, rows].isnan().any()


def test_attention_sees_all_rows(make_codec):
    """So nothing is cut off before: the last row of the latents changes the first band."""
    latents = noise(1, (45, 1), dtype=torch.float64)
    other = latents.clone()
    other[:, :, -1] += 1
    codec = make_codec(torch.float64)
    frames = [DecoderStream(codec, band=Band(0, 5)).decode(each) for each in (latents, other)]
    assert (frames[0] - frames[1]).abs().max() > 1e-9


def test_reaches_are_the_networks(make_vae):
    assert make_vae().reaches == (8, 6, 6, 7) and make_vae(kind="tae").reaches == (10, 9, 9, 1)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ((2, 2), "rank"),
        ((-1, 2), "rank"),
        ((0, 0), "count"),
        ((0, 1.5), "count"),
        ((True, 2), "rank"),
        (("0", 2), "rank"),
    ],
)
def test_refuses_what_is_no_band(fields, name):
    with pytest.raises(ValueError, match=f"^{name} must be a whole number"):
        Band(*fields)


@pytest.mark.parametrize("kind", ["wan", "packed", "tae"])
def test_refuses_more_bands_than_rows(make_codec, kind):
    codec, band = make_codec(kind=kind), Band(2, 4)
    with pytest.raises(ValueError, match=r"^band must be one of at most 3, one for each row of the latents, got Band"):
        codec.new_decoder((3, 2), None, band)
    stream = DecoderStream(codec, band=band)
    with pytest.raises(ValueError, match=r"^band must be one of at most 3"):
        stream.decode(noise(1, (3, 2)))
    assert stream._side is None
    assert stream.decode_uint8(noise(2, (4, 2))).shape == (5, 8, 16, 3)


@pytest.mark.parametrize(
    ("band", "share"), [(Band(0, 2), 0.66), (Band(1, 4), 0.43), (Band(0, 8), 0.22), (Band(3, 8), 0.3)], ids=str
)
def test_memory_at_full_size(band, share):
    """Of the streams' pools at 480x832: buffers are a band's, but for the latents and what attention sees."""
    codec = PackedCodec(WanVae(device="meta").bfloat16())
    whole, part = (codec.new_decoder((60, 104), None, each) for each in (None, band))
    sizes = [sum(pool.tensor.nbytes for pool in decoder.pools) for decoder in (whole, part)]
    assert sizes[1] < share * sizes[0]
    assert part.out(torch.uint8).nbytes < share * whole.out(torch.uint8).nbytes


def test_the_documents_table():
    """docs/convolution.md says what each band computes and keeps."""
    section = (ROOT / "docs/convolution.md").read_text().split("## Bands")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (whole|\d of \d)[^|]*\|" + r" ([^|]+) \|" * 7, section, re.MULTILINE)
    vae = WanVae(device="meta").bfloat16()
    codecs = PackedCodec(vae), PackedCodec(vae, int8=True)
    whole = tflop(vae, (60, 104), None)
    assert len(rows) == 6
    for name, latents, heights, *said in rows:
        band = None if name == "whole" else Band(*map(int, name.split(" of ")))
        decoders = [codec.new_decoder((60, 104), None, band) for codec in codecs]
        share = tflop(vae, (60, 104), band) / whole
        found = [share * whole, share, share * (band.count if band else 1), *map(kept_gib, decoders)]
        assert len((band or Band(0, 1)).rows(60)) == int(latents)
        assert ", ".join(map(str, decoders[0]._rows.heights[1:])) == heights
        assert found == pytest.approx([float(number) for number in said], abs=0.0051)


def kept_gib(decoder):
    return (sum(pool.tensor.nbytes for pool in decoder.pools) + decoder.out(torch.uint8).nbytes) / 2**30


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnGpu:
    @pytest.fixture(scope="class")
    def full(self):
        return randomised(VaeConfig(), torch.bfloat16, "cuda")

    @pytest.fixture(params=["cuda", "triton"])
    def path(self, request):
        if request.param == "triton":
            pytest.importorskip("triton")
        elif not native.on_hopper(torch.empty(0, device="cuda")):
            pytest.skip("needs the library, and a Hopper GPU")
        return request.param

    @pytest.fixture(scope="class")
    def codecs(self, full):
        return {int8: PackedCodec(full, int8=int8) for int8 in (False, True)}

    @pytest.mark.parametrize("int8", [False, True], ids=["bf16", "int8"])
    @pytest.mark.parametrize(("height", "bands"), [(40, (2, 3)), (37, (4,)), (60, (8,))])
    def test_a_band_is_its_rows_of_the_whole(self, codecs, path, int8, height, bands):
        """By graphs, over blocks, a latent alone and a reset."""

        def new_graphs():
            return GraphCache(GraphSwitch(torch.device("cuda", torch.cuda.current_device())))

        parts = [noise(count, (height, 20), seed, torch.bfloat16, "cuda") for seed, count in enumerate((3, 3, 1, 3))]

        def decoded(band=None):
            stream, results = DecoderStream(codecs[int8], new_graphs, band), []
            for _ in range(2):
                results += [stream.decode_uint8(part) for part in parts]
                stream.reset()
            graphs = stream._side.graphs
            assert graphs.captured == 3 and not graphs.failed
            return results

        with backend("triton" if path == "triton" else None):
            whole = decoded()
            for count in bands:
                for rank in range(count):
                    band = Band(rank, count)
                    assert same(decoded(band), rows_of_results(whole, band, height)), band
