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
from cases import CASES, check, check_pixels, make, make_pixels

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


def run_all(library: ctypes.CDLL, seed: int, processors: int) -> bool:
    good = True
    for name, case in CASES.items():
        started, case = time.perf_counter(), dict(case)
        subtiles, schedules = case.pop("subtiles", 0), case.pop("schedules", 1)
        for schedule in range(schedules):
            run = Emulated(library, subtiles, processors, seed + schedule)
            errors = check(run, make(**case, seed=seed))
            if any(error > 1 for error in errors.values()):
                break
        good &= report(name, errors, started)
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
