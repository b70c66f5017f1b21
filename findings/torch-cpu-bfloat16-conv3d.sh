#!/usr/bin/env bash
# On a CPU without AVX-512 torch's conv3d takes a hundred times as long in bfloat16, and in float16, as in float32.
#
# Versions: torch 2.13.0 (CPU part; an x86 CPU with AVX2 alone).
# Who meets it: whoever loads a video VAE in the dtype of its model on such a CPU (AMD before Zen 4, Intel's desktops). Wan's decoder is
#   nearly all conv3d: what takes seconds in float32 takes minutes, without a warning, and only a profile shows slow_conv3d.
# Guess: bfloat16 is widened to float32 on the way, at worst some times slower, as a product of matrices is (8 to 10 times here).
# Seen, one thread, [2, 16, 6, 32, 48] by [16, 16, 3, 3, 3]:
#   float32: Mkldnn; bfloat16, float16: Slow3d (oneDNN is not asked: torch.ops.mkldnn._is_mkldnn_bf16_supported() is False)
#   bfloat16 takes 100 to 170 times as long as float32, float16 as long as bfloat16
#   x.float(), weight.float(), conv3d and bfloat16() at the end: the same up to rounding, 1.1 to 2 times float32's time
# Where oneDNN takes bfloat16 (AVX-512, AMX) there is nothing to see, and the script says so. Exits non-zero if the behaviour changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet numpy "torch==2.13.0"
cd "$scratch"
"$scratch/venv/bin/python" -W error - <<'PYTHON'
import platform
import sys
import time

import torch
import torch.nn.functional as F

if platform.machine() not in ("x86_64", "AMD64"):
    sys.exit(print("this CPU is no x86: nothing to see"))
if torch.ops.mkldnn._is_mkldnn_bf16_supported():
    sys.exit(print("oneDNN takes bfloat16 on this CPU (AVX-512, AMX): nothing to see"))
torch.set_num_threads(1)
x, weight = torch.randn(2, 16, 6, 32, 48), torch.randn(16, 16, 3, 3, 3)
halves = torch.bfloat16, torch.float16


def seconds(call):
    """The least processor time of five."""
    taken = []
    for _ in range(5):
        started = time.thread_time()
        call()
        taken.append(time.thread_time() - started)
    return min(taken)


def backend(dtype):
    return torch._C._select_conv_backend(
        x.to(dtype), weight.to(dtype), None, [1] * 3, [0, 1, 1], [1] * 3, False, [0] * 3, 1
    ).name


def convolve(dtype):
    left, right = x.to(dtype), weight.to(dtype)
    return lambda: F.conv3d(left, right, padding=(0, 1, 1))


def widened():
    return F.conv3d(*(each.bfloat16().float() for each in (x, weight)), padding=(0, 1, 1)).bfloat16()


backends = {dtype: backend(dtype) for dtype in (torch.float32, *halves)}
print(*(f"{dtype}: {name}" for dtype, name in backends.items()), sep="; ")
single = seconds(convolve(torch.float32))
ratios = {dtype: seconds(convolve(dtype)) / single for dtype in halves}
print(*(f"{dtype} takes {ratio:.0f} times as long as float32" for dtype, ratio in ratios.items()), sep="; ")
wide = seconds(widened) / single
print(f"widened to float32 and rounded at the end: {wide:.1f} times")
left, right = torch.randn(18432, 432), torch.randn(432, 16)
product = seconds(lambda: left @ right)
left, right = left.bfloat16(), right.bfloat16()
print(f"a product of matrices of as many terms: {seconds(lambda: left @ right) / product:.0f} times in bfloat16")
torch.testing.assert_close(widened(), convolve(torch.bfloat16)(), rtol=0.05, atol=0.2)
assert list(backends.values()) == ["Mkldnn", "Slow3d", "Slow3d"], backends
assert min(ratios.values()) > 20, ratios
assert wide < 8, wide
PYTHON
