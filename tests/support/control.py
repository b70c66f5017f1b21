"""VACE's forward pass restated from docs/model.md 14.2, in float64 and without any of the package's code."""

import math

import torch
import torch.nn.functional as F


class Restated:
    """A network and its control branch over the checkpoint's tensors, for one block without a past."""

    def __init__(self, tensors, branch, heads, layers, eps=1e-6):
        self.w = {key: tensor.double() for key, tensor in (tensors | branch).items()}
        self.heads, self.layers, self.eps = heads, layers, eps

    def linear(self, key, x):
        return x @ self.w[f"{key}.weight"].T + self.w[f"{key}.bias"]

    def tokens(self, key, latents):
        """Latents [F, C, h, w] by the patch convolution to [F * n, d]."""
        y = F.conv3d(latents.double().transpose(0, 1)[None], self.w[f"{key}.weight"], self.w[f"{key}.bias"], (1, 2, 2))
        return y[0].flatten(1).T

    def times(self, timestep):
        half = self.w["time_embedding.0.weight"].shape[1] // 2
        angles = timestep * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        e = self.linear("time_embedding.0", torch.cat((angles.cos(), angles.sin())))
        e = self.linear("time_embedding.2", e * e.sigmoid())
        return e, self.linear("time_projection.1", e * e.sigmoid()).view(6, -1)

    def text(self, embedding, length):
        padded = torch.zeros(length, embedding.shape[1], dtype=torch.float64)
        padded[: len(embedding)] = embedding
        x = self.linear("text_embedding.0", padded)
        gelu = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return self.linear("text_embedding.2", gelu)

    def norm(self, x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + self.eps).sqrt()

    def rms(self, key, x):
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.w[f"{key}.weight"]

    def rotate(self, x, frames, rows, columns):
        """x [L, heads, head_dim], positions counted from 0."""
        pairs = x.shape[-1] // 2
        spatial = pairs // 3
        at = [torch.arange(n, dtype=torch.float64) for n in (frames, rows, columns)]
        grid = torch.meshgrid(*at, indexing="ij")
        angles = []
        for axis, count in zip(grid, (pairs - 2 * spatial, spatial, spatial), strict=True):
            rate = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / count)
            angles.append(axis.flatten()[:, None] * rate)
        turn = torch.polar(torch.ones(1, dtype=torch.float64), torch.cat(angles, 1))[:, None]
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)

    def attend(self, q, k, v, phantoms=0):
        """Softmax attention; ``phantoms`` more keys have score 0 and value 0."""
        scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])
        e = scores.exp()
        return torch.einsum("hij,jhd->ihd", e / (e.sum(-1, keepdim=True) + phantoms), v).flatten(1)

    def layer(self, name, x, e0, text, place, phantoms=0):
        """One layer, of the network or of the branch, over its own tokens alone."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.w[f"{name}.modulation"][0] + e0)[:, None]
        z = self.norm(x) * (1 + scale1) + shift1

        def heads(y):
            return y.view(len(y), self.heads, -1)

        own = f"{name}.self_attn"
        q, k = (heads(self.rms(f"{own}.norm_{c}", self.linear(f"{own}.{c}", z))) for c in "qk")
        q, k = self.rotate(q, *place), self.rotate(k, *place)
        x = x + gate1 * self.linear(f"{own}.o", self.attend(q, k, heads(self.linear(f"{own}.v", z)), phantoms))
        z = self.norm(x) * self.w[f"{name}.norm3.weight"] + self.w[f"{name}.norm3.bias"]
        cross = f"{name}.cross_attn"
        q = heads(self.rms(f"{cross}.norm_q", self.linear(f"{cross}.q", z)))
        k = heads(self.rms(f"{cross}.norm_k", self.linear(f"{cross}.k", text)))
        x = x + self.linear(f"{cross}.o", self.attend(q, k, heads(self.linear(f"{cross}.v", text))))
        z = self.linear(f"{name}.ffn.0", self.norm(x) * (1 + scale2) + shift2)
        gelu = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        return x + gate2 * self.linear(f"{name}.ffn.2", gelu)

    def hints(self, x0, e0, text, place, context, phantoms=0):
        c = torch.zeros_like(x0)
        given = self.tokens("vace_patch_embedding", context)[: len(x0)]
        c[: len(given)] = given
        c = self.linear("vace_blocks.0.before_proj", c) + x0
        hints = []
        for n in range((self.layers + 1) // 2):
            c = self.layer(f"vace_blocks.{n}", c, e0, text, place, phantoms)
            hints.append(self.linear(f"vace_blocks.{n}.after_proj", c))
        return hints

    def forward(self, latents, timestep, embedding, text_len, context=None, scale=1.0, phantoms=0):
        """Flow [F, C, h, w], and the hints."""
        place = len(latents), latents.shape[2] // 2, latents.shape[3] // 2
        e, e0 = self.times(timestep)
        text = self.text(embedding.double(), text_len)
        x = self.tokens("patch_embedding", latents)
        hints = [] if context is None else self.hints(x, e0, text, place, context, phantoms)
        for i in range(self.layers):
            x = self.layer(f"blocks.{i}", x, e0, text, place)
            if hints and i % 2 == 0:
                x = x + scale * hints[i // 2]
        shift, gain = self.w["head.modulation"][0] + e
        y = self.linear("head.head", self.norm(x) * (1 + gain) + shift)
        y = y.view(*place, 2, 2, -1).permute(0, 5, 1, 3, 2, 4)
        return y.flatten(4, 5).flatten(2, 3), hints
