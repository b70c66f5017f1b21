"""The baseline: the published order of operations and roundings in eager torch, over a rolling KV cache.

Nothing here is fast on purpose. The engine's time and error are measured against it, and it is the oracle of the tests:
it shares no arithmetic with ``longlive_optimized.model``, and reads a model's files, not the engine's weights. Section
numbers are those of docs/model.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..model.config import PATCH, ModelConfig
from ..weights.load import read_generator

if TYPE_CHECKING:
    from ..engine.engine import LongLiveEngine


@dataclass
class RollingCache:
    """One layer's keys and values as section 3.2 keeps them: rolled, cloned, concatenated. Lengths are in tokens."""

    window: int
    sink: int
    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device | str
    global_end: int = 0
    local_end: int = 0
    k: Tensor = field(init=False)
    v: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.k, self.v = torch.zeros(2, self.window, *self.shape, dtype=self.dtype, device=self.device).unbind()

    def update(self, k: Tensor, v: Tensor, start: int, force: bool) -> None:
        """Steps 1-4 and 6: place n new rows that begin at absolute token ``start``."""
        n, end = len(k), start + len(k)
        repeat = end <= self.global_end and start > 0
        rk, rv = self.k.clone(), self.v.clone()
        local = self.local_end + end - self.global_end
        if end > self.global_end and n + self.local_end > self.window:
            evict = n + self.local_end - self.window
            move = self.local_end - evict - self.sink
            for new, old in ((rk, self.k), (rv, self.v)):
                new[self.sink : self.sink + move] = old[self.sink + evict : self.sink + evict + move]
            local -= evict
        first = local - n
        write = max(first, self.sink) if repeat and not force else first
        rk[write:local], rv[write:local] = k[write - first :], v[write - first :]
        self.k, self.v, self._seen = rk, rv, local
        if not repeat:
            self.global_end, self.local_end = end, local

    def window_of(self, x: Tensor) -> Tensor:
        """Step 5: the rows that attention sees, sinks first."""
        rest = max(self.sink, self._seen - (self.window - self.sink))
        return torch.cat((x[: min(self.sink, self._seen)], x[rest : self._seen]))


class BaselineNetwork:
    """Sections 2 and 3, step by step, from the checkpoint's own tensors; every step rounds to their dtype."""

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        grid: tuple[int, int],
        window: int,
        sink: int,
        relative: bool,
    ):
        self.config, self.weights, self.grid = config, weights, grid
        self.window, self.sink, self.relative = window, sink, relative
        self.reset()

    def reset(self) -> None:
        w, s = self.weights["head.head.weight"], self.grid[0] * self.grid[1]
        shape = self.config.num_heads, self.config.head_dim
        lengths = self.window * s, self.sink * s
        self.caches = [RollingCache(*lengths, shape, w.dtype, w.device) for _ in range(self.config.num_layers)]
        self.cross: list[tuple[Tensor, Tensor] | None] = [None] * self.config.num_layers

    def new_prompt(self, forget: bool = False) -> None:
        """Reset the cross-attention cache; ``forget`` also zeroes keys and values (5.1, global_sink false)."""
        self.cross = [None] * self.config.num_layers
        for cache in self.caches if forget else ():
            cache.k.zero_()
            cache.v.zero_()

    def forward(self, latents: Tensor, t: Tensor, prompt: Tensor, start: int, force: bool = False) -> Tensor:
        """Flow [F, C, h, w] of latents [F, C, h, w] at timesteps t [F], first latent frame ``start``."""
        f, c, h, w = latents.shape
        s = self.grid[0] * self.grid[1]
        patches = latents.reshape(f, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
        weight = self.weights["patch_embedding.weight"].flatten(1)
        x = F.linear(patches, weight, self.weights["patch_embedding.bias"])
        e, e0 = self._time(t)
        for layer in range(self.config.num_layers):
            x = self._layer(x, f"blocks.{layer}.", layer, e0, prompt, start * s, force)
        shift, scale = (self.weights["head.modulation"] + e[:, None]).unbind(1)
        x = self._linear("head.head", self._modulate(x, shift, scale))
        return x.view(f, *self.grid, 2, 2, -1).permute(0, 5, 1, 3, 2, 4).reshape(f, -1, h, w)

    def _linear(self, key: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{key}.weight"], self.weights[f"{key}.bias"])

    def _time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        half = self.config.freq_dim // 2
        omega = 10000.0 ** -(torch.arange(half, device=t.device, dtype=torch.float64) / half)
        angle = torch.outer(t.double(), omega)
        features = torch.cat((angle.cos(), angle.sin()), -1).to(self.weights["head.head.weight"].dtype)
        e = self._linear("time_embedding.2", F.silu(self._linear("time_embedding.0", features)))
        return e, self._linear("time_projection.1", F.silu(e)).view(len(t), 6, -1)

    def _modulate(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        y = self._layer_norm(x).view(len(shift), -1, x.shape[-1])
        return (y * (1 + scale[:, None]) + shift[:, None]).flatten(0, 1)

    def _layer_norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(_at_least_float32(x), x.shape[-1:], eps=self.config.eps).to(x.dtype)

    def _rms_norm(self, x: Tensor, key: str) -> Tensor:
        wide = _at_least_float32(x)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.eps)
        return normed.to(x.dtype) * self.weights[key]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.num_heads, self.config.head_dim))

    def _layer(self, x: Tensor, p: str, layer: int, e0: Tensor, prompt: Tensor, start: int, force: bool) -> Tensor:
        m = (self.weights[p + "modulation"] + e0).unbind(1)
        groups = (len(e0), -1, x.shape[-1])
        a = self._modulate(x, m[0], m[1])
        q = self._heads(self._rms_norm(self._linear(p + "self_attn.q", a), p + "self_attn.norm_q.weight"))
        k = self._heads(self._rms_norm(self._linear(p + "self_attn.k", a), p + "self_attn.norm_k.weight"))
        y = self._attend(q, k, self._heads(self._linear(p + "self_attn.v", a)), self.caches[layer], start, force)
        x = (x.view(groups) + self._linear(p + "self_attn.o", y).view(groups) * m[2][:, None]).flatten(0, 1)
        x = x + self._cross_attention(x, p, layer, prompt)
        f = self._linear(p + "ffn.0", self._modulate(x, m[3], m[4]))
        f = self._linear(p + "ffn.2", F.gelu(f, approximate="tanh"))
        return (x.view(groups) + f.view(groups) * m[5][:, None]).flatten(0, 1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, cache: RollingCache, start: int, force: bool) -> Tensor:
        s = self.grid[0] * self.grid[1]
        if self.relative:
            cache.update(k, v, start, force)
            keys = self._rotate(cache.window_of(cache.k), 0)
            q = self._rotate(q, (cache._seen - len(q)) // s)
        else:
            cache.update(self._rotate(k, start // s), v, start, force)
            keys, q = cache.window_of(cache.k), self._rotate(q, start // s)
        return _attention(q, keys, cache.window_of(cache.v))

    def _cross_attention(self, x: Tensor, p: str, layer: int, prompt: Tensor) -> Tensor:
        z, p = self._affine_norm(x, p + "norm3"), p + "cross_attn."
        q = self._heads(self._rms_norm(self._linear(p + "q", z), p + "norm_q.weight"))
        cached = self.cross[layer]
        if cached is None:
            padded = F.pad(prompt, (0, 0, 0, self.config.text_len - len(prompt)))
            text = F.gelu(self._linear("text_embedding.0", padded), approximate="tanh")
            text = self._linear("text_embedding.2", text)
            k = self._heads(self._rms_norm(self._linear(p + "k", text), p + "norm_k.weight"))
            cached = self.cross[layer] = k, self._heads(self._linear(p + "v", text))
        return self._linear(p + "o", _attention(q, *cached))

    def _affine_norm(self, x: Tensor, key: str) -> Tensor:
        gain, bias = (_at_least_float32(self.weights[f"{key}.{n}"]) for n in ("weight", "bias"))
        return F.layer_norm(_at_least_float32(x), x.shape[-1:], gain, bias, self.config.eps).to(x.dtype)

    def _rotate(self, x: Tensor, first_frame: int) -> Tensor:
        """Section 2.3: rotate interleaved pairs in float64 by frame, row and column."""
        rows, columns = self.grid
        d = x.shape[-1]
        spatial = 2 * (d // 6)
        n = torch.arange(len(x), device=x.device)
        axes = (n // (rows * columns) + first_frame, n // columns % rows, n % columns)
        angles = []
        for position, dims in zip(axes, (d - 2 * spatial, spatial, spatial), strict=True):
            exponent = torch.arange(0, dims, 2, device=x.device, dtype=torch.float64) / dims
            angles.append(torch.outer(position.double(), 10000.0**-exponent))
        angle = torch.cat(angles, 1)[:, None]
        z = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
        return torch.view_as_real(z * torch.polar(torch.ones_like(angle), angle)).flatten(-2).to(x.dtype)


def baseline_network(engine: LongLiveEngine, dtype: torch.dtype | None = None) -> BaselineNetwork:
    """The baseline of an engine's model without users' LoRAs, for its default stream's settings.

    The weights are read from the files, rounded to the engine's dtype as the engine rounds them, and then widened to
    ``dtype``, if one is given. Raises CheckpointError.
    """
    settings, (_, rows, columns) = engine.stream.settings, engine.stream.latent_shape
    weights = read_generator(engine.files, engine.device, engine.dtype)
    return BaselineNetwork(
        engine.model.config,
        {key: weight.to(dtype or weight.dtype) for key, weight in weights.items()},
        (rows // PATCH, columns // PATCH),
        settings.local_attn_size,
        settings.sink_size,
        settings.positions == "relative",
    )


def predict_x0(x: Tensor, flow: Tensor, sigma: float) -> Tensor:
    """``x - sigma * flow`` in float64, rounded once to x's dtype (4.3)."""
    return (x.double() - sigma * flow.double()).to(x.dtype)


def renoise(x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """``(1 - sigma) x0 + sigma noise`` in float32 at least, rounded once to x0's dtype (4.3)."""
    wide = torch.promote_types(x0.dtype, torch.float32)
    # The weights are float32 numbers whatever the dtype: 1 - sigma is rounded as the published sampler rounds it.
    keep = (1 - torch.tensor(sigma, dtype=torch.float32)).item()
    return (keep * x0.to(wide) + sigma * noise.to(wide)).to(x0.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # The fastest library kernel for half precision, so that the engine gains nothing by its choice of library; torch's
    # own arithmetic for float32, which is the truth that errors are measured against.
    half = q.dtype in (torch.bfloat16, torch.float16)
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION] if half and q.is_cuda else [SDPBackend.MATH]
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    with sdpa_kernel(backends, set_priority=True):
        out = F.scaled_dot_product_attention(q, k, v)
    return out[0].transpose(0, 1).flatten(1)
