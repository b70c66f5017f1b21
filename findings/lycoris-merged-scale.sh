#!/usr/bin/env bash
# LyCORIS merges a LoHa or LoKr with (alpha / rank) squared: weights that were trained at one strength are merged at another.
#
# Versions: lycoris-lora 4.1.3, torch 2.13.0.
# Who meets it: whoever trains a LoHa or LoKr with alpha below its rank (the usual case) and then merges it with LyCORIS' own
#   network.merge_to to publish or to run faster. Running multiplies with alpha / rank once, merging twice; a LoRA (LoCon) is
#   merged right. PEFT, which has both kinds too, is not affected.
# Seen (alpha 1, rank 4; how strongly merging changes the weights compared with running):
#   lora 1.0
#   loha 0.25
#   lokr 0.25
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet numpy safetensors toml tqdm einops "torch==2.13.0"
"$scratch/venv/bin/pip" install --quiet --no-deps "lycoris-lora==4.1.3"
cd "$scratch"
"$scratch/venv/bin/python" - 2>/dev/null <<'PYTHON'
import logging

import torch
from lycoris import create_lycoris
from torch import nn

logging.disable(logging.CRITICAL)
seen = {}
for kind in ("lora", "loha", "lokr"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 128, bias=False))
    base = model[0].weight.detach().clone()
    network = create_lycoris(model, 1.0, linear_dim=4, linear_alpha=1, algo=kind).eval()
    network.apply_to()
    for parameter in network.parameters():  # as if it had been trained
        nn.init.normal_(parameter, std=0.5)
    running = model(torch.eye(128)).T.detach() - base
    network.restore()
    network.merge_to(1.0)
    merged = model[0].weight.detach() - base
    seen[kind] = round((merged.norm() / running.norm()).item(), 3)
    assert torch.allclose(merged, seen[kind] * running, atol=1e-4), kind
    print(kind, seen[kind])
assert seen == {"lora": 1.0, "loha": 0.25, "lokr": 0.25}, seen
PYTHON
