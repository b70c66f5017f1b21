"""The umT5 encoder in plain torch, differentiable, in batches; its state dict is the checkpoint's (docs/model.md 6)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BUCKETS, _FARTHEST = 32, 128


@dataclass(frozen=True)
class TextConfig:
    """Dimensions of the text encoder."""

    vocabulary: int
    dim: int
    ffn_dim: int
    heads: int
    layers: int


class _Norm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, eps=1e-6)


class _Layer(nn.Module):
    def __init__(self, c: TextConfig):
        super().__init__()
        self.heads = c.heads
        self.norm1, self.norm2 = _Norm(c.dim), _Norm(c.dim)
        self.attn = nn.ModuleDict({name: nn.Linear(c.dim, c.dim, bias=False) for name in "qkvo"})
        self.pos_embedding = nn.ModuleDict({"embedding": nn.Embedding(BUCKETS, c.heads)})
        gate = nn.Sequential(nn.Linear(c.dim, c.ffn_dim, bias=False), nn.GELU(approximate="tanh"))
        fc1, fc2 = nn.Linear(c.dim, c.ffn_dim, bias=False), nn.Linear(c.ffn_dim, c.dim, bias=False)
        self.ffn = nn.ModuleDict({"gate": gate, "fc1": fc1, "fc2": fc2})

    def forward(self, x: Tensor, mask: Tensor, buckets: Tensor) -> Tensor:
        """x [B, L, dim]; mask [B, 1, 1, L], true for text; buckets [L, L]."""
        z = self.norm1(x)
        q, k, v = (self.attn[name](z).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in "qkv")
        bias = self.pos_embedding["embedding"](buckets).permute(2, 0, 1).to(q.dtype)
        bias = bias.expand(len(x), -1, -1, -1).masked_fill(~mask, -torch.inf)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        x = x + self.attn["o"](y.transpose(1, 2).flatten(2))
        z = self.norm2(x)
        return x + self.ffn["fc2"](self.ffn["fc1"](z) * self.ffn["gate"](z))


class TextNetwork(nn.Module):
    """Ids to embeddings. Initialised so that scores, which are not divided by sqrt(head size), start at unit size."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.dim)
        self.blocks = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = _Norm(config.dim)
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and "embedding" not in name:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            if ".attn.q." in name or ".attn.k." in name:
                weight.data *= (config.dim / config.heads) ** -0.25
            if "pos_embedding" in name:
                nn.init.normal_(weight, std=0.1)

    def forward(self, ids: Tensor, text_len: int) -> Tensor:
        """Embeddings [B, text_len, dim] of ids [B, L], 0 where a text has ended; rows beyond it are zero."""
        mask = ids > 0
        place = torch.arange(ids.shape[1], device=ids.device)
        buckets = _buckets(place[None] - place[:, None])
        x = self.token_embedding(ids)
        for block in self.blocks:
            x = block(x, mask[:, None, None], buckets)
        return F.pad(self.norm(x) * mask[..., None], (0, 0, 0, text_len - ids.shape[1]))


def _buckets(offset: Tensor) -> Tensor:
    """Bucket of key position - query position: half of them for each direction, fine near by, logarithmic beyond."""
    half = BUCKETS // 2
    exact, distance = half // 2, offset.abs()
    far = (distance.clamp(min=1) / exact).log() / math.log(_FARTHEST / exact) * (half - exact)
    bucket = torch.where(distance < exact, distance, (exact + far.long()).clamp(max=half - 1))
    return bucket + half * (offset > 0)
