"""The network on a GPU against the network on the CPU, float32, on given noise."""

import pytest
import torch

from longlive_optimized.model.config import ModelConfig
from longlive_optimized.model.transformer import Transformer
from support.networks import ring_of

CONFIG = ModelConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=64, text_len=32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("relative", [False, True], ids=["base", "relative"])
def test_float32_on_cuda_equals_cpu(relative, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    cpu = Transformer(CONFIG)
    for p in cpu.parameters():
        p.normal_(0, p.shape[-1] ** -0.5)
    gpu = Transformer(CONFIG, device="cuda")
    gpu.load_state_dict(cpu.state_dict())
    grid, text = (3, 5), torch.randn(7, 64)
    nets = [(n, ring_of(n, grid, relative=relative), n.cross_cache(text)) for n in (cpu, gpu)]
    for block in range(6):
        for t in (1000.0, 0.0):
            x, out = torch.randn(3, 16, 6, 10), []
            for net, ring, cross in nets:
                ring.seek(3 * block, 3)
                timestep = torch.tensor([t], dtype=torch.float64, device=net.device)
                out.append(net(x.to(net.device), net.modulation(timestep), ring, cross).cpu())
            assert ((out[0] - out[1]).norm() / out[0].norm()).item() <= 1e-4
