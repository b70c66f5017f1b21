#!/usr/bin/env bash
# torch's generator on a CPU keeps 32 bits of a seed: seeds of 64 bits that differ in the upper half alone draw the same noise.
#
# Versions: torch 2.13.0 (CPU part).
# Who meets it: pipelines of pictures and video draw their noise on the CPU, so that it is the same on every GPU, and offer seeds of 64 bits.
#   Who puts something of their own into the upper half (user << 32 | number, a hash shifted to the left) gives everyone the same video.
# Guess: 64 bits count, since manual_seed takes -2^63 to 2^64 - 1, refuses more, and initial_seed() returns all of it.
# Seen:
#   initial_seed() of 7 + 2^32: 4294967303
#   the same noise from 7 and 7 + 2^32: True; from 7 and 8: False
#   1000 seeds of the form user << 32: 1 kind of noise
#   the same by torch.manual_seed(seed) and torch.randn: True
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet numpy "torch==2.13.0"
cd "$scratch"
"$scratch/venv/bin/python" -W error - <<'PYTHON'
import torch


def noise(seed):
    return torch.randn(1000, generator=torch.Generator().manual_seed(seed))


kept = torch.Generator().manual_seed(7 + 2**32).initial_seed()
print("initial_seed() of 7 + 2^32:", kept)
same, other = torch.equal(noise(7), noise(7 + 2**32)), torch.equal(noise(7), noise(8))
print(f"the same noise from 7 and 7 + 2^32: {same}; from 7 and 8: {other}")
kinds = len({noise(user << 32).numpy().tobytes() for user in range(1000)})
print("1000 seeds of the form user << 32:", kinds, "kind of noise")
torch.manual_seed(7)
drawn = torch.randn(1000)
torch.manual_seed(7 + 2**32)
alike = torch.equal(drawn, torch.randn(1000))
print("the same by torch.manual_seed(seed) and torch.randn:", alike)
assert (kept, same, other, kinds, alike) == (7 + 2**32, True, False, 1, True)
PYTHON
