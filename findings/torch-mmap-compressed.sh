#!/usr/bin/env bash
# torch.load(mmap=True) takes the compressed bytes of a compressed checkpoint for its numbers, without a word.
#
# Versions: torch 2.13.0, Python 3.11's zipfile.
# Who meets it: a checkpoint is a zip archive; packing it again (zip -9, a storage or release tool) gives a file of half the size
#   that torch.load still reads right. Whoever maps it (torch.load(..., mmap=True), as loaders of large checkpoints do; none was run here)
#   gets other weights: mapped reads look up where a record's bytes begin, but not whether they are stored or deflated.
# Seen:
#   packed again, whole file read: the same numbers
#   packed again, mapped: other numbers in 3 of 3 tensors, no error, no warning
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet numpy "torch==2.13.0"
cd "$scratch"
"$scratch/venv/bin/python" -W error - <<'PYTHON'
import zipfile

import torch

weights = {name: torch.arange(float(size)).remainder(7) for name, size in (("a", 1000), ("b", 1000), ("c", 3))}
weights["z"] = torch.randint(2**31, (2000,), dtype=torch.int64).double()  # hardly compressible, so that the file goes on behind
torch.save(weights, "plain.pt")
with zipfile.ZipFile("plain.pt") as plain, zipfile.ZipFile("packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
    for name in plain.namelist():
        packed.writestr(name, plain.read(name), zipfile.ZIP_STORED if name.endswith("data/3") else None)

whole = torch.load("packed.pt", mmap=False)
assert all(torch.equal(whole[name], weights[name]) for name in weights)
print("packed again, whole file read: the same numbers")
mapped = torch.load("packed.pt", mmap=True)
wrong = [name for name in "abc" if not torch.equal(mapped[name], weights[name])]
print(f"packed again, mapped: other numbers in {len(wrong)} of 3 tensors, no error, no warning")
assert wrong == ["a", "b", "c"], wrong
PYTHON
