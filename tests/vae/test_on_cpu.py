"""What is computed in another way on a CPU than elsewhere."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.engine.memory_plan import memory_plan
from longlive_optimized.vae.backends import codec_for, path_of, weights_dtype
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


def slow(monkeypatch, value):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: not value)


@pytest.mark.parametrize(
    ("is_so", "dtype", "name"), [(True, torch.float32, "float32"), (False, torch.bfloat16, "bf16")]
)
@pytest.mark.parametrize("vae_type", ["wan", "tae"])
def test_an_engine_convolves_slow_bfloat16_in_float32(monkeypatch, is_so, dtype, name, vae_type):
    slow(monkeypatch, is_so)
    config = OptimizationConfig(height=32, width=32, model_dtype="bfloat16", vae_type=vae_type)
    with LongLiveEngine("tiny", config, CPU) as engine, Convolved() as convolved:
        video = torch.zeros(12, 32, 32, 3, dtype=torch.uint8)
        for request in (BlockRequest("a fox"), BlockRequest("a fox", video=video)):
            assert engine.generate_block(request).dtype == torch.uint8
        assert convolved.dtypes == {dtype}
        assert (engine.vae.dtype, engine.codec.precision) == (dtype, name)
        assert engine.dtype == engine.codec.dtype == engine.stream.history.dtype == torch.bfloat16
        assert engine.memory_plan == memory_plan("tiny", config, CPU)
    assert path_of(CPU, torch.bfloat16, in_8_bits=False)[:2] == ("ModulesCodec", name)


def test_int8_stays_beside_the_models_dtype(monkeypatch):
    slow(monkeypatch, True)
    assert [weights_dtype(torch.bfloat16, CPU, each) for each in ("int8", "auto", "bf16")] == [
        torch.bfloat16, torch.float32, torch.float32,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["wan", "tae"])
def test_another_dtype_is_rounded_at_the_doors_alone(make_vae, kind):
    vae = make_vae(kind=kind)
    codec, whole = codec_for(vae, dtype=torch.bfloat16), ModulesCodec(vae)
    z, x = h(2, 2, 2, 3, 16).bfloat16(), h(3, 5, 16, 24, 3).bfloat16()
    for dtype, exact in ((torch.bfloat16, torch.float32), (torch.uint8, torch.uint8)):
        got, wanted = (each.new_decoder((2, 3), None) for each in (codec, whole))
        assert torch.equal(got.decode(z, dtype), wanted.decode(z.float(), exact).to(dtype))
    got, wanted = (each.new_encoder((16, 24), None) for each in (codec, whole))
    assert torch.equal(got.encode(x), wanted.encode(x.float()).bfloat16())
    assert DecoderStream(codec).decode(z.permute(0, 3, 1, 2)).dtype == torch.bfloat16
    assert EncoderStream(codec).encode(x.permute(0, 3, 1, 2)).dtype == torch.bfloat16


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
