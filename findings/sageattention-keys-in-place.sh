#!/usr/bin/env bash
# SageAttention takes the mean from the caller's keys in place, so a KV cache is wrong from the second call on.
#
# Versions: sageattention 1.0.6 with torch 2.13.0 and triton 3.7.1. No GPU is needed: Triton interprets its kernels, and torch is
#   made to call the tensors CUDA's.
# Who meets it: loops that keep keys and give a view of the cache to every call, as autoregressive video and language models do. Keys of
#   the call before have lost their mean, new ones have theirs, so that scores of old and new keys are no longer of one kind. One call, or
#   keys that are made anew for each, show nothing.
# Guess: attention leaves its arguments alone; the mean is taken from a copy, or within the kernel.
# Seen: `k -= km` on the argument. Keys whose mean is 3 deviations: the first call is 1.2 % off exact attention, and the cache has
#   changed; after more keys the next call is 71 % off, where a copy of the same keys gives 1.2 %. smooth_k=False, or a copy for each
#   call, avoids it.
# Exits non-zero if that changes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet numpy "torch==2.13.0" "triton==3.7.1" "sageattention==1.0.6"
cd "$scratch"
TRITON_INTERPRET=1 "$scratch/venv/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F
from sageattention import sageattn

torch.Tensor.is_cuda = True
torch.cuda.set_device = lambda device: None
torch.manual_seed(0)
heads, channels = 2, 64
mean = 3 * torch.randn(1, 1, heads, channels)
query, values = torch.randn(1, 64, heads, channels).half(), torch.randn(1, 256, heads, channels).half()
first, more = ((torch.randn(1, 128, heads, channels) + mean).half() for _ in range(2))


def error(got, keys):
    q, k, v = (x.double().transpose(1, 2) for x in (query, keys, values[:, : keys.shape[1]]))
    want = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return ((got - want).norm() / want.norm()).item()


cache = torch.empty(1, 256, heads, channels, dtype=torch.half)
cache[:, :128] = first
one = error(sageattn(query, cache[:, :128], values[:, :128], tensor_layout="NHD"), first)
changed = not torch.equal(cache[:, :128], first)
cache[:, 128:] = more
both = torch.cat((first, more), dim=1)
two = error(sageattn(query, cache, values, tensor_layout="NHD"), both)
copied = error(sageattn(query, both.clone(), values, tensor_layout="NHD"), both)
print(f"first call: {one:.3f} off; the cache {'has changed' if changed else 'is as it was'}")
print(f"second call on the cache: {two:.3f} off; on a copy of the same keys: {copied:.3f} off")
assert one < 0.02 and changed and two > 0.5 and copied < 0.02
PYTHON
