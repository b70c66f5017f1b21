"""Calls of the operators in 8 bits at random shapes and ranges, against exact or float64 arithmetic.

python tests/measure/random_calls.py --count 10000 [--backend cuda] [--seed 0] [int8_linear ...]

By the checks of tests/kernels, which try fewer. Exits with 1, and says what call it was, where a result is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "kernels")]
import test_int8_linear as products  # noqa: E402
import test_quantize  # noqa: E402
import test_ring_attention_fp8 as attention_fp8  # noqa: E402
import test_ring_attention_int8 as attention  # noqa: E402

from longlive_optimized.kernels import native  # noqa: E402


def check_attention(rng: random.Random, run: Callable, backend: str, device: str) -> None:
    args = attention.draw(rng, device)
    got, want = run(*args), attention.truth(*args)
    shapes = [list(x.shape) for x in args[:3]], args[5].tolist()
    assert got.isfinite().all() and (got.double() - want).norm() <= 5e-3 * want.norm(), shapes


CHECKS = {
    "int8_linear": (products.int8_linear, products.check_random_call),
    "int8_linear_gelu": (products.int8_linear_gelu, products.check_random_gelu),
    "quantize": (test_quantize.OP, test_quantize.check_random_call),
    "ring_attention_fp8": (attention_fp8.OP, attention_fp8.check_random_call),
    "ring_attention_int8": (attention.OP, check_attention),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operators", nargs="*", metavar="OP", help=f"of {', '.join(CHECKS)}; the first three if none")
    parser.add_argument("--count", type=int, default=1000, help="calls of each operator")
    parser.add_argument("--backend", default="cuda" if torch.cuda.is_available() else "reference")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.backend == "cuda" and not native.load():
        parser.error("--backend cuda: the CUDA library is not built here")
    for name in arguments.operators or list(CHECKS)[:3]:
        operator, check = CHECKS[name]
        run = operator.impls[arguments.backend][0]
        rng, started = random.Random(arguments.seed), time.perf_counter()
        for i in range(arguments.count):
            try:
                check(rng, run, arguments.backend, device)
            except AssertionError as error:
                print(f"{name}, {arguments.backend}: call {i} of seed {arguments.seed} is wrong: {error}")
                return 1
        print(f"{name}, {arguments.backend}: {arguments.count} calls ({time.perf_counter() - started:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
