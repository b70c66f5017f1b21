#!/usr/bin/env bash
# A Triton kernel rounds negative quotients down when an argument is 1, and towards zero when it is anything else.
#
# Versions: triton 3.5.1, 3.6.0, 3.7.1, 3.8.0 and 3.9.0, compiling for sm_90; interpreted 3.7.1 with torch 2.13.0. No GPU is needed.
# Who meets it: kernels over a ring, a window or a halo, which compute (first - window) % size or (position - halo) // step of their
#   arguments. An argument that happens to be 1 (the first frame, a batch of one, a halo of one) is compiled as a constant, and constants follow
#   Python, all other numbers C. The interpreter follows C for 1 too, so tests on a CPU do not show it.
# Guess: one rule for all values of an argument that is not a constexpr.
# Seen, with kernel[grid](out, n) storing (n - 6) // 4 and (n - 6) % 4:
#   n = 1: -2 and 3; interpreted: -1 and -1
#   n = 3: the quotient to zero, 0 and -3; interpreted: 0 and -3
# What helps: (x % size + size) % size, or do_not_specialize=["n"].
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
cat > kernel.py <<'PYTHON'
import os
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget


def divide(out, n):
    tl.store(out, (n - 6) // 4)
    tl.store(out + 1, (n - 6) % 4)


if os.environ["TRITON_INTERPRET"] == "1":
    import torch

    def run(n):
        out = torch.zeros(2, dtype=torch.int32)
        triton.jit(divide)[(1,)](out, n)
        return tuple(out.tolist())

    found = run(1), run(3)
    print(f"{triton.__version__}, interpreted: {found[0]} for 1, {found[1]} for 3")
    assert found == ((-1, -1), (0, -3)), found
else:

    class NoDevice:
        """What a launch asks the driver for, as far as compiling goes."""

        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)
        get_active_torch_device = staticmethod(lambda: None)

    triton.runtime.driver.set_active(NoDevice())

    def compiled(n, **how):
        """Of a launch with n: the constants that are stored, and the divisions that are left to the GPU."""
        out = triton.runtime.jit.MockTensor(tl.int32)
        ttir = triton.jit(divide, **how).warmup(out, n, grid=(1,)).asm["ttir"]
        stored = re.findall(r"tt\.store %\w+, %c(-?\d+)_i32\w*", ttir)
        return [int(value) for value in stored], re.findall(r"arith\.(divsi|remsi)", ttir)

    found = compiled(1), compiled(3), compiled(1, do_not_specialize=["n"])
    print(f"{triton.__version__}: {found[0][0]} for 1; for 3 at run time {found[1][1]}, C's; for 1 not specialised {found[2][1]}")
    at_run_time = [], ["divsi", "remsi"]
    assert found == (([-2, 3], []), at_run_time, at_run_time), found
PYTHON
for version in 3.5.1 3.6.0 3.7.1 3.8.0 3.9.0; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet setuptools numpy "triton==$version"
  TRITON_INTERPRET=0 TRITON_CACHE_DIR="$scratch/cache-$version" "venv-$version/bin/python" -W ignore kernel.py
done
venv-3.7.1/bin/pip install --quiet "torch==2.13.0" "triton==3.7.1"
TRITON_INTERPRET=1 venv-3.7.1/bin/python -W ignore kernel.py
