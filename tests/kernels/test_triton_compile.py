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
from longlive_optimized.kernels import causal_conv_triton, dequantize_weight, int8_linear, modulate_norm, overlay_blend
from longlive_optimized.kernels import qk_norm_rope_store, quantize, quantize_keys, residual_norm, ring_advance
from longlive_optimized.kernels import ring_attention, rms_norm, rotate_sinks, x0_renoise

SIZES = {"BLOCK": 2048, "PAIRS": 64, "GATED": True, "RENOISE": True}
SIZES |= {"DIM": 128, "ROWS": 128, "KEYS": 64, "WIDE": False, "INT8": False, "GROUPS": 1, "RUN": 0, "HEADS": 4}
SIZES |= {"BITS": False, "ALIGNED": True, "SPLIT": True}
INTEGERS = ("shift_stride", "scale_stride", "group_rows", "size", "tokens", "sinks", "time_pairs")
INTEGERS += ("sink", "origin", "sink_tokens", "ring_tokens", "gate_stride", "gate_rows", "count", "index")
INTEGERS += ("frame_stride", "row_stride", "column_stride", "channel_stride", "top", "left", "width", "area")
INTEGERS += ("rows", "q_stride", "heads", "groups", "runs", "scales", "ring_runs", "sink_runs", "depth", "channels")
INTEGERS += ("whole", "parts")
TYPES = {"eps": "fp32", "slots": "*i64", "rope_time": "*fp32", "rope_space": "*fp32", "frames": "*u8", "panel": "*u8"}
TYPES |= {"offset": "fp32", "sigmas": "*fp64", "start": "*i64", "freqs": "*fp64", "sink_time": "*fp32"}
TYPES |= {"window": "*i64", "valid": "*i32", "scale_log2": "fp32", "pieces": "*i32", "sums": "*fp32"}
TYPES |= {"x_scale": "*fp32", "weight_scale": "*fp32", "out_scale": "*fp32", "values": "*i8", "weight": "*i8"}
TYPES |= dict.fromkeys(SIZES, "constexpr") | dict.fromkeys(INTEGERS, "i32")
INT8 = {"INT8": True, "out": "*i8"}
TYPES |= {"q_scale": "*fp32", "k_scale": "*fp32", "k_offset": "*fp32"}
RUNS8 = {"RUN": 8, "k_ring": "*i8"}
PRODUCT = {"x": "*i8", "GELU": False, "BLOCK": 128, "STEP": 64, "GROUPED": True, "EVEN": True}
modules = modulate_norm, overlay_blend, qk_norm_rope_store, residual_norm, rms_norm, ring_advance, rotate_sinks
modules += ring_attention, x0_renoise
cases = [(module, {}) for module in modules]
cases += [(modulate_norm, INT8), (residual_norm, INT8), (quantize, {"scale": "*fp32"}), (int8_linear, PRODUCT)]
cases += [(dequantize_weight, {"ROWS": 8, "BLOCK": 512})]
cases += [(ring_attention, RUNS8 | {"q": "*i8"}), (quantize_keys, RUNS8), (rotate_sinks, RUNS8)]
cases += [(qk_norm_rope_store, RUNS8 | {"q": "*i8"}), (qk_norm_rope_store, RUNS8 | {"q": "*i8", "v_ring": None})]
cases += [(int8_linear, PRODUCT | {"GELU": True, "out": "*i8"})]
ACTS = {"gain": "*fp32", "act_frames": "*i32", "saturated": "*i64", "pixels": "i32", "inverse": "fp32", "MOST": 127}
ACTS |= {"GROUPS": 16, "PIXELS": 32, "x_frames": "*i32", "LISTED": False}
cases += [(causal_conv_triton, ACTS), (causal_conv_triton, ACTS | {"INT8": True, "act": "*i8", "LISTED": True})]
cases += [(int8_linear, PRODUCT | {"GELU": True, "out": "*i8", "ROWS": 64, "BLOCK": 256})]
for (module, special), capability in itertools.product(cases, (80, 89, 90, 100, 120)):
    if capability in (89, 120) and module is not int8_linear:
        continue  # what differs there is how much shared memory there is
    kernel = getattr(module, "_kernel_int8", module._kernel) if "RUN" in special else module._kernel
    kernel = module._norm_kernel if module is causal_conv_triton else kernel
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
import re
import torch
from longlive_optimized.kernels.bench import causal_conv as plain, causal_conv_int8 as int8, conv_pixels as pixels
from longlive_optimized.kernels.causal_conv import Kind, causal_conv, pack
from longlive_optimized.kernels.causal_conv_int8 import causal_conv_int8
from longlive_optimized.kernels.conv_pixels import conv_pixels
from support.triton_builds import SHARED, builds

ACT, SCALE, SATURATED = 9, 12, 13  # causal_conv's arguments
layers = {(layer.name, layer.raw, layer.act): layer for layer in plain.decoder(1, 2)}


def layer(name, raw=True, act=True, dtype=torch.bfloat16):
    args = list(plain.arguments(layers[name, raw, act], "meta", dtype))
    return causal_conv, args + [0.0, None][: SATURATED + 1 - len(args)]


def to_int8(operator, args):
    args[ACT] = args[ACT].unflatten(1, (-1, 2)).movedim(2, -2).flatten(-2).to(torch.int8)
    args[SCALE], args[SATURATED] = 1 / 32, torch.zeros(1, dtype=torch.int64, device="meta")
    return operator, args


def narrow(depth):
    weight, indices = torch.zeros(40, depth, 1, 1, 1, device="meta"), torch.zeros(2, dtype=torch.int32, device="meta")
    x, y = (torch.zeros(2, channels // 8, 3, 5, 8, device="meta").bfloat16() for channels in (depth, 40))
    bias = torch.zeros(40, device="meta")
    weight = pack(Kind.POINT, weight.bfloat16())
    return causal_conv, [x, indices, weight, bias, int(Kind.POINT), None, None, y, indices, y, indices, bias]


def in_int8(part, number=0):
    return causal_conv_int8, [case for case in int8.BENCH.real if part in case.shape][number].make("meta")


CALLS = [
    layer("second of a block, 192"), layer("second of a block, shortcut"), layer("second of a block, 96"),
    layer("time, 384", act=False), layer("up, 384 to 192"), layer("up, 192 to 96"), narrow(8), narrow(24),
    to_int8(*layer("first of a block, 192", raw=False)), layer("second of a block, 96", dtype=torch.float32),
    in_int8("second of a block, 192"), in_int8("second of a block, 96", 1), in_int8("first of a block, 384"),
    (conv_pixels, pixels.BENCH.real[0].make("meta")),
]
LARGEST = CALLS[0], CALLS[10], CALLS[13]  # where only these are compiled, products and memory are those of other chips
for capability, shared in SHARED.items():
    for operator, args in LARGEST if capability in (86, 89) else CALLS:
        for build in builds(lambda: operator.impls["triton"][0](*args), capability):
            case = operator.name, [t.shape if isinstance(t, torch.Tensor) else t for t in args], build[:-1], capability
            assert build.shared <= shared, case
            # What a few addresses and the epilogue's values take. On sm_90 a tile of 256 pixels is faster all the same.
            assert build.registers <= 255 and build.local <= (416 if capability == 90 else 192), case
            if "norm" in build.kernel:
                continue
            assert "cp.async.c" in build.ptx or args[0].shape[1] <= 3, case  # but where a single step is all
            # All that is multiplied comes in copies of 16 bytes.
            assert not re.search(r"ld\\.global(\\.\\w+)*\\.b(8|16)\\b", build.ptx), case
            assert ("mma" in build.ptx) == (args[0].dtype != torch.float32), case
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


@pytest.mark.parametrize("script", [COMPILE, CONVOLUTIONS, BLOCKS], ids=["all", "convolutions", "int8_block_linear"])
def test_compiles_ahead_of_time(script):
    env = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
