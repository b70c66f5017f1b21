"""CUDA sources on the CPU emulator of tests/native."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "tests/native"


def run_on_a_cpu(folder: Path, source: str, cases: int) -> None:
    """Compile tests/native/SOURCE.cpp and run so many of its cases; skip where there is no compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program, emulator = folder / source, NATIVE / "emulator"
    flags = [f"@{emulator / 'flags'}", f"-I{emulator}", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *flags, NATIVE / f"{source}.cpp", "-o", program], check=True, capture_output=True)
    done = subprocess.run([program, str(cases)], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
