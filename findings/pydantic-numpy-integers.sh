#!/usr/bin/env bash
# pydantic reads a NumPy integer for an int by way of a float: above 2^53 it becomes another number, without a word.
#
# Versions: pydantic 2.14.4, NumPy 2.4.6.
# Who meets it: whoever draws seeds with NumPy (rng.integers(2**63)) and hands them to a pydantic model or dataclass, such as the
#   request of an image or video server: the seed in force is not the one that was drawn, so the picture cannot be made
#   again from the seed that was noted. A torch tensor of one element goes the same way. strict=True refuses both.
# Seen:
#   int: 9007199254740993 -> 9007199254740993
#   numpy.int64: 9007199254740993 -> 9007199254740992, no error, no warning
#   993 of 1000 seeds drawn with NumPy below 2^63 are other seeds afterwards
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet "pydantic==2.14.4" "numpy==2.4.6"
"$scratch/venv/bin/python" -W error - <<'PYTHON'
import numpy as np
from pydantic import BaseModel


class Job(BaseModel):
    seed: int


seed = 2**53 + 1
print(f"int: {seed} -> {Job(seed=seed).seed}")
print(f"numpy.int64: {seed} -> {Job(seed=np.int64(seed)).seed}, no error, no warning")
assert Job(seed=seed).seed == seed and Job(seed=np.int64(seed)).seed == seed - 1
drawn = np.random.default_rng(0).integers(2**63 - 2**20, size=1000)
others = sum(Job(seed=one).seed != int(one) for one in drawn)
print(f"{others} of 1000 seeds drawn with NumPy below 2^63 are other seeds afterwards")
assert others >= 990, others
PYTHON
