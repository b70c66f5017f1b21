"""Parked weights: each layer's are there when it computes, and nothing is written over what is still needed."""

import gc

import pytest
import torch

from longlive_optimized.text.encoder import TextEncoder
from longlive_optimized.text.footprint import footprint
from longlive_optimized.text.parked import CudaLink, residence_on
from support.umt5 import Ids, narrowed, weights

CPU, IDS = torch.device("cpu"), torch.arange(3, 34)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


class Late:
    """Copies as late as they may come: when they are waited for. Until then their destination holds NaN."""

    def __init__(self):
        self.log, self.pending = [], {}

    def mark(self):
        self.log.append("mark")
        return len(self.log)

    def copy(self, pairs, after):
        assert after == len(self.log), "the mark is older than what has been computed since"
        self.log.append("copy")
        for there, _ in pairs:
            there.view(-1).view(torch.uint8).fill_(0xFF)
        self.pending[len(self.log)] = pairs
        return len(self.log)

    def wait(self, mark):
        self.log.append("wait")
        for there, here in self.pending.pop(mark, []):
            there.copy_(here)


class Early(Late):
    """Copies as early as they may come: at once."""

    def copy(self, pairs, after):
        mark = super().copy(pairs, after)
        for there, here in self.pending.pop(mark):
            there.copy_(here)
        return mark


def encoders(precision, dtype, link, layers=3):
    stored = narrowed(weights(layers), precision, dtype)
    return TextEncoder(stored, Ids(), dtype), TextEncoder(stored, Ids(), dtype, CPU, link)


@pytest.mark.parametrize("link", [Late, Early])
@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_as_in_place(link, precision, dtype):
    plain, parked = encoders(precision, dtype, link())
    assert parked.residence == "parked" and parked.precision == precision
    wanted = plain.encode(["a red fox", "snow"])
    assert torch.equal(parked.encode(["a red fox", "snow"]), wanted) and wanted.isfinite().all()
    assert parked._parked._buffers == []


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_the_next_layer_is_copied_while_one_computes(layers):
    link = Late()
    _, parked = encoders("int8", torch.float32, link, layers)
    for i, layer in enumerate(parked._network.block):
        layer.layer.register_forward_hook(lambda *_, i=i: link.log.append(f"layer {i}"))
    parked.encode_ids(IDS)
    visited = layers + 1  # the last norm
    wanted = ["mark", "copy"] * min(2, visited)
    for i in range(visited):
        wanted += ["wait"] + [f"layer {i}"] * (i < layers) + ["mark", "copy"] * (i + 2 < visited)
    assert link.log == wanted + ["wait"] * visited


def test_layers_may_be_of_different_kinds():
    """A file may leave single layers in bfloat16: a buffer has room for the widest."""
    int8, bf16 = (narrowed(weights(), precision, torch.bfloat16) for precision in ("int8", "bf16"))
    mixed = {key: bf16[key] if key.startswith("blocks.1.ffn") else one for key, one in int8.items()}
    plain = TextEncoder(mixed, Ids(), torch.bfloat16)
    parked = TextEncoder(mixed, Ids(), torch.bfloat16, CPU, Late())
    assert torch.equal(parked.encode(["fox"]), plain.encode(["fox"]))


def test_after_an_error_in_the_midst_it_encodes_again():
    link = Late()
    plain, parked = encoders("int8", torch.float32, link)
    hook = parked._network.block[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        parked.encode(["fox"])
    assert not link.pending and parked._parked._buffers == []
    hook.remove()
    assert torch.equal(parked.encode(["fox"]), plain.encode(["fox"]))


def test_where_weights_lie():
    cuda = torch.device("cuda", 0)
    assert [residence_on(cuda, r) for r in ("auto", "gpu", "parked", "cpu")] == ["gpu", "gpu", "parked", "cpu"]
    assert residence_on(CPU) == residence_on(CPU, "cpu") == "cpu"
    for asked in ("gpu", "parked"):
        with pytest.raises(ValueError, match=rf"text_residence must be auto or cpu .*got '{asked}': there is no GPU"):
            residence_on(CPU, asked)
    with pytest.raises(ValueError, match="text_residence must be auto, gpu, parked or cpu, got 'disk'"):
        residence_on(cuda, "disk")


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8"])
def test_on_a_gpu_the_same_bits_and_nothing_stays(precision):
    from longlive_optimized.text.linear import Blocks
    from longlive_optimized.weights.host_memory import pinned_empty

    device = torch.device("cuda", torch.cuda.current_device())
    sizes = {"layers": 6, "width": 512, "inner": 512, "ffn": 1024}
    tensors = weights(**sizes)
    stored = narrowed(tensors, precision, torch.bfloat16)

    def moved(move):
        return {k: Blocks(*map(move, one)) if isinstance(one, Blocks) else move(one) for k, one in stored.items()}

    def pinned(t):
        memory = pinned_empty(t.nbytes).view(t.dtype).view(t.shape).copy_(t)
        assert memory.is_pinned()
        return memory

    parked = TextEncoder(moved(pinned), Ids(), torch.bfloat16, device, CudaLink(device))
    wanted = TextEncoder(moved(lambda t: t.to(device)), Ids(), torch.bfloat16).encode(["a red fox", "snow"])
    for _ in range(3):
        gc.collect()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        got = parked.encode(["a red fox", "snow"])
        assert got.device == device and torch.equal(got, wanted)
        most = torch.cuda.max_memory_allocated(device) - before
        del got
        assert torch.cuda.memory_allocated(device) == before
    known = footprint({k: t.shape for k, t in tensors.items()}, precision, "parked", text_len=Ids.text_len)
    assert known.gpu == 0 and 2 * parked._parked.buffer_bytes < most < known.gpu_encoding + 2**21
    close = TextEncoder(stored, Ids(), torch.bfloat16, device).encode(["a red fox", "snow"])
    assert close.device == device and (close.float() - wanted.float()).norm() < 0.05 * wanted.float().norm()
