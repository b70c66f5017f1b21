"""Triton's kernels compile, without a GPU, for every generation that they are meant for."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# In a process of its own: here the kernels may be interpreted ones.
COMPILE = """
import itertools
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from longlive_optimized.kernels import causal_conv, dequantize_weight, int8_linear, modulate_norm, overlay_blend
from longlive_optimized.kernels import qk_norm_rope_store, quantize, quantize_keys, residual_norm, ring_advance
from longlive_optimized.kernels import ring_attention, rms_norm, rotate_sinks, x0_renoise

SIZES = {"BLOCK": 2048, "PAIRS": 64, "GATED": True, "RENOISE": True}
SIZES |= {"DIM": 128, "ROWS": 128, "KEYS": 64, "WIDE": False, "INT8": False, "GROUPS": 1, "RUN": 0}
INTEGERS = ("shift_stride", "scale_stride", "group_rows", "size", "tokens", "sinks", "time_pairs")
INTEGERS += ("sink", "origin", "sink_tokens", "ring_tokens", "gate_stride", "gate_rows", "count", "index")
INTEGERS += ("frame_stride", "row_stride", "column_stride", "channel_stride", "top", "left", "width", "area")
INTEGERS += ("rows", "q_stride", "heads", "groups", "runs", "scales", "ring_runs", "sink_runs", "depth", "channels")
TYPES = {"eps": "fp32", "slots": "*i64", "rope_time": "*fp32", "rope_space": "*fp32", "frames": "*u8", "panel": "*u8"}
TYPES |= {"offset": "fp32", "sigmas": "*fp64", "start": "*i64", "freqs": "*fp64", "sink_time": "*fp32"}
TYPES |= {"window": "*i64", "valid": "*i32", "scale_log2": "fp32"}
TYPES |= {"x_scale": "*fp32", "weight_scale": "*fp32", "out_scale": "*fp32", "values": "*i8", "weight": "*i8"}
TYPES |= dict.fromkeys(SIZES, "constexpr") | dict.fromkeys(INTEGERS, "i32")
INT8 = {"INT8": True, "out": "*i8"}
TYPES |= {"q_scale": "*fp32", "k_scale": "*fp32", "k_offset": "*fp32"}
RUNS8 = {"RUN": 8, "k_ring": "*i8"}
PRODUCT = {"x": "*i8", "GELU": False, "BLOCK": 128, "STEP": 64}
modules = modulate_norm, overlay_blend, qk_norm_rope_store, residual_norm, rms_norm, ring_advance, rotate_sinks
modules += ring_attention, x0_renoise
cases = [(module, {}) for module in modules]
cases += [(modulate_norm, INT8), (residual_norm, INT8), (quantize, {"scale": "*fp32"}), (int8_linear, PRODUCT)]
cases += [(dequantize_weight, {"ROWS": 8, "BLOCK": 512})]
cases += [(ring_attention, RUNS8 | {"q": "*i8"}), (quantize_keys, RUNS8), (rotate_sinks, RUNS8)]
cases += [(qk_norm_rope_store, RUNS8 | {"q": "*i8"})]
cases += [(int8_linear, PRODUCT | {"GELU": True, "out": "*i8"})]
ACTS = {"gain": "*fp32", "act_frames": "*i32", "saturated": "*i64", "pixels": "i32", "inverse": "fp32", "MOST": 127}
ACTS |= {"GROUPS": 16, "PIXELS": 32, "x_frames": "*i32", "LISTED": False}
cases += [(causal_conv, ACTS), (causal_conv, ACTS | {"INT8": True, "act": "*i8", "LISTED": True})]
cases += [(int8_linear, PRODUCT | {"GELU": True, "out": "*i8", "ROWS": 64, "BLOCK": 256})]
for (module, special), capability in itertools.product(cases, (80, 89, 90, 100, 120)):
    if capability in (89, 120) and module is not int8_linear:
        continue  # what differs there is how much shared memory there is
    kernel = getattr(module, "_kernel_int8", module._kernel) if "RUN" in special else module._kernel
    kernel = module._norm_kernel if module is causal_conv else kernel
    types = dict.fromkeys(kernel.arg_names, "*bf16")
    types |= {n: TYPES[n] for n in types if n in TYPES}
    constants = {n: SIZES[n] for n in types if n in SIZES}
    for name, value in special.items():
        (types if isinstance(value, str) else constants)[name] = value
    types |= dict.fromkeys(constants, "constexpr")
    multiples = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(types.values()) if t[0] == "*"}
    multiples |= {(i,): [["tt.divisibility", 16]] for i, n in enumerate(types) if n in ("depth", "channels", "width")}
    source = ASTSource(kernel, signature=types, constexprs=constants, attrs=multiples)
    options = {"num_warps": 8, "num_stages": 4} if module is int8_linear else {}
    options |= {"num_warps": 1} if special is RUNS8 else {}
    rounds = module is quantize or special.get("RUN") and module is not ring_attention
    options |= {"enable_fp_fusion": False} if rounds else {}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    # The reduction of a large float64 angle keeps a few words in local memory: one launch of a few programs a block.
    assert ".local" not in compiled.asm["ptx"] or module is ring_advance
    assert "fma.rn" not in compiled.asm["ptx"] or not rounds  # it would round values otherwise
    if module is int8_linear:
        assert compiled.metadata.shared <= 99 * 1024, (special, capability, compiled.metadata.shared)
"""

CONVOLUTIONS = """
import subprocess, tempfile
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from longlive_optimized.kernels.causal_conv import Kind, _kernel, _static, _Tile

SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB that a CTA may have
CASES = [
    # kind, channels of a part, padded ones of x, of the residual, dtype, raw, act, int8
    (Kind.CAUSAL, 192, 192, 192, "bf16", True, True, False),
    (Kind.CAUSAL, 192, 384, 192, "bf16", True, False, False),
    (Kind.CAUSAL, 96, 96, 96, "bf16", True, True, False),
    (Kind.CAUSAL, 192, 192, 0, "bf16", False, True, True),
    (Kind.TIME, 192, 384, 0, "bf16", True, False, False),
    (Kind.UP, 192, 384, 0, "bf16", True, True, False),
    (Kind.UP, 96, 192, 0, "bf16", True, True, False),
    (Kind.POINT, 40, 32, 0, "bf16", True, True, False),
    (Kind.CAUSAL, 96, 96, 96, "fp32", True, False, False),
]
for capability, shared in SHARED.items():
    for kind, width, depth, residual, dtype, raw, act, int8 in CASES:
        tile = _Tile.of(width, depth, residual, dtype == "bf16", shared * 1024)
        constants = _static(kind, width, tile, residual > 0, raw, act, int8, dtype == "bf16")
        constants["WIDE"] = dtype != "bf16"
        types = dict.fromkeys(_kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
        types |= {n: "*i32" for n in types if n.endswith("frames")}
        types |= dict.fromkeys(("x", "weight", "residual", "raw", "act"), "*" + dtype)
        types |= {"bias": "*fp32", "gain": "*fp32", "saturated": "*i64", "inverse": "fp32", "eps": "fp32"}
        types |= {"act": "*i8"} if int8 else {}
        aligned = ("channels", "width", "span", "part_size") if width % 16 == 0 else ()
        multiples = {
            (i,): [["tt.divisibility", 16]] for i, (n, t) in enumerate(types.items()) if t[0] == "*" or n in aligned
        }
        source = ASTSource(_kernel, signature=types, constexprs=constants, attrs=multiples)
        options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        case = capability, kind, width, depth, residual, dtype, int8
        assert compiled.metadata.shared <= shared * 1024, (case, compiled.metadata.shared)
        assert "cp.async.ca" in compiled.asm["ptx"], case
        assert "ld.global.b16" not in compiled.asm["ptx"], case  # all that is multiplied comes in copies of 16 bytes
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            tool = triton.knobs.nvidia.cuobjdump.path
            usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        assert " STACK:0 " in usage and " LOCAL:0 " in usage, (case, usage)  # nothing is spilled
"""

BLOCKS = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from longlive_optimized.kernels.int8_block_linear import _kernel, launch_of

for capability in (80, 86, 89, 90, 100, 120):
    for rows, wide in [(rows, False) for rows in (1, 32, 64, 512)] + [(1, True), (512, True)]:
        launch = launch_of(rows, wide)
        constants = {n: v for n, v in launch.items() if n.isupper()}
        float_type = "*fp32" if wide else "*bf16"
        types = {n: "i32" for n in _kernel.arg_names} | dict.fromkeys(("x", "out"), float_type)
        types |= {"weight": "*i8", "weight_scale": "*bf16"} | dict.fromkeys(constants, "constexpr")
        multiples = {(i,): [["tt.divisibility", 16]] for i, (n, t) in enumerate(types.items()) if t[0] == "*"}
        multiples |= {(i,): [["tt.divisibility", 16]] for i, n in enumerate(types) if n in ("depth", "channels")}
        source = ASTSource(_kernel, signature=types, constexprs=constants, attrs=multiples)
        options = {n: v for n, v in launch.items() if not n.isupper()}
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        case = capability, rows, wide, compiled.metadata.shared
        assert compiled.asm["cubin"] and ".local" not in compiled.asm["ptx"], case
        assert compiled.metadata.shared <= 99 * 1024, case
        assert "cp.async.cg" in compiled.asm["ptx"], case  # the weight comes in copies of 16 bytes, ahead of its use
"""


@pytest.mark.parametrize("script", [COMPILE, CONVOLUTIONS, BLOCKS], ids=["all", "causal_conv", "int8_block_linear"])
def test_compiles_ahead_of_time(script):
    env = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
