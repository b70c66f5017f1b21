"""The tiles of attention and of products in int8 fit each generation: shared memory, registers, copies ahead of use."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# In a process of its own: here the kernels may be interpreted ones.
COMPILE = """
import re, subprocess, sys, tempfile
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from longlive_optimized.kernels import int8_linear, ring_attention

SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB that a CTA may have
TYPES = dict.fromkeys(("q_scale", "k_scale", "x_scale", "weight_scale", "out_scale"), "*fp32")
TYPES |= {"valid": "*i32", "pieces": "*i32", "sums": "*fp32", "scale_log2": "fp32", "x": "*i8", "weight": "*i8"}
INTEGERS = "rows", "tokens", "scales", "q_stride", "heads", "whole", "parts", "groups", "depth", "channels", "width"
TYPES |= dict.fromkeys(INTEGERS, "i32")
MULTIPLES = "q_stride", "depth", "channels", "width"


def check(case, kernel, tile, special, spilled=0):
    types = dict.fromkeys(kernel.arg_names, "*bf16") | {n: t for n, t in TYPES.items() if n in kernel.arg_names}
    copied = getattr(tile, "copied", False)
    if copied:
        types |= {n: f"tensordesc<i8[{r}, {tile.STEP}]>" for n, r in (("x", tile.ROWS), ("weight", tile.BLOCK))}
    types |= {n: t for n, t in special.items() if isinstance(t, str)}
    constants = {n: value for n, value in special.items() if not isinstance(value, str)}
    constants |= {n: value for n, value in tile._asdict().items() if n in kernel.arg_names}
    types |= dict.fromkeys(constants, "constexpr")
    multiples = [i for i, (n, t) in enumerate(types.items()) if t[0] == "*" or n in MULTIPLES]
    multiples = {(i,): [["tt.divisibility", 16]] for i in multiples}
    source = ASTSource(kernel, signature=types, constexprs=constants, attrs=multiples)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "maxnreg": tile.registers}
    options |= {"enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", case[0], 32), options=options)
    assert compiled.metadata.shared <= SHARED[case[0]] * 1024, (case, compiled.metadata.shared)
    if copied:  # copies of later steps are under way while one is computed
        assert f"memdesc<{tile.num_stages}x{tile.ROWS}x{tile.STEP}xi8" in compiled.asm["ttgir"], case
    else:
        waits = [int(n) for n in re.findall(r"async_wait .*?num = (\\d+)", compiled.asm["ttgir"])]
        assert max(waits) > 0, (case, waits)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    stack, local = (int(re.search(what + r":(\\d+)", usage)[1]) for what in ("STACK", "LOCAL"))
    assert stack <= spilled and local == 0, (case, usage)


PRODUCTS = ("qkv", 4608, 1, None), ("out", 1536, 1, None), ("down", 1536, 35, None), ("up", 8960, 1, 256)
for capability in map(int, sys.argv[1:]):
    version = divmod(capability, 10)
    for in_int8 in (True, False):
        tile = ring_attention._Tile.of(version, True, in_int8)
        special = {"DIM": 128, "WIDE": False}
        if in_int8:
            special |= {"RUN": 8, "BITS": tile.bits, "ALIGNED": True, "q": "*i8", "k_ring": "*i8"}
            special |= {"SPLIT": tile.together is not None}
            special |= {"v_ring": "*fp16"} if tile.half else {}
        kernel = ring_attention._kernel_int8 if in_int8 else ring_attention._kernel
        # Two programs of 128 registers on a multiprocessor gain more than what they keep in local memory costs.
        check((capability, "attention", in_int8), kernel, tile, special, spilled=256 if tile.registers else 16)
    for name, channels, groups, width in PRODUCTS:
        tile = int8_linear._Tile.of(version, channels, groups, 1536 if groups == 1 else 256, width, aligned=True)
        special = {"GELU": width is not None, "GROUPED": groups > 1}
        special |= {} if tile.copied else {"EVEN": True, "BITS": tile.bits and groups > 1}
        special |= {"out": "*i8"} if width else {}
        special |= {"groups": 1} if groups == 1 else {}
        # GELU of a tile of 256 channels keeps words in local memory, outside the loop.
        kernel = int8_linear._copied_kernel if tile.copied else int8_linear._kernel
        check((capability, name), kernel, tile, special, spilled=256 if width else 0)
"""


@pytest.mark.parametrize("capabilities", [(80, 86), (89, 90), (100, 120)], ids=str)
def test_tiles_fit(capabilities):
    env = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", COMPILE, *map(str, capabilities)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
