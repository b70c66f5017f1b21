"""What is computed in another way on a CPU than elsewhere."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from longlive_optimized.vae import backends
from longlive_optimized.vae.backends import codec_for, path_of
from longlive_optimized.vae.convolution import is_slow, upsampled_conv2d
from longlive_optimized.vae.modules import ModulesCodec
from longlive_optimized.vae.state import CausalState
from longlive_optimized.vae.stream import DecoderStream, EncoderStream
from support.vectors import h

CPU = torch.device("cpu")


class Convolved(TorchDispatchMode):
    """Notes the dtypes of convolutions."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.dtypes |= {args[0].dtype, args[1].dtype}
        return func(*args, **kwargs or {})


@pytest.fixture(params=["wan", "tae"])
def half(make_vae, request):
    return make_vae(torch.bfloat16, kind=request.param)


def both_ways(codec):
    """Frames, pictures and latents of two calls each, and what was convolved."""
    pixels, pictures, encoder = DecoderStream(codec), DecoderStream(codec), EncoderStream(codec)
    results = []
    with Convolved() as convolved:
        for seed, latents, frames in ((0, 2, 5), (1, 1, 4)):
            z, x = h(seed, latents, 16, 2, 3).to(codec.dtype), h(seed, frames, 3, 16, 24).to(codec.dtype)
            results += [pixels.decode(z), pictures.decode_uint8(z), encoder.encode(x)]
    return results, convolved.dtypes


def slow(monkeypatch, value):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: not value)


def test_slow_bfloat16_is_convolved_in_float32(half, monkeypatch):
    slow(monkeypatch, True)
    codec = codec_for(half)
    results, dtypes = both_ways(codec)
    assert dtypes == {torch.float32}
    assert [each.dtype for each in results] == 2 * [torch.bfloat16, torch.uint8, torch.bfloat16]
    assert (codec.precision, codec.dtype, codec.copies) == ("float32", torch.bfloat16, True)
    assert half.dtype == torch.bfloat16
    assert path_of(CPU, torch.bfloat16, in_8_bits=False)[:2] == ("ModulesCodec", "float32")


def test_fast_bfloat16_stays(half, monkeypatch):
    slow(monkeypatch, False)
    codec = codec_for(half)
    assert both_ways(codec)[1] == {torch.bfloat16}
    assert (codec.vae, codec.precision, codec.copies) == (half, "bf16", False)
    assert path_of(CPU, torch.bfloat16, in_8_bits=False)[:2] == ("ModulesCodec", "bf16")


def test_wide_is_rounded_at_the_doors_alone(half):
    wide, whole = ModulesCodec(half, wide=True), ModulesCodec(copy.deepcopy(half).float())
    z = h(2, 2, 2, 3, 16).bfloat16()
    got, wanted = (codec.new_decoder((2, 3), None) for codec in (wide, whole))
    assert torch.equal(got.decode(z, torch.bfloat16), wanted.decode(z.float(), torch.float32).bfloat16())
    assert torch.equal(got.decode(z, torch.uint8), wanted.decode(z.float(), torch.uint8))
    x = h(3, 5, 16, 24, 3).bfloat16()
    got, wanted = (codec.new_encoder((16, 24), None) for codec in (wide, whole))
    assert torch.equal(got.encode(x), wanted.encode(x.float()).bfloat16())


@pytest.mark.parametrize("asked", ["auto", "bf16"])
def test_a_codec_is_chosen_for_the_device_it_will_run_on(empty_vae, monkeypatch, asked):
    seen = []
    monkeypatch.setattr(backends, "is_slow", lambda dtype, device: seen.append((dtype, device)) or True)
    codec = codec_for(empty_vae("wan").bfloat16(), precision=asked, device=CPU)
    assert seen == [(torch.bfloat16, CPU)] and codec.vae.dtype == torch.float32


def test_only_bfloat16_on_a_cpu_is_slow(monkeypatch):
    slow(monkeypatch, True)
    assert is_slow(torch.bfloat16, CPU)
    assert not is_slow(torch.float32, CPU) and not is_slow(torch.bfloat16, torch.device("cuda"))
    slow(monkeypatch, False)
    assert not is_slow(torch.bfloat16, CPU)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert is_slow(torch.bfloat16, CPU)


def test_slow_is_where_torch_takes_its_loops():
    x, weight = torch.zeros(2, 16, 3, 8, 8).bfloat16(), torch.zeros(16, 16, 3, 3, 3).bfloat16()
    ones, none = [1, 1, 1], [0, 0, 0]
    backend = torch._C._select_conv_backend(x, weight, None, ones, ones, ones, False, none, 1)
    assert is_slow(torch.bfloat16, CPU) == (backend.name == "Slow3d")


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
def test_upsampled_convolution(size):
    layer = nn.Conv2d(6, 3, 3, padding=1, dtype=torch.float64).requires_grad_(False)
    layer.weight.copy_(h(4, 3, 6, 3, 3, dtype=torch.float64))
    x = h(5, 2, *size, 6, dtype=torch.float64)
    large = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
    wanted = F.conv2d(large.permute(0, 3, 1, 2), layer.weight, layer.bias, padding=1).permute(0, 2, 3, 1)
    found = upsampled_conv2d(layer, x)
    assert found.is_contiguous()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_scratch_is_the_same_memory():
    state, x = CausalState(), torch.zeros(2, 4, 6, 8)
    large = state.scratch(x, 5)
    small = state.scratch(x[:, :2], 3)
    assert large.shape == (5, 4, 6, 8) and small.shape == (3, 2, 6, 8)
    assert large.data_ptr() == small.data_ptr() == state.scratch(x, 5).data_ptr()
    assert state.scratch(x, 9).shape == (9, 4, 6, 8)
