"""Streams as objects: what they carry, forget, refuse and return, whatever network is behind them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from longlive_optimized.vae import modules
from longlive_optimized.vae.autoencoder import to_uint8
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.vae.modules import ModulesCodec
from longlive_optimized.vae.packed.codec import PackedCodec
from longlive_optimized.vae.stream import DecoderStream, EncoderStream
from longlive_optimized.vae.tae import Grow, Tae
from longlive_optimized.vae.wan.layers import AttentionBlock, Head
from longlive_optimized.vae.wan.model import WanVae
from support.vectors import h

KINDS = ["wan", "packed", "tae"]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def codec(make_codec, kind):
    return make_codec(kind=kind)


def latents_of(seed, frames, height=2, width=3):
    return h(seed, frames, 16, height, width)


def frames_of(seed, frames, height=16, width=24):
    return h(seed, frames, 3, height, width)


def bits(x):
    return x.contiguous().view(torch.uint8)


def assert_same(a, b):
    """Bit for bit, NaN included."""
    assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("first", [1, 2, 5])
def test_frame_counts(codec, first):
    stream = DecoderStream(codec)
    assert len(stream.decode(latents_of(0, first))) == 4 * first - 3
    assert len(stream.decode(latents_of(1, 1))) == 4
    assert len(stream.decode(latents_of(2, 3))) == 12
    encoder = EncoderStream(codec)
    assert len(encoder.encode(frames_of(0, 4 * first - 3))) == first
    assert len(encoder.encode(frames_of(1, 12))) == 3


def test_streams_share_weights_only(codec):
    videos = [latents_of(0, 5).split([2, 3]), latents_of(1, 5).split([2, 3])]
    alone = []
    for video in videos:
        stream = DecoderStream(codec)
        alone.append([stream.decode(part) for part in video])
    streams = DecoderStream(codec), DecoderStream(codec)
    for part in range(2):
        for i in range(2):
            assert_same(streams[i].decode(videos[i][part]), alone[i][part])


def buffers_of(stream):
    if isinstance(stream.codec, PackedCodec):
        return [pool.tensor for pool in stream._side.pools]
    return list(stream._side._frames.values())


# Layers that look back; of the packed networks, sizes of frames and, for the encoder, what is halved in time.
BUFFERS = {
    "wan": {"decode": 32, "encode": 24},
    "packed": {"decode": 6, "encode": 10},
    "tae": {"decode": 9, "encode": 9},
}


@pytest.mark.parametrize(
    ("make", "call", "first", "later"),
    [
        (DecoderStream, "decode", latents_of(0, 3), latents_of(1, 3)),
        (EncoderStream, "encode", frames_of(0, 5), frames_of(1, 8)),
    ],
    ids=["decode", "encode"],
)
def test_reset_is_a_fresh_stream_in_the_same_buffers(codec, kind, make, call, first, later):
    def play(stream):
        return torch.cat([getattr(stream, call)(x) for x in (first, later)])

    stream, expected = make(codec), play(make(codec))
    assert_same(play(stream), expected)
    before = buffers_of(stream)
    assert len(before) == BUFFERS[kind][call]
    for buffer in before:
        buffer.fill_(float("nan"))
    stream.reset()
    assert_same(play(stream), expected)
    assert [b.data_ptr() for b in buffers_of(stream)] == [b.data_ptr() for b in before]


def test_reset_before_the_first_call(codec):
    stream = DecoderStream(codec)
    stream.reset()
    assert_same(stream.decode(latents_of(0, 2)), DecoderStream(codec).decode(latents_of(0, 2)))


@pytest.fixture
def poisoned_memory():
    """Every tensor made without values is filled with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.ones(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def test_no_unwritten_memory_is_read(codec, poisoned_memory):
    decoder, encoder = DecoderStream(codec), EncoderStream(codec)
    for frames in (1, 1, 2):
        assert decoder.decode(latents_of(0, frames)).isfinite().all()
    for frames in (1, 4, 8):
        assert encoder.encode(frames_of(0, frames)).isfinite().all()


def test_arguments_are_left_alone(codec):
    latents, frames = latents_of(0, 2), frames_of(0, 5)
    DecoderStream(codec).decode(latents), DecoderStream(codec).decode_uint8(latents)
    EncoderStream(codec).encode(frames)
    assert_same(latents, latents_of(0, 2))
    assert_same(frames, frames_of(0, 5))


def test_strided_arguments(codec):
    latents, frames = latents_of(0, 2), frames_of(0, 5)
    channels_last = latents.contiguous(memory_format=torch.channels_last)
    assert_same(DecoderStream(codec).decode(channels_last), DecoderStream(codec).decode(latents))
    assert_same(EncoderStream(codec).encode(frames.mT.contiguous().mT), EncoderStream(codec).encode(frames))


def test_size_may_change_after_reset(codec):
    stream, small, large = DecoderStream(codec), latents_of(0, 2), latents_of(1, 2, 4, 3)
    expected = DecoderStream(codec).decode(large)
    stream.decode(small)
    with pytest.raises(ValueError, match=r"latents must stay 2x3.* until reset\(\), got 4x3"):
        stream.decode(large)
    stream.reset()
    assert_same(stream.decode(large), expected)


def test_encoder_size_may_change_after_reset(codec):
    stream, large = EncoderStream(codec), frames_of(1, 5, 24, 24)
    stream.encode(frames_of(0, 5))
    with pytest.raises(ValueError, match=r"frames must stay 16x24.* until reset\(\), got 24x24"):
        stream.encode(large[:4])
    stream.reset()
    assert_same(stream.encode(large), EncoderStream(codec).encode(large))


class Elsewhere:
    """A third backend: nothing but the face of one of ours."""

    def __init__(self, codec):
        self.vae, self.dtype, self.device, self.copies = codec.vae, codec.dtype, codec.device, codec.copies
        self.new_decoder = lambda size, new_graphs: Far(codec.new_decoder(size, new_graphs), "decode")
        self.new_encoder = lambda size, new_graphs: Far(codec.new_encoder(size, new_graphs), "encode")


class Far:
    def __init__(self, side, call):
        self._side, self.reset = side, side.reset
        setattr(self, call, lambda x, *rest: getattr(side, call)(x.clone(), *rest).clone())

    @property
    def fresh(self):
        return self._side.fresh


def test_another_backend_fits(codec):
    def play(codec):
        decoder, encoder = DecoderStream(codec), EncoderStream(codec)
        for _ in range(2):
            for stream in (decoder, encoder):
                stream.reset()
            yield from (decoder.decode(latents_of(0, 2)), decoder.decode_uint8(latents_of(1, 3)))
            yield from (encoder.encode(frames_of(0, 5)), encoder.encode(frames_of(1, 8)))

    for got, expected in zip(play(Elsewhere(codec)), play(codec), strict=True):
        assert_same(got, expected)


def test_modules_are_not_captured(make_codec):
    def never():
        raise AssertionError

    DecoderStream(make_codec(), never).decode(latents_of(0, 1))


BAD_LATENTS = [
    latents_of(0, 2)[0],
    latents_of(0, 2)[None],
    latents_of(0, 2)[:, :15],
    latents_of(0, 2)[:0],
    latents_of(0, 2)[:, :, :0],
    latents_of(0, 2).double(),
    latents_of(0, 2).bfloat16(),
    latents_of(0, 2).to("meta"),
]
BAD_FRAMES = [
    frames_of(0, 4)[0],
    frames_of(0, 4)[:, :2],
    frames_of(0, 4)[:0],
    frames_of(0, 4)[..., :20],
    frames_of(0, 4)[..., :12, :],
    frames_of(0, 4).double(),
    (127 * frames_of(0, 4)).to(torch.uint8),
    frames_of(0, 4).to("meta"),
]


@pytest.mark.parametrize("bad", BAD_LATENTS, ids=lambda x: f"{list(x.shape)}-{x.dtype}-{x.device}")
@pytest.mark.parametrize("call", ["decode", "decode_uint8"])
def test_bad_latents_change_nothing(codec, call, bad):
    stream, expected = DecoderStream(codec), DecoderStream(codec)
    for _ in range(2):  # on a fresh stream, then in the middle of one
        with pytest.raises(ValueError, match=r"^latents must"):
            getattr(stream, call)(bad)
        assert_same(stream.decode(latents_of(0, 2)), expected.decode(latents_of(0, 2)))


@pytest.mark.parametrize("bad", BAD_FRAMES, ids=lambda x: f"{list(x.shape)}-{x.dtype}-{x.device}")
def test_bad_frames_change_nothing(codec, bad):
    stream, expected = EncoderStream(codec), EncoderStream(codec)
    for count in (5, 4):
        with pytest.raises(ValueError, match=r"^frames must"):
            stream.encode(bad)
        assert_same(stream.encode(frames_of(0, count)), expected.encode(frames_of(0, count)))


@pytest.mark.parametrize("count", [2, 3, 6, 14])
def test_first_frames_number_1_plus_4k_or_4k(codec, count):
    with pytest.raises(ValueError, match=rf"^frames must number 1 \+ 4k or 4k on a fresh stream, got {count}"):
        EncoderStream(codec).encode(frames_of(0, count))


@pytest.mark.parametrize("kind", ["wan", "packed"], indirect=True)  # a TAE has no frames apart
@pytest.mark.parametrize("count", [4, 8, 12])
def test_three_more_first_frames_make_no_latent_but_all_are_remembered(make_codec, kind, count):
    codec = make_codec(torch.float64, kind=kind)
    fewer, stream = EncoderStream(codec), EncoderStream(codec)
    first, later = frames_of(0, count).double(), frames_of(12, 4).double()
    torch.testing.assert_close(stream.encode(first), fewer.encode(first[:-3]), rtol=0, atol=1e-12)
    assert (stream.encode(later) - fewer.encode(later)).abs().max() > 1e-3


@pytest.mark.parametrize("count", [1, 2, 3, 5, 13])
def test_later_frames_number_4k(codec, count):
    stream = EncoderStream(codec)
    stream.encode(frames_of(0, 1))
    with pytest.raises(ValueError, match=rf"^frames must number 4k, got {count}"):
        stream.encode(frames_of(0, count))


def test_a_failure_in_the_midst_resets(codec, kind, monkeypatch):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError

    stream, latents = DecoderStream(codec), latents_of(0, 3)
    expected = DecoderStream(codec).decode(latents)
    for _ in range(2):  # on a fresh stream, then in the middle of one
        with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
            patch.setattr({"wan": Head, "packed": AttentionBlock, "tae": Grow}[kind], "forward", out_of_memory)
            stream.decode(latents)
        assert_same(stream.decode(latents), expected)


def test_decoder_half_decodes_and_refuses_to_encode(codec, kind, empty_vae):
    vae = empty_vae(kind, encoder=False)
    vae.load_state_dict({k: codec.vae.state_dict()[k] for k in vae.state_dict()}, assign=True)
    half = type(codec)(vae)
    assert_same(DecoderStream(half).decode(latents_of(0, 2)), DecoderStream(codec).decode(latents_of(0, 2)))
    with pytest.raises(ValueError, match=r"^vae must have its encoder"):
        EncoderStream(half)


# Room for 2.9 latents of four frames at the decoder's greatest width, then for 14 frames at the encoder's: eight and up
# to four more, with Wan's first frame or the last three, and two past ones.
@pytest.mark.parametrize(
    ("kind", "widths", "whole", "parts"),
    [("wan", (8, 16), [7, 25], [9, 4, 8, 4, 9, 8, 7]), ("tae", (10, 8), [7, 28], [8, 8, 8, 4, 8, 8, 8])],
    indirect=["kind"],
)
def test_long_calls_are_split_below_32_bit_indices(make_codec, kind, widths, whole, parts, monkeypatch):
    codec, passes = make_codec(torch.float64, kind=kind), []

    def spy_on(name, method):
        def spy(self, x, state):
            passes.append(len(x))
            return method(self, x, state)

        monkeypatch.setattr(type(codec.vae), name, spy)

    spy_on("decode", type(codec.vae).decode)
    spy_on("encode", type(codec.vae).encode)
    latents, frames = latents_of(0, 7).double(), frames_of(0, 25).double()
    first, later = frames.split([13, 12])

    def encode():
        encoder = EncoderStream(codec)
        return torch.cat([encoder.encode(first), encoder.encode(later), EncoderStream(codec).encode(frames[:24])])

    pixels, pictures = DecoderStream(codec).decode(latents), DecoderStream(codec).decode_uint8(latents)
    EncoderStream(codec).encode(frames)
    assert passes == [whole[0], whole[0], whole[1]]
    encoded = encode()
    passes.clear()
    monkeypatch.setattr(modules, "_MAX_ELEMENTS", int(2.9 * 4 * 16 * 24 * widths[1]))
    torch.testing.assert_close(DecoderStream(codec).decode(latents), pixels, rtol=0, atol=1e-12)
    assert_same(DecoderStream(codec).decode_uint8(latents), pictures)
    monkeypatch.setattr(modules, "_MAX_ELEMENTS", 14 * 16 * 24 * widths[0])
    torch.testing.assert_close(encode(), encoded, rtol=0, atol=1e-12)
    assert passes == [2, 2, 2, 1] * 2 + parts


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that was made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("vae", [WanVae(device="meta"), WanVae(VaeConfig(base=24), device="meta"), Tae(device="meta")])
@pytest.mark.parametrize("latents", [1, 3])
def test_the_largest_tensor_is_the_one_that_splitting_counts_on(vae, latents):
    def count(call, *shape):
        with Largest() as largest:
            call(torch.empty(shape, device="meta"))
        return largest.elements

    codec, frames = ModulesCodec(vae), 4 * latents
    decoder, encoder = DecoderStream(codec), EncoderStream(codec)
    count(decoder.decode, 1, 16, 10, 12), count(encoder.encode, 1, 3, 80, 96)
    encoder_elements, decoder_elements = (80 * 96 * width for width in vae.config.full_size_widths)
    assert count(decoder.decode, latents, 16, 10, 12) == frames * decoder_elements
    assert frames * encoder_elements <= count(encoder.encode, frames, 3, 80, 96) <= (frames + 2) * encoder_elements


# docs/model.md 7.1's table: what mean and 1/std become in bfloat16.
MEAN_BF16 = (
    -0.7578125, -0.70703125, -0.91015625, 0.107421875, -0.1748046875, 0.96484375, -0.1513671875, 1.5546875,
    0.4140625, -0.0712890625, 0.55078125, -0.36328125, -0.1923828125, -0.94921875, 0.25, -0.29296875,
)  # fmt: skip
INV_BF16 = (
    0.35546875, 0.6875, 0.4296875, 0.376953125, 0.8203125, 0.5625, 0.3828125, 0.48046875,
    0.306640625, 0.462890625, 0.349609375, 0.64453125, 0.609375, 0.890625, 0.353515625, 0.5234375,
)  # fmt: skip


def test_normalisation_rounds_like_the_reference(make_codec, monkeypatch):
    codec, seen = make_codec(torch.bfloat16), []

    def decode(self, z, state):
        seen.append(z)
        return z

    mu = h(6, 2, 2, 3, 16).bfloat16()
    monkeypatch.setattr(WanVae, "decode", decode)
    monkeypatch.setattr(WanVae, "encode", lambda self, frames, state: mu)
    mean, inv = torch.tensor(MEAN_BF16), torch.tensor(INV_BF16)
    latents = 3 * latents_of(7, 2).bfloat16()
    DecoderStream(codec).decode(latents)
    raw = (latents.permute(0, 2, 3, 1).float() / inv).bfloat16().float() + mean
    assert_same(seen[0], raw.bfloat16())
    normalised = ((mu.float() - mean).bfloat16().float() * inv).bfloat16()
    assert_same(EncoderStream(codec).encode(frames_of(0, 5).bfloat16()), normalised.permute(0, 3, 1, 2))


def test_uint8_edges():
    below = 1 - 2**-22  # in float32 255 (x / 2 + 1/2) stays below 255
    x = torch.tensor([-1, 1, 0, -5, 5, below, -1 + 2.01 / 255, -1 + 1.99 / 255, float("inf"), -float("inf")])
    assert to_uint8(x).tolist() == [0, 255, 127, 0, 255, 254, 1, 0, 255, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_uint8_truncates_in_float32(dtype):
    x = (1.2 * h(8, 4096)).to(dtype)
    half = 0.5 * x.float() + 0.5
    assert_same(to_uint8(x), (255 * half.clamp(0, 1)).floor().to(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_are_the_pixels(make_codec, kind, dtype):
    codec = make_codec(dtype, kind=kind)
    latents = 4 * latents_of(9, 3).to(dtype)
    pixels, pictures = DecoderStream(codec).decode(latents), DecoderStream(codec).decode_uint8(latents)
    assert pixels.dtype == dtype and pixels.shape == (9, 3, 16, 24)
    assert pictures.is_contiguous() and len(pictures.unique()) > 50
    assert_same(pictures, to_uint8(pixels).permute(0, 2, 3, 1))


@pytest.fixture
def no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.gpu
@needs_cuda
def test_cuda_equals_cpu(make_codec, kind, no_tf32):
    cases = [
        (DecoderStream, "decode", latents_of(10, 6, 5, 7), [3, 3]),
        (EncoderStream, "encode", frames_of(11, 13, 40, 56), [9, 4]),
    ]
    for make, call, x, sizes in cases:
        cpu, cuda = make(make_codec(kind=kind)), make(make_codec(device="cuda", kind=kind))
        for part in x.split(sizes):
            expected, got = getattr(cpu, call)(part), getattr(cuda, call)(part.cuda()).cpu()
            assert (got - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("kind", ["wan", "tae"], indirect=True)  # the packed one brings its own graphs
def test_steady_decoding_neither_waits_nor_leaves_its_graph(make_codec, kind):
    """After the first calls nothing synchronises with the host, and a captured call continues the stream."""
    codec = make_codec(torch.bfloat16, "cuda", kind)
    blocks = [latents_of(seed, 3, 6, 10).bfloat16().cuda() for seed in range(5)]
    eager, captured = DecoderStream(codec), DecoderStream(codec)
    expected = [eager.decode_uint8(block) for block in blocks[:2]]
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected += [eager.decode_uint8(block) for block in blocks[2:]]
    finally:
        torch.cuda.set_sync_debug_mode("default")

    for block in blocks[:2]:
        captured.decode_uint8(block)
    static, graph = blocks[2].clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pictures = captured.decode_uint8(static)
    for block, frames in zip(blocks[2:], expected[2:], strict=True):
        static.copy_(block)
        graph.replay()
        assert_same(pictures, frames)
