"""The estimate of ``doctor --speed`` beside what was measured, and beside sums by hand."""

import contextlib

import pytest
import torch

from longlive_optimized.bench import estimate
from longlive_optimized.bench.estimate import Rates, frames_per_second, measure_rates
from longlive_optimized.kernels import native
from longlive_optimized.kernels.bench.paths import without_memory

# An H200's, of docs/performance.md and docs/int8.md: TFLOP/s, and bytes a second.
H200 = Rates(635e12, 1103e12, 644e12, 755e12, 655e12, 1310e12, 643e12, 980e12, 4253e9)
NOTHING = Rates(*[float("inf")] * 9)


@pytest.mark.parametrize(("preset", "measured"), [("balanced", 40.2), ("speed", 56.7), ("realtime", 52.9)])
def test_an_h200_is_estimated_as_it_was_measured(preset, measured):
    assert frames_per_second(H200, preset, vae_int8=True) == pytest.approx(measured, rel=0.03)


def test_speed_with_a_vae_in_bf16():
    assert frames_per_second(H200, "speed", vae_int8=False) == pytest.approx(48.9, rel=0.05)


@pytest.mark.parametrize(
    ("name", "preset", "amount"),
    [
        ("product", "balanced", 150 * 2 * 4680 * (1536 * 4608 + 3 * 1536**2 + 2 * 1536 * 8960)),
        ("product_int8", "speed", 150 * 2 * 4680 * (1536 * 4608 + 3 * 1536**2 + 2 * 1536 * 8960)),
        ("attention", "balanced", 150 * 4 * 4680 * (18720 + 512) * 1536),
        ("attention", "speed", 150 * 4 * 4680 * 512 * 1536),
        ("attention_int8", "speed", 150 * 4 * 4680 * 18720 * 1536),
        ("attention_int8", "ultra", 90 * 4 * 4680 * 14040 * 1536),
        ("copy", "balanced", 150 * 20 * 4680 * 1536 * 2),
    ],
)
def test_each_rate_divides_its_work_alone(name, preset, amount):
    """With everything else infinitely fast the block takes the time of that work: FLOP and bytes counted by hand."""
    rates = NOTHING._replace(**{name: 1e12})
    assert 12 / frames_per_second(rates, preset, vae_int8=True) == pytest.approx(amount / 1e12, rel=1e-12)


def test_convolutions_are_counted_once():
    """40 TFLOP a block (docs/convolution.md), 37 of them in int8 (docs/int8.md)."""

    def tflop(vae_int8, *names):
        rates = NOTHING._replace(**dict.fromkeys(names, 1e12))
        return 12 / frames_per_second(rates, "speed", vae_int8)

    plain, int8 = ("convolution", "convolution_96"), ("convolution_int8", "convolution_96_int8")
    assert tflop(False, *plain) == pytest.approx(40.4, abs=0.1)
    assert tflop(True, *int8) == pytest.approx(36.7, abs=0.1)
    assert tflop(True, *plain, *int8) == pytest.approx(tflop(False, *plain))


def test_what_is_measured_is_what_runs_most():
    wide, narrow = (estimate._layer(estimate.causal_conv, channels) for channels in (192, 96))
    assert "12x240x416" in wide.shape and "12x480x832" in narrow.shape
    assert estimate._layer(estimate.causal_conv_int8, 96).flops == narrow.flops


@pytest.mark.parametrize(("capability", "vae_int8"), [((9, 0), True), ((8, 0), True), ((7, 5), False)])
def test_what_a_gpu_is_asked_for(monkeypatch, capability, vae_int8):
    """Each kernel once, by the operator itself; torch's convolutions where ours are not for this GPU."""
    timed = []

    def take_a_second(function, sets):
        timed.append(getattr(function, "name", None) or getattr(function, "__name__", ""))
        return 1.0

    monkeypatch.setattr(native, "capability", lambda index: capability)
    monkeypatch.setattr(native, "load", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(estimate, "sets_of", lambda case: [case.make("cpu")])
    monkeypatch.setattr(estimate, "_seconds", take_a_second)
    with without_memory():
        rates, in_int8 = measure_rates(torch.device("cuda", 0))
    convolutions = ["causal_conv"] * 2 + ["causal_conv_int8"] * 2 if vae_int8 else ["published"] * 2
    attention = [*(["ring_attention_fp8"] if capability == (9, 0) else []), "ring_attention_int8"]
    assert timed == [*convolutions, "linear", "int8_linear", "ring_attention", *attention, "<lambda>"]
    assert in_int8 == vae_int8
    assert rates.attention == 4 * 4680 * 18720 * 1536 == pytest.approx(rates.attention_int8)
    assert rates.product == rates.product_int8 == 2 * 4680 * 1536 * 4608 and rates.copy == 2**30
    assert rates.convolution == rates.convolution_int8 and rates.convolution_96 == rates.convolution_96_int8


@pytest.mark.parametrize(("with_values", "rate"), [(0, 2.0), (30, 6.0), (15, 3.0), (10, 2.5714285714285716)])
def test_attention_in_8_bits_is_a_mean_over_layers(monkeypatch, with_values, rate):
    monkeypatch.setattr(estimate, "_operator", {"ring_attention_fp8": 6.0, "ring_attention_int8": 2.0}.__getitem__)
    assert estimate._attention_in_8_bits(with_values, 30) == pytest.approx(rate)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_rates_are_measured():
    rates, vae_int8 = measure_rates(torch.device("cuda", torch.cuda.current_device()))
    assert all(rate > 1e9 for rate in rates) and rates.copy < rates.product
    assert frames_per_second(rates, "balanced", vae_int8) > 0
