#!/usr/bin/env bash
# Triton waits for each product of integers on Hopper before it issues the next, where products of floats overlap.
#
# Versions: triton 3.5.1, 3.6.0 and 3.9.0, compiling for sm_90. No GPU is needed.
# Who meets it: kernels of int8 products on Hopper (SmoothQuant, W8A8, SageAttention) that count on twice bfloat16's rate, and whose tiles were
#   tuned for floats: the tensor cores are idle in each turn of the loop, from the end of a product until the next copy is seen to.
# Guess: the loop of a product is pipelined by the same rules, whatever its type: wgmma is asynchronous for s8 as for f16.
# Seen: in the loop of an ordinary product `warp_group_dot_wait` has pendings = 1 for fp16, bf16 and fp8, and pendings = 0 for i8, whose sums are int32. Longer
#   steps and two programs a multiprocessor hide most of it.
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
def kernel(a, b, out, depth, INT: tl.constexpr):
    i, k = tl.arange(0, 128), tl.arange(0, 64)
    TYPE: tl.constexpr = tl.int32 if INT else tl.float32
    total = tl.zeros((128, 128), TYPE)
    for start in range(0, depth, 64):
        left, right = tl.load(a + i[:, None] * depth + start + k), tl.load(b + i[:, None] * depth + start + k)
        total = tl.dot(left, tl.trans(right), total, out_dtype=TYPE)
    tl.store(out + i[:, None] * 128 + i, total)


def pending(narrow: str) -> list[int]:
    """How many products may be under way when a turn of the loop has waited."""
    types = {"a": "*" + narrow, "b": "*" + narrow, "out": "*i32" if narrow == "i8" else "*fp32", "depth": "i32", "INT": "constexpr"}
    attrs = {(i,): [["tt.divisibility", 16]] for i in range(4)}
    source = ASTSource(kernel, signature=types, constexprs={"INT": narrow == "i8"}, attrs=attrs)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_stages": 3, "num_warps": 8})
    loop = built.asm["ttgir"].partition("scf.for")[2].partition("scf.yield")[0]
    return [int(n) for n in re.findall(r"warp_group_dot_wait.*?pendings = (\d+)", loop)]


found = {narrow: pending(narrow) for narrow in ("i8", "fp16", "bf16", "fp8e4nv")}
print(f"{triton.__version__}: {found}")
assert found == {"i8": [0], "fp16": [1], "bf16": [1], "fp8e4nv": [1]}, found
PYTHON
for version in 3.5.1 3.6.0 3.9.0; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet setuptools "triton==$version"
  TRITON_CACHE_DIR="$scratch/cache-$version" "venv-$version/bin/python" -W ignore kernel.py
done
