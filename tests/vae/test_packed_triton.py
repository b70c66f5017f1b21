"""The fused path on Triton's kernels: on a CPU interpreted, at a tiny size; on any GPU at the full one."""

import copy

import pytest
import torch

from longlive_optimized.engine.graphs import GraphCache, GraphSwitch
from longlive_optimized.kernels.causal_conv import causal_conv
from longlive_optimized.kernels.causal_conv_int8 import causal_conv_int8
from longlive_optimized.kernels.conv_pixels import conv_pixels
from longlive_optimized.kernels.norm_silu import norm_silu
from longlive_optimized.kernels.registry import backend
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.vae.modules import ModulesCodec
from longlive_optimized.vae.packed.codec import PackedCodec
from longlive_optimized.vae.stream import DecoderStream, EncoderStream
from support.vaes import decode, encode, noise, psnr, randomised

OPERATORS = causal_conv, causal_conv_int8, conv_pixels, norm_silu
pytest.importorskip("triton")


@pytest.fixture
def on_triton(monkeypatch):
    """Inside, the path's operators run on Triton, where tensors are on a CPU too; what ran is returned."""
    ran = []

    def enter():
        for op in OPERATORS:
            implementation, takes = op.impls["triton"]

            def noted(*args, _op=op.name, _run=implementation):
                ran.append(_op)
                _run(*args)

            where = (lambda *args, **named: True) if not torch.cuda.is_available() else takes
            monkeypatch.setitem(op.impls, "triton", (noted, where))
        return backend("triton")

    return enter, ran


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted where there is a GPU")
class TestInterpreted:
    def test_decodes_as_the_reference_does(self, on_triton):
        enter, ran = on_triton
        codec = PackedCodec(randomised(VaeConfig(base=8)))
        parts = [noise(1, (1, 1), seed) for seed in range(2)]
        want = decode(codec, parts)
        with enter():
            got = decode(codec, parts)
        assert set(ran) == {"causal_conv", "conv_pixels", "norm_silu"}
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)

    def test_encodes_in_int8_as_the_reference_does(self, on_triton):
        enter, ran = on_triton
        codec = PackedCodec(randomised(VaeConfig(base=16)), int8=True)
        parts = noise(5, (8, 8))[:, :3].clamp(-1, 1).split([1, 4])
        want = encode(codec, parts)
        with enter():
            got = encode(codec, parts)
        assert set(ran) == {"causal_conv", "causal_conv_int8", "norm_silu"}
        assert ((got - want).norm() / want.norm()).item() < 0.03  # a value between two steps may take the other


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAnyGpu:
    @pytest.fixture(scope="class")
    def full(self):
        return randomised(VaeConfig(), torch.bfloat16, "cuda")

    @pytest.fixture(scope="class")
    def truth(self, full):
        return ModulesCodec(copy.deepcopy(full).float())

    @pytest.fixture(autouse=True)
    def _exact(self, monkeypatch):
        for library in (torch.backends.cuda.matmul, torch.backends.cudnn):
            monkeypatch.setattr(library, "allow_tf32", False)

    @pytest.mark.parametrize("size", [(12, 20), (13, 21), (1, 1)])
    def test_error_is_at_most_the_eager_networks(self, full, truth, size):
        parts = [noise(3, size, seed, torch.bfloat16, "cuda") for seed in range(2)]
        exact = decode(truth, [part.float() for part in parts])
        eager = decode(ModulesCodec(full), parts)
        with backend("triton"):
            ours = decode(PackedCodec(full), parts)
        errors = [(pixels.float() - exact).norm() for pixels in (ours, eager)]
        assert errors[0] <= 1.1 * errors[1]

    def test_latents_too(self, full, truth):
        frames = decode(ModulesCodec(full), [noise(4, (12, 20), dtype=torch.bfloat16, device="cuda")]).clamp(-1, 1)
        parts = frames.split([1, 12])
        exact = encode(truth, [part.float() for part in parts])
        eager = encode(ModulesCodec(full), parts)
        with backend("triton"):
            ours = encode(PackedCodec(full), parts)
        errors = [(latents.float() - exact).norm() for latents in (ours, eager)]
        assert errors[0] <= 1.1 * errors[1]

    def test_int8_is_as_close_as_the_reference(self, full, truth):
        parts = [noise(3, (8, 12), seed, torch.bfloat16, "cuda") for seed in range(2)]
        exact = decode(truth, [part.float() for part in parts])
        codec = PackedCodec(full, int8=True)
        with backend("triton"):
            ours = decode(codec, parts)
        with backend("reference"):
            reference = decode(codec, parts)
        assert psnr(ours, exact) > psnr(reference, exact) - 0.5
        assert psnr(ours, reference) > 37

    @pytest.mark.parametrize("int8", [False, True], ids=["bf16", "int8"])
    @pytest.mark.parametrize("side", [DecoderStream, EncoderStream])
    def test_replays_are_the_eager_calls_and_do_not_wait(self, full, side, int8):
        codec = PackedCodec(full, int8=int8)

        def new_graphs():
            return GraphCache(GraphSwitch(torch.device("cuda", torch.cuda.current_device())))

        def part(seed):
            if side is DecoderStream:
                return noise(3, (12, 20), seed, torch.bfloat16, "cuda")
            return noise(9 if seed == 0 else 12, (96, 160), seed, torch.bfloat16, "cuda")[:, :3].clamp(-1, 1)

        method = "decode" if side is DecoderStream else "encode"
        parts = [part(seed) for seed in range(4)]
        with backend("triton"):
            eager, graphed = side(codec), side(codec, new_graphs=new_graphs)
            for _ in range(2):
                for each in parts:
                    assert torch.equal(getattr(graphed, method)(each), getattr(eager, method)(each))
                eager.reset(), graphed.reset()
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                for each in parts:
                    getattr(graphed, method)(each)
            finally:
                torch.cuda.set_sync_debug_mode("default")
