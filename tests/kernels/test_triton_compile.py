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
from longlive_optimized.kernels import modulate_norm, overlay_blend, qk_norm_rope_store, residual_norm, rms_norm
from longlive_optimized.kernels import ring_advance, ring_attention, rotate_sinks, x0_renoise

SIZES = {"BLOCK": 2048, "PAIRS": 64, "GATED": True, "RENOISE": True}
SIZES |= {"DIM": 128, "ROWS": 128, "KEYS": 64, "WIDE": False}
INTEGERS = ("shift_stride", "scale_stride", "group_rows", "size", "tokens", "sinks", "time_pairs")
INTEGERS += ("sink", "origin", "sink_tokens", "ring_tokens", "gate_stride", "gate_rows", "count", "index")
INTEGERS += ("frame_stride", "row_stride", "column_stride", "channel_stride", "top", "left", "width", "area")
INTEGERS += ("rows", "q_stride", "heads")
TYPES = {"eps": "fp32", "slots": "*i64", "rope_time": "*fp32", "rope_space": "*fp32", "frames": "*u8", "panel": "*u8"}
TYPES |= {"offset": "fp32", "sigmas": "*fp64", "start": "*i64", "freqs": "*fp64", "sink_time": "*fp32"}
TYPES |= {"window": "*i64", "valid": "*i32", "scale_log2": "fp32"}
TYPES |= dict.fromkeys(SIZES, "constexpr") | dict.fromkeys(INTEGERS, "i32")
modules = modulate_norm, overlay_blend, qk_norm_rope_store, residual_norm, rms_norm, ring_advance, rotate_sinks
modules += ring_attention, x0_renoise
for module, capability in itertools.product(modules, (80, 90, 100)):
    kernel = module._kernel
    types = dict.fromkeys(kernel.arg_names, "*bf16")
    types |= {n: TYPES[n] for n in types if n in TYPES}
    constants = {n: SIZES[n] for n in types if n in SIZES}
    source = ASTSource(kernel, signature=types, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
    # The reduction of a large float64 angle keeps a few words in local memory: one launch of a few programs a block.
    assert ".local" not in compiled.asm["ptx"] or module is ring_advance
"""


def test_compiles_ahead_of_time():
    env = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
