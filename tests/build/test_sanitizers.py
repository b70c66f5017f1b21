"""Programs that launch the CUDA kernels without torch: on the emulator, on Hopper, and under NVIDIA's sanitizer."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from support.emulated import NATIVE, ROOT, run, run_on_a_cpu

# What racecheck is told to leave out: see the program.
PROGRAMS = {"attention_sanitize": [], "conv_sanitize": ["apart"], "int8_sanitize": [], "keys_sanitize": []}
on_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="no Hopper"
)


def compiled(name: str, folder: Path) -> Path:
    """tests/native/NAME.cu as a program for Hopper; skips the test where there is no nvcc."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    flags = ["-O2", "-std=c++20", "-gencode=arch=compute_90a,code=sm_90a", "--expt-relaxed-constexpr", "-lineinfo"]
    run("nvcc", *flags, f"-I{ROOT / 'csrc'}", NATIVE / f"{name}.cu", "-o", folder / name)
    return folder / name


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request, tmp_path_factory) -> Path:
    """Each of them, compiled once."""
    return compiled(request.param, tmp_path_factory.mktemp("programs"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_agrees_on_a_cpu(tmp_path, name):
    run_on_a_cpu(tmp_path, f"{name}.cu")


def test_compiles(program):
    assert program.is_file()


@pytest.mark.parametrize("name", ["cluster_handshake", "warp_release"])
def test_what_racecheck_does_not_follow_compiles(tmp_path, name):
    """They run by hand, and show it."""
    compiled(name, tmp_path)


@pytest.mark.gpu
@on_hopper
def test_agrees_on_hopper(program):
    run(program)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_finds_nothing(program, tool):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("no compute-sanitizer")
    if tool == "racecheck" and program.name == "attention_sanitize":
        pytest.skip("racecheck does not follow what one lane releases for its warp: tests/native/warp_release.cu")
    arguments = PROGRAMS[program.name] if tool == "racecheck" else []
    done = subprocess.run([sanitizer, "--tool", tool, program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"SUMMARY: 0 (errors|hazards)", done.stdout), done.stdout[-4000:]
