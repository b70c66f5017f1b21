#!/usr/bin/env bash
# Tensors that safetensors has loaded turn into another file's when that is copied over the first one: load_file maps, it does not read.
#
# Versions: safetensors 0.8.0, torch 2.13.0, Python 3.11, Linux.
# Who meets it: who keeps a LoRA or checkpoint in memory while a newer one is copied to the same path (cp, shutil.copy, docker cp, a
#   trainer that writes its last.safetensors in place). Nothing is loaded again, yet the numbers are the new ones, also those that were
#   read before. safetensors.torch.load of the file's bytes keeps what it has read; so does load_file where the new file is renamed
#   into place, as save_file does.
# Seen (the file holds ones; then one of twos takes its place; an element before and after):
#   load_file, copied over   1.0 then 2.0
#   load_file, renamed over  1.0 then 1.0
#   load, copied over        1.0 then 1.0
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet "torch==2.13.0" "safetensors==0.8.0" "numpy==2.4.6"
cd "$scratch"
"$scratch/venv/bin/python" - <<'PYTHON'
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save_file

SIZE = 1 << 20


def change(read, replace):
    """An element of a file of ones, before and after ``replace`` puts one of twos in its place."""
    save_file({"w": torch.ones(SIZE)}, "a.safetensors")
    save_file({"w": torch.full((SIZE,), 2.0)}, "b.safetensors")
    tensor = read("a.safetensors")["w"]
    before = tensor[SIZE // 2].item()
    replace("b.safetensors", "a.safetensors")
    return before, tensor[SIZE // 2].item()


def of_bytes(path):
    return load(Path(path).read_bytes())


seen = {
    "load_file, copied over": change(load_file, shutil.copyfile),
    "load_file, renamed over": change(load_file, os.replace),
    "load, copied over": change(of_bytes, shutil.copyfile),
}
for how, (before, after) in seen.items():
    print(f"{how:24} {before} then {after}")
assert list(seen.values()) == [(1.0, 2.0), (1.0, 1.0), (1.0, 1.0)], seen
PYTHON
