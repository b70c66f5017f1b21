#!/usr/bin/env bash
# Triton's interpreter cuts floats off where a GPU rounds them: bfloat16 is biased towards zero, and what float8 cannot hold wraps around.
#
# Versions: triton 3.7.1 and 3.9.0 with torch 2.13.0; compiled for sm_90. No GPU is needed.
# Who meets it: who tests kernels on a CPU (TRITON_INTERPRET=1) against torch. The interpreter does not compute in bfloat16, which its manual
#   says; one computes in float32 and converts at the end, which it says to do. That conversion is another one: half of all numbers are a step too
#   small, so that sums of many results drift and tests need twice the tolerance. A float8 that was not clamped before is a plausible wrong
#   number, not the largest one, and neither nan nor infinity are left.
# Guess: to the nearest, ties to even, and saturating, as tl.cast says ("rtne") and the GPU's cvt.rn and cvt.rn.satfinite do.
# Seen:
#   bfloat16 of 1 + 3/512, nearest 1.0078125: interpreted 1.0
#   mean error of 4096 numbers between 1 and 2, in steps of bfloat16: interpreted -0.50, torch 0.00
#   float8_e4m3 of 500, 1e5, inf and nan, at most 448: interpreted 256.0 384.0 256.0 384.0
#   compiled (one number at a time or two): cvt.rn.bf16.f32 cvt.rn.satfinite.e4m3.f32
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
cat > casts.py <<'PYTHON'
import os
import re

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def cast(x, out, SIZE: tl.constexpr, TYPE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out + i, tl.load(x + i).to(TYPE).to(tl.float32))


TYPES = tl.bfloat16, tl.float8e4nv
if os.environ["TRITON_INTERPRET"] == "1":

    def interpreted(values, kind):
        out = torch.empty_like(values)
        cast[(1,)](values, out, len(values), kind)
        return out

    print("triton", triton.__version__)
    (value, _) = interpreted(torch.tensor([1 + 3 / 512, 1.0]), tl.bfloat16).tolist()
    nearest = torch.tensor(1 + 3 / 512).bfloat16().item()
    print(f"bfloat16 of 1 + 3/512, nearest {nearest}: interpreted {value}")
    x = 1 + torch.rand(4096, generator=torch.Generator().manual_seed(0))
    errors = [((found - x).mean() * 128).item() for found in (interpreted(x, tl.bfloat16), x.bfloat16().float())]
    print("mean error of 4096 numbers between 1 and 2, in steps of bfloat16: interpreted {:.2f}, torch {:.2f}".format(*errors))
    large = interpreted(torch.tensor([500, 1e5, float("inf"), float("nan")]), tl.float8e4nv).tolist()
    print("float8_e4m3 of 500, 1e5, inf and nan, at most 448: interpreted", *large)
    assert (nearest, value) == (1.0078125, 1.0) and abs(errors[0] + 0.5) < 0.02 and abs(errors[1]) < 0.02, errors
    assert large == [256, 384, 256, 384], large
else:
    types = {"x": "*fp32", "out": "*fp32", "SIZE": "constexpr", "TYPE": "constexpr"}
    found = set()
    for kind in TYPES:
        source = ASTSource(cast, signature=types, constexprs={"SIZE": 256, "TYPE": kind})
        ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
        found |= {name.replace("x2", "") for name in re.findall(r"cvt\.\S*(?:bf16|e4m3)\S*\.f32\b", ptx)}
    print("compiled (one number at a time or two):", *sorted(found))
    assert found == {"cvt.rn.bf16.f32", "cvt.rn.satfinite.e4m3.f32"}, found
PYTHON
python3 -m venv venv
venv/bin/pip install --quiet setuptools numpy "torch==2.13.0"
for version in 3.7.1 3.9.0; do
  venv/bin/pip install --quiet --no-deps "triton==$version"
  for interpret in 1 0; do
    TRITON_INTERPRET=$interpret TRITON_CACHE_DIR="$scratch/cache-$version" venv/bin/python -W ignore casts.py
  done
done
