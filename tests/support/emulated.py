"""CUDA sources on the CPU emulator of tests/native."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "tests/native"
EMULATOR = NATIVE / "emulator"


def compiler() -> list:
    """A C++ compiler that takes the kernels' source for the emulator; skips the test where there is none."""
    found = shutil.which("c++")
    if found is None:
        pytest.skip("no C++ compiler")
    return [found, f"@{EMULATOR / 'flags'}", f"-I{EMULATOR}", f"-I{ROOT / 'csrc'}", "-x", "c++"]


def run(*command) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]


def run_on_a_cpu(folder: Path, source: str, *arguments: object) -> None:
    """Compile tests/native/SOURCE and run it."""
    program = folder / Path(source).stem
    run(*compiler(), NATIVE / source, "-o", program)
    run(program, *map(str, arguments))
