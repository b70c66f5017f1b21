#!/usr/bin/env bash
# On a CPU torch._int_mm returns memory that nobody wrote, without an error, for a depth of 1 and a transposed weight.
#
# Versions: torch 2.13.0 (CPU part; a machine with VNNI).
# Who meets it: int8 linears call torch._int_mm(x, weight.t()), as libraries of quantisation do on CPUs. A layer with one input feature
#   (a time, a strength, a class) then gives noise, another one each run.
# Guess: the products, or an error as for other shapes that it does not take.
# Seen:
#   depth 1, a [1, channels] weight: right
#   depth 1, weight.t() of a [channels, 1] weight: wrong, no error (its strides, 1 and 1, count as contiguous)
#   depth 2, weight.t(): right
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet numpy "torch==2.13.0"
cd "$scratch"
"$scratch/venv/bin/python" -W error - <<'PYTHON'
import torch

x, weight = (torch.randint(-127, 128, (size, 2), dtype=torch.int8) for size in (20, 8))


def is_right(left, right):
    wanted = (left.double() @ right.double()).int()
    return any(torch.equal(torch._int_mm(left, right), wanted) for _ in range(5))


one, row = x[:, :1].contiguous(), weight[:, :1].contiguous()
cases = {
    "depth 1, a [1, channels] weight": is_right(one, torch.empty(1, 8, dtype=torch.int8).copy_(row.t())),
    "depth 1, weight.t() of a [channels, 1] weight": is_right(one, row.t()),
    "depth 2, weight.t()": is_right(x, weight.t()),
}
for case, right in cases.items():
    print(f"{case}: {'right' if right else 'wrong, no error'}")
assert list(cases.values()) == [True, False, True], cases
PYTHON
