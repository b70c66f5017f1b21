#!/usr/bin/env bash
# diffusers multiplies a Wan LoRA's alpha into the caller's own tensors: the same dict loaded again acts more weakly.
#
# Versions: diffusers 0.42.1, torch 2.13.0 (peft 0.21.2, transformers 5.24.0).
# Who meets it: a server that reads a LoRA once and keeps its tensors for several pipelines, or loads it again after unloading.
#   WanPipeline.load_lora_weights(dict) copies the dict, "instead of modifying it inplace", but not the tensors: with .alpha in the
#   file (ComfyUI's names) cross-attention and feed-forward are scaled in place, self-attention is not. So the second load is
#   neither the LoRA nor a weaker one of it, without a warning.
# Seen (alpha / rank is 0.5; strength of each module's change as first, second and third read from one dict):
#   self_attn.q   0.5 0.5 0.5
#   cross_attn.q  0.5 0.25 0.125
#   ffn.0         0.5 0.25 0.125
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet "torch==2.13.0" "diffusers==0.42.1" "peft==0.21.2" "transformers==5.24.0"
cd "$scratch"
"$scratch/venv/bin/python" - <<'PYTHON'
import torch
from diffusers import WanPipeline

names = {"self_attn.q": "attn1.to_q", "cross_attn.q": "attn2.to_q", "ffn.0": "ffn.net.0.proj"}
lora = {}
for name in names:
    lora[f"diffusion_model.blocks.0.{name}.lora_A.weight"] = torch.ones(4, 8)
    lora[f"diffusion_model.blocks.0.{name}.lora_B.weight"] = torch.ones(8, 4)
    lora[f"diffusion_model.blocks.0.{name}.alpha"] = torch.tensor(2.0)

seen = {name: [] for name in names}
for _ in range(3):
    read = WanPipeline.lora_state_dict(lora.copy())  # what load_lora_weights does with a dict
    for name, theirs in names.items():
        a, b = (read[f"transformer.blocks.0.{theirs}.lora_{half}.weight"] for half in "AB")
        seen[name].append(((b @ a).mean() / 4).item())
for name, strengths in seen.items():
    print(f"{name:13}", *strengths)
assert seen == {"self_attn.q": [0.5] * 3, "cross_attn.q": [0.5, 0.25, 0.125], "ffn.0": [0.5, 0.25, 0.125]}, seen
PYTHON
