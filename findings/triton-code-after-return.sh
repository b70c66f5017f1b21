#!/usr/bin/env bash
# Triton up to 3.7 compiles what follows a return that is always taken, so that a helper for two dtypes fails for one of them.
#
# Versions: triton 3.5.1, 3.6.0, 3.7.1, 3.8.0 and 3.9.0, compiling for sm_90. No GPU is needed.
# Who meets it: kernels that serve several dtypes through a helper with `if x.dtype == tl.int8: return ...`, written and tested under the
#   newest Triton or its interpreter, where they work, and installed beside the torch that people have (2.9 brings 3.5, 2.11 brings 3.6).
# Guess: the condition is known when the kernel is compiled, so nothing after the return exists, as nothing of an untaken else does.
# Seen: with 3.5.1, 3.6.0 and 3.7.1 the product behind the return is checked as well: CompilationError, from an assertion without words in `tl.dot`,
#   whose accumulator is of the other dtype. 3.8.0 and 3.9.0 compile it. With the rest under `else` all of them do.
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
cat > kernel.py <<'PYTHON'
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompilationError


@triton.jit
def after_return(a, b, total):
    if a.dtype == tl.int8:
        return tl.dot(a, b, total, out_dtype=tl.int32)
    return tl.dot(a, b, total)


@triton.jit
def under_else(a, b, total):
    if a.dtype == tl.int8:
        return tl.dot(a, b, total, out_dtype=tl.int32)
    else:
        return tl.dot(a, b, total)


@triton.jit
def kernel(a, b, out, ELSE: tl.constexpr):
    i = tl.arange(0, 64)
    at = i[:, None] * 64 + i[None]
    total = tl.zeros((64, 64), tl.int32)
    if ELSE:
        total = under_else(tl.load(a + at), tl.load(b + at), total)
    else:
        total = after_return(tl.load(a + at), tl.load(b + at), total)
    tl.store(out + at, total)


def compiles(under_else: bool) -> bool:
    types = {"a": "*i8", "b": "*i8", "out": "*i32", "ELSE": "constexpr"}
    source = ASTSource(kernel, signature=types, constexprs={"ELSE": under_else})
    try:
        triton.compile(source, target=GPUTarget("cuda", 90, 32))
    except CompilationError:
        return False
    return True


found = compiles(False), compiles(True)
print(f"{triton.__version__}: after a return {'compiles' if found[0] else 'fails'}, under else {'compiles' if found[1] else 'fails'}")
assert found == (triton.__version__ >= "3.8", True), found
PYTHON
for version in 3.5.1 3.6.0 3.7.1 3.8.0 3.9.0; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet setuptools "triton==$version"
  TRITON_CACHE_DIR="$scratch/cache-$version" "venv-$version/bin/python" -W ignore kernel.py
done
