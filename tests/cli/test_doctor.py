"""What ``doctor`` says of machines that are not here: GPUs by monkeypatching, operators by tensors without memory."""

import logging
import os

import pytest
import torch

import longlive_optimized.cli.bench
import longlive_optimized.cli.doctor
from longlive_optimized import LongLiveEngine
from longlive_optimized.cli import loading
from longlive_optimized.cli.mistakes import told
from longlive_optimized.engine.devices import Devices, foreign_gpu
from longlive_optimized.kernels import native
from longlive_optimized.kernels.bench.paths import paths
from longlive_optimized.kernels.registry import OPS, backend
from longlive_optimized.vae.backends import path_of
from longlive_optimized.weights.locate import locate
from longlive_optimized.weights.random_checkpoint import make_checkpoint
from longlive_optimized.weights.text import load_text_encoder

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
HOPPER, AMPERE = (9, 0), (8, 0)


@pytest.fixture
def machine(monkeypatch):
    """A GPU of that compute capability, with or without the library; its operators can be asked, not run."""
    pytest.importorskip("triton")

    def pretend(capability, built):
        monkeypatch.setattr(native, "capability", lambda index: capability)
        monkeypatch.setattr(native, "load", lambda: built)

    return pretend


def found(device, dtype) -> dict:
    return {path.operator: (path.backend, path.why) for path in paths(device, dtype)}


@pytest.mark.parametrize(
    ("programs", "headers", "lacks"),
    [
        (["gcc"], True, []),
        (["clang"], True, []),
        ([], True, ["a C compiler"]),
        (["gcc"], False, ["Python's headers"]),
        ([], False, ["a C compiler", "Python's headers"]),
    ],
)
def test_what_triton_needs_to_start(monkeypatch, tmp_path, programs, headers, lacks):
    for name in programs:
        (tmp_path / name).touch(0o755)
    if headers:
        (tmp_path / "Python.h").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert longlive_optimized.cli.doctor._triton_lacks() == lacks
    monkeypatch.setenv("CC", "/some/compiler")
    assert "a C compiler" not in longlive_optimized.cli.doctor._triton_lacks()


def test_every_operator_has_a_path_on_a_cpu():
    on_cpu = found(CPU, torch.float32)
    assert set(on_cpu) == set(OPS)
    assert set(on_cpu.values()) == {("reference", "no CUDA GPU")}


def test_hopper_with_the_library_runs_the_fastest(machine):
    machine(HOPPER, built=True)
    on_hopper = found(CUDA, torch.bfloat16)
    assert all(why == "" for _, why in on_hopper.values())
    assert on_hopper["ring_attention"][0] == on_hopper["ring_attention_fp8"][0] == "cuda"
    assert on_hopper["linear_gelu"][0] == "library"
    assert [name for name, (runs, _) in on_hopper.items() if runs == "reference"] == []


@pytest.mark.parametrize(
    ("capability", "built", "why"),
    [
        (HOPPER, False, "the CUDA library was not built"),
        (AMPERE, True, "no Hopper GPU"),
        ((12, 0), True, "no Hopper GPU"),
    ],
)
def test_other_machines_say_what_they_lack(machine, capability, built, why):
    machine(capability, built)
    here = found(CUDA, torch.bfloat16)
    assert here["ring_attention"] == here["causal_conv"] == ("triton", why)
    assert here["conv_pixels"] == ("triton", why)
    assert here["ring_attention_fp8"] == ("reference", why)
    assert here["norm_silu"] == ("triton", "")  # whose fastest is Triton's


def test_a_forced_backend_is_the_reason(machine, monkeypatch):
    machine(HOPPER, built=True)
    with backend("reference"):
        assert found(CUDA, torch.bfloat16)["rms_norm"] == ("reference", "forced by force()")
        monkeypatch.setenv("LONGLIVE_BACKEND", "reference")
        assert found(CUDA, torch.bfloat16)["rms_norm"] == ("reference", "forced by LONGLIVE_BACKEND")


def test_a_forced_backend_that_is_not_here_is_none():
    with backend("cuda"):
        runs, why = found(CPU, torch.float32)["rms_norm"]
    assert runs == "none" and why == "cuda is forced: no CUDA GPU"


def test_arguments_that_do_not_suit_are_the_reason(machine):
    machine(HOPPER, built=True)
    assert found(CUDA, torch.float32)["ring_attention"][1] == "cuda does not take these arguments"


@pytest.mark.parametrize(
    ("device", "dtype", "in_8_bits", "path"),
    [
        (CUDA, torch.bfloat16, False, ("PackedCodec", "bf16", "")),
        (CUDA, torch.bfloat16, True, ("PackedCodec", "int8", "")),
        (CUDA, torch.float32, True, ("ModulesCodec", "float32", "the kernels are for bfloat16")),
        (CPU, torch.float32, True, ("ModulesCodec", "float32", "no CUDA GPU")),
    ],
)
def test_the_path_of_the_vae(machine, device, dtype, in_8_bits, path):
    machine(HOPPER, built=True)
    assert path_of(device, dtype, in_8_bits) == path


def test_the_path_of_the_vae_before_ampere(machine):
    machine((7, 5), built=True)
    assert path_of(CUDA, torch.bfloat16, in_8_bits=True) == ("ModulesCodec", "bf16", "no Hopper GPU")


def test_the_path_of_the_vae_on_triton(machine):
    machine(AMPERE, built=True)
    assert path_of(CUDA, torch.bfloat16, in_8_bits=True) == ("PackedCodec", "int8", "")
    assert path_of(CUDA, torch.bfloat16, in_8_bits=False) == ("PackedCodec", "bf16", "")


@pytest.fixture
def rocm(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize("device", [None, "cuda", "cuda:0"])
def test_an_amd_gpu_is_refused_before_weights_are_read(rocm, monkeypatch, device):
    monkeypatch.setattr("longlive_optimized.engine.engine.locate", lambda *a: pytest.fail("weights are looked for"))
    match = r"NVIDIA GPU or cpu, got an AMD GPU \(torch for ROCm 6\.4\.1\).*supported"
    with pytest.raises(ValueError, match=match) as error:
        LongLiveEngine("tiny", device=device)
    assert told(error.value).startswith("--device must be")


def test_the_commands_refuse_an_amd_gpu(rocm):
    with pytest.raises(ValueError, match="got an AMD GPU"):
        longlive_optimized.cli.bench.kernels(["rms_norm"])


def test_a_cpu_serves_beside_an_amd_gpu(rocm):
    assert Devices("cpu").model == CPU


def _intel(monkeypatch):
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)


def _apple(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


NEITHER_NVIDIA_NOR_AMD = [("xpu", "an Intel GPU (xpu)", _intel), ("mps", "an Apple GPU (mps)", _apple)]


@pytest.mark.parametrize(("device", "name", "pretend"), NEITHER_NVIDIA_NOR_AMD)
def test_intel_and_apple_are_refused(monkeypatch, device, name, pretend):
    pretend(monkeypatch)
    monkeypatch.setattr("longlive_optimized.engine.engine.locate", lambda *a: pytest.fail("weights are looked for"))
    with pytest.raises(ValueError) as error:
        LongLiveEngine("tiny", device=device)
    text = str(error.value)
    assert text.startswith(f"device must be cuda, cuda:N or cpu, got '{device}'") and name in text and "NVIDIA" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(("device", "name", "pretend"), NEITHER_NVIDIA_NOR_AMD)
def test_without_a_wish_the_cpu_serves_and_the_log_says_so(monkeypatch, caplog, device, name, pretend):
    pretend(monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert Devices().model == CPU
    assert name in caplog.text and "supported" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_doctor_names_what_it_cannot_use(monkeypatch, capsys):
    _apple(monkeypatch)
    assert foreign_gpu() == "an Apple GPU (mps)"
    wide = loading.Console(markup=False, highlight=False, emoji=False, width=160)
    monkeypatch.setattr(longlive_optimized.cli.doctor, "results", wide)
    longlive_optimized.cli.doctor.doctor(None)
    out = capsys.readouterr().out
    assert "an Apple GPU (mps), not supported" in out and "no CUDA GPU" in out
    assert "ModulesCodec, float32" in out and "speed" in out


@pytest.mark.parametrize("verify", [False, True])
def test_doctor_says_whether_kept_int8_weights_are_used(tmp_path, monkeypatch, capsys, verify):
    files = locate(make_checkpoint(tmp_path / "model", "tiny"))
    wide = loading.Console(markup=False, highlight=False, emoji=False, width=160)
    monkeypatch.setattr(longlive_optimized.cli.doctor, "results", wide)
    longlive_optimized.cli.doctor._check_kept(files, verify)
    assert capsys.readouterr().out == ""
    load_text_encoder(files, "cpu", torch.float32, precision="int8", keep=True)
    longlive_optimized.cli.doctor._check_kept(files, verify)
    assert ("all checksums are right" if verify else "fits the text encoder") in capsys.readouterr().out
    os.utime(files.text, (1, 1))
    longlive_optimized.cli.doctor._check_kept(files, verify)
    out = capsys.readouterr().out
    assert "is stale" in out and "it is not used, and replaced with --keep-text-int8" in out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_path_that_is_named_is_the_one_that_runs():
    device = torch.device("cuda", torch.cuda.current_device())
    here = found(device, torch.bfloat16)
    x = torch.randn(8, 1536, dtype=torch.bfloat16, device=device)
    assert OPS["rms_norm"].choose(x, x[0].contiguous(), 1e-6) == here["rms_norm"][0]
    assert set(here) == set(OPS) and "none" not in {runs for runs, _ in here.values()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_there_is_nothing_to_estimate_on_a_cpu(capsys):
    longlive_optimized.cli.doctor._speed(CPU)
    assert "nothing to estimate on a CPU" in capsys.readouterr().out


def test_the_estimate_is_told(monkeypatch, capsys):
    from longlive_optimized.bench import estimate

    monkeypatch.setattr(estimate, "measure_rates", lambda device: (estimate.Rates(*[1e15] * 8, 4e12), True))
    monkeypatch.setattr(longlive_optimized.cli.doctor, "results", loading.Console(width=100))
    longlive_optimized.cli.doctor._speed(CUDA)
    out = capsys.readouterr().out
    assert "attention int8" in out and "1000 TFLOP/s" in out and "4000 GB/s" in out
    assert "balanced: about" in out and "speed: about" in out
