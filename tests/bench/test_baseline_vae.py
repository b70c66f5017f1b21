"""The baseline's decoder that times are compared with computes what the engine's does."""

import torch

from longlive_optimized.bench.baseline_vae import BaselineDecoder
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.vae.state import CausalState
from longlive_optimized.vae.wan.model import WanVae


def test_the_baseline_decoder_is_the_network():
    torch.manual_seed(0)
    vae = WanVae(VaeConfig(base=8, multipliers=(1, 2, 2, 2))).double()
    for p in vae.parameters():
        torch.nn.init.normal_(p, std=0.3 if p.ndim < 4 else p[0].numel() ** -0.5)
    baseline, state = BaselineDecoder(vae), CausalState()
    for frames in (3, 1, 2):
        z = torch.randn(frames, 16, 2, 3, dtype=torch.float64)
        want = vae.decode(z.permute(0, 2, 3, 1).contiguous(), state).permute(0, 3, 1, 2).clamp(-1, 1)
        torch.testing.assert_close(baseline.decode(z), want, rtol=1e-5, atol=1e-6)  # it upsamples in float32
