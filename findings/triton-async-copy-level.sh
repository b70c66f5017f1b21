#!/usr/bin/env bash
# Triton before 3.9 turns every asynchronous copy of 16 bytes into cp.async.cg, whatever cache_modifier the load names.
#
# Versions: triton 3.5.1, 3.6.0, 3.7.1, 3.8.0 and 3.9.0, compiling for sm_80. No GPU is needed.
# Who meets it: pipelined loops whose tiles overlap (convolutions, attention with a halo), which ask for ".ca" so that the first-level
#   cache serves what other copies have read: under the Triton of today's torch (2.9 brings 3.5, 2.11 brings 3.6) each copy goes to L2.
# Guess: the modifier reaches the instruction, as it does for loads that are not asynchronous.
# Seen: 3.5.1, 3.6.0, 3.7.1 and 3.8.0 write cp.async.cg for ".ca" too; 3.9.0 obeys, and writes cp.async.cg only for ".cg" and where nothing is said.
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
cat > kernel.py <<'PYTHON'
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def kernel(a, b, out, steps, A: tl.constexpr, B: tl.constexpr):
    i, k = tl.arange(0, 64), tl.arange(0, 64)
    total = tl.zeros((64, 64), tl.float32)
    for step in range(steps):
        left = tl.load(a + i[:, None] * 4096 + (step * 64 + k)[None], cache_modifier=A)
        right = tl.load(b + i[:, None] * 4096 + (step * 64 + k)[None], cache_modifier=B)
        total = tl.dot(left, tl.trans(right), total)
    tl.store(out + i[:, None] * 64 + k[None], total)


def copies(modifier: str) -> set[str]:
    types = {"a": "*bf16", "b": "*bf16", "out": "*fp32", "steps": "i32", "A": "constexpr", "B": "constexpr"}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(3)}
    source = ASTSource(kernel, signature=types, constexprs={"A": modifier, "B": modifier}, attrs=aligned)
    ptx = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_stages": 3}).asm["ptx"]
    return set(re.findall(r"cp\.async\.(c[ag])\.shared\.global \[[^]]*\], \[[^]]*\], (?:0x10|16)", ptx))


found = {modifier: copies(modifier) for modifier in (".ca", ".cg", "")}
for modifier, names in found.items():
    print(f"{triton.__version__}: {modifier or 'no modifier'} becomes {', '.join(f'cp.async.{name}' for name in sorted(names))}")
obeyed = triton.__version__ >= "3.9"
assert found == {".ca": {"ca" if obeyed else "cg"}, ".cg": {"cg"}, "": {"cg"}}, found
PYTHON
for version in 3.5.1 3.6.0 3.7.1 3.8.0 3.9.0; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet setuptools "triton==$version"
  TRITON_CACHE_DIR="$scratch/cache-$version" "venv-$version/bin/python" -W ignore kernel.py
done
