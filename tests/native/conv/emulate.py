"""The convolution kernel's own source on the emulator, against the operator's definition in float64.

python tests/native/conv/emulate.py [SEEDS]
    Each case under one random schedule, as tests/kernels/test_causal_conv.py runs it, or under SEEDS of them.
"""

import ctypes
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from calls import Emulated
from cases import CASES, INT8_CASES, check, check_pixels, make, make_int8, make_pixels

from longlive_optimized.kernels.causal_conv import causal_conv
from longlive_optimized.kernels.causal_conv_int8 import causal_conv_int8

HERE = Path(__file__).parent
EMULATOR = HERE.parent / "emulator"


def build(path: Path) -> ctypes.CDLL:
    """Compile the kernel for this machine. Raises RuntimeError where there is no C++ compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        raise RuntimeError("no C++ compiler")
    flags = [f"@{EMULATOR / 'flags'}", "-shared", "-fPIC", f"-I{EMULATOR}", f"-I{HERE.parents[2] / 'csrc'}"]
    subprocess.run([compiler, *flags, "-o", path, HERE / "entry.cpp"], check=True)
    return ctypes.CDLL(str(path))


def report(name: str, errors: dict[str, float], started: float) -> bool:
    good = all(error <= 1 for error in errors.values())
    text = " ".join(f"{key} {error:.2f}" for key, error in errors.items())
    print(f"{'ok ' if good else 'BAD'} {name}: {text} ({time.perf_counter() - started:.1f} s)", flush=True)
    return good


def run_case(library: ctypes.CDLL, case: dict, in_int8: bool, seed: int, processors: int) -> dict[str, float]:
    subtiles, schedules, errors = case.pop("subtiles", 0), case.pop("schedules", 1), {}
    for schedule in range(schedules):
        emulated = Emulated(library, subtiles, processors, seed + schedule)
        if in_int8:
            errors = check(emulated.int8, make_int8(**case, seed=seed), causal_conv_int8)
        else:
            errors = check(emulated, make(**case, seed=seed), causal_conv)
        if any(error > 1 for error in errors.values()):
            break
    return errors


def run_all(library: ctypes.CDLL, seed: int, processors: int) -> bool:
    good = True
    for in_int8, cases in ((False, CASES), (True, INT8_CASES)):
        for name, case in cases.items():
            started = time.perf_counter()
            errors = run_case(library, dict(case), in_int8, seed, processors)
            good &= report(f"int8, {name}" if in_int8 else name, errors, started)
    for as_bytes in (False, True):
        started, run = time.perf_counter(), Emulated(library, 0, processors, seed).pixels
        good &= report(f"pixels, bytes {as_bytes}", check_pixels(run, make_pixels(as_bytes, seed)), started)
    return good


def main(seeds: int = 1) -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder) / "emulated.so")
        good = [run_all(library, seed, processors=4 if seed % 2 else 2) for seed in range(seeds)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
