"""The kernel's own source, emulated, against the operator's definition: every stage, several schedules.

python tests/native/conv/emulate.py [seeds]
"""

import itertools
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from calls import Build  # noqa: E402
from cases import check, check_pixels, make, make_pixels, staged  # noqa: E402


def build(path, *flags):
    command = "g++ -x c++ -std=c++20 -O2 -g -shared -fPIC -fno-strict-aliasing -Wno-unknown-pragmas"
    includes = [f"-I{HERE}/emulated", f"-I{HERE.parents[2]}/csrc", "-I/usr/local/cuda/include"]
    subprocess.run([*command.split(), *flags, *includes, "-o", path, HERE / "entry.cu"], check=True)
    return path


def report(name, errors, started):
    text = " ".join(f"{k} {v:.2f}" for k, v in errors.items())
    ok = all(v <= 1 for v in errors.values())
    print(f"{'ok ' if ok else 'BAD'} {name}: {text} ({time.time() - started:.1f} s)", flush=True)
    return ok


def main(seeds=1):
    path = build("/tmp/libemulated.so")
    good = True
    for seed, (stage, name, case) in itertools.product(range(seeds), staged()):
        for lateness, ctas in ((2, 2), (0, 4), (1, 2)):
            started = time.time()
            run = Build(path, 0, ctas, lateness, seed)
            good &= report(f"{stage} {name}, lateness {lateness}", check(run, make(**case, seed=seed)), started)
        for variant in (1, 2):
            if case["kind"] == 0 and case["co"] != 96:
                started = time.time()
                run = Build(path, variant, 2, 1, seed)
                good &= report(f"{stage} {name}, variant {variant}", check(run, make(**case, seed=seed)), started)
    for as_bytes in (False, True):
        started = time.time()
        run = Build(path, 0, 2, 1, 0).pixels
        good &= report(
            f"9 pixels, bytes {as_bytes}", check_pixels(run, make_pixels((20, 27), 96, 2, as_bytes)), started
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
