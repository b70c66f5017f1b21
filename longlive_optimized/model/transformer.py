"""The causal Wan transformer: latent frames in, flow out, keys and values left in the ring (the KV cache).

Batch is one. A pass sees F latent frames of S tokens each: N = F * S tokens of width D.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.attention import attention
from ..kernels.int8_linear import GELU_GROUP
from ..kernels.modulate_norm import modulate_norm, modulate_norm_int8
from ..kernels.qk_norm_rope_store import qk_norm_rope_store, qk_norm_rope_store_int8
from ..kernels.quantize import quantize
from ..kernels.quantize_values import quantize_values
from ..kernels.residual_norm import residual_norm, residual_norm_int8
from ..kernels.ring_attention import ring_attention, ring_attention_int8
from ..kernels.ring_attention_fp8 import ring_attention_fp8
from ..kernels.rms_norm import rms_norm
from .config import PATCH, ModelConfig
from .linear import Linear, Quantized
from .narrow import NarrowNetwork, linears_in_int8
from .precision import PLAIN, Parts, Policy, parts_at, policy_of
from .ring_cache import Fp8Values, Int8Keys, RingCache, RingLayer
from .slot import Slot


class Modulation(NamedTuple):
    """Everything the network takes from a timestep: one entry per timestep, or per group of frames."""

    layers: Tensor  # [G, layers, 6, D]: shift, scale, gate of self-attention; shift, scale, gate of the FFN
    head: Tensor  # [G, 2, D]: shift, scale
    time: Tensor  # [G, 6, D]: what ``layers`` has of the timestep alone, for layers beside the network's

    def at(self, index: int) -> Modulation:
        """The one group ``index``, kept as a group."""
        return Modulation(*(each[index : index + 1] for each in self))


class CrossCache(NamedTuple):
    """Cross-attention keys and values of one prompt, computed once: [layers, text_len, heads, head_dim]."""

    k: Tensor
    v: Tensor

    def layer(self, index: int) -> CrossCache:
        """One layer's, [text_len, heads, head_dim]."""
        return CrossCache(self.k[index], self.v[index])


class Hint(NamedTuple):
    """What control adds to a layer's result: ``scale * tokens`` (docs/model.md 14.2)."""

    tokens: Tensor  # [N, D]
    scale: Tensor  # float32 [1], on the device: a captured pass reads it anew


# A pass's tokens [N, D] before the first layer, its ``Modulation.time`` and its policy to each layer's hint in turn.
Hints = Callable[[Tensor, Tensor, Policy], Iterator[Hint | None]]


def _vector(*shape: int, **where) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, **where), requires_grad=False)


def normed(x: Tensor, shift: Tensor, scale: Tensor, eps: float, int8: bool) -> Tensor | Quantized:
    """The norm of x [N, D], with shift and scale [G, D]."""
    return Quantized(*modulate_norm_int8(x, shift, scale, eps)) if int8 else modulate_norm(x, shift, scale, eps)


def _added(
    x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, offset: float, eps: float, int8: bool
) -> Tensor | Quantized:
    """Add y to x in place; the norm of the sum."""
    if int8:
        return Quantized(*residual_norm_int8(x, y, gate, shift, scale, offset, eps))
    return residual_norm(x, y, gate, shift, scale, offset, eps)


def _over_ring(q: Tensor | Quantized, ring: RingLayer) -> Tensor:
    """Attention of queries [N, heads, head_dim] over the ring."""
    keys, values = ring.keys, ring.values
    if not isinstance(keys, Int8Keys):
        return ring_attention(q, keys, values, ring.valid)
    if isinstance(values, Fp8Values):
        return ring_attention_fp8(*q, keys.k, keys.scale, *values, ring.valid).to(ring.k_sink.dtype)
    return ring_attention_int8(*q, keys.k, keys.scale, values, ring.valid)


def _attended(y: Tensor, int8: bool) -> Tensor | Quantized:
    """Attention's result [N, heads, head_dim] as [N, D]; in 8 bits with a scale for each row."""
    y = y.flatten(1)
    return Quantized(*quantize(y, 1)) if int8 else y


class TransformerBlock(nn.Module):
    """One transformer layer (docs/model.md 2.2)."""

    def __init__(self, config: ModelConfig, int8_only: Parts, **where):
        super().__init__()
        d, self.eps = config.dim, config.eps

        def linear(part: str, d_in: int, d_out: int) -> Linear:
            return Linear(d_in, d_out, int8_only=getattr(int8_only, part), **where)

        self.heads: tuple[int, int] = (config.num_heads, config.head_dim)
        self.modulation = _vector(6, d, **where)
        self.qkv = linear("qkv", d, 3 * d)
        self.q_gain, self.k_gain = _vector(d, **where), _vector(d, **where)
        self.out = linear("out", d, d)
        self.cross_norm_gain, self.cross_norm_bias = _vector(d, **where), _vector(d, **where)
        self.cross_q, self.cross_kv = linear("cross_q", d, d), Linear(d, 2 * d, **where)
        self.cross_q_gain, self.cross_k_gain = _vector(d, **where), _vector(d, **where)
        self.cross_out = linear("cross_out", d, d)
        self.ffn_in, self.ffn_out = linear("ffn_in", d, config.ffn_dim), linear("ffn_out", config.ffn_dim, d)
        self._gelu_groups = config.ffn_dim // math.gcd(config.ffn_dim, GELU_GROUP)

    def store(self, z: Tensor | Quantized, ring: RingLayer) -> Tensor | Quantized:
        """Write the keys and values of the normed tokens z into the ring; return their queries [N, heads, head_dim],
        in 8 bits where the keys that they meet are. On several ranks z and the queries are a rank's own tokens', what
        is written is that of all."""
        shard, keys, values = ring.shard, ring.keys, ring.values
        qkv = shard.gather_for_now(self.qkv(z), first=len(self.q_gain))  # nobody needs another rank's queries
        norm = qkv, self.q_gain, self.k_gain, ring.rope_time, ring.rope_space
        rest = ring.k_sink, ring.slots, self.eps
        if isinstance(keys, Int8Keys):
            in_dtype = None if isinstance(values, Fp8Values) else values
            q, q_scale = qk_norm_rope_store_int8(*norm, keys.offset, keys.k, keys.scale, in_dtype, *rest)
            if isinstance(values, Fp8Values):
                v = qkv.unflatten(1, (3, *self.heads))[:, 2]
                quantize_values(v, values.offset, values.scale, values.v, ring.slots)
            return Quantized(shard.rows(q), shard.rows(q_scale, 1).contiguous())
        q = qk_norm_rope_store(*norm, keys, values, *rest)
        if ring.kept is not None and isinstance(values, Tensor):
            frames = len(ring.slots)
            ring.kept.renew(keys[:frames], values[:frames])  # which fill the first slots, in whatever order
        return shard.rows(q)

    def forward(
        self,
        x: Tensor,
        z: Tensor | Quantized,
        m: Tensor,
        following: Tensor,
        ring: RingLayer,
        cross: CrossCache,
        int8: Parts,
        int8_following: bool,
        hint: Hint | None = None,
    ) -> Tensor | Quantized:
        """One layer on the residual stream x [N, D], which is updated in place.

        z [N, D] is x normed for this layer, the result x normed for the next one, whose shift and scale are
        ``following`` [G, 2, D]; m [G, 6, D] serves G equal groups of tokens; ring and cross are this layer's.
        ``int8`` names the products that run in 8 bits, z being quantised if ``qkv`` is among them, and
        ``int8_following`` says whether the result is to be. ``hint`` is added to the layer's result, before that is
        normed.
        """
        y = _attended(_over_ring(self.store(z, ring), ring), int8.out)
        gain, bias = self.cross_norm_gain[None], self.cross_norm_bias[None]
        z = _added(x, self.out(y), m[:, 2], bias, gain, 0.0, self.eps, int8.cross_q)
        q = rms_norm(self.cross_q(z), self.cross_q_gain, self.eps).unflatten(-1, self.heads)
        y = _attended(attention(q, cross.k, cross.v), int8.cross_out)
        z = _added(x, self.cross_out(y), None, m[:, 3], m[:, 4], 1.0, self.eps, int8.ffn_in)
        y = self.ffn_out(self.ffn_in.gelu(z, self._gelu_groups if int8.ffn_out else None))
        if hint is not None:
            x.addcmul_(*hint)  # Precision: computed in float32, rounded once
        return _added(x, y, m[:, 5], following[:, 0], following[:, 1], 1.0, self.eps, int8_following)

    def cross_kv_of(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [text_len, heads, head_dim] of a prompt, context [text_len, D]."""
        k, v = self.cross_kv(context).chunk(2, dim=-1)
        k = rms_norm(k.contiguous(), self.cross_k_gain, self.eps)
        return k.unflatten(-1, self.heads), v.unflatten(-1, self.heads)

    def checkpoint_slots(self) -> dict[str, Slot]:
        """Every tensor of this layer in the published checkpoint by its key there, after ``blocks.N.``."""
        attn, cross = "self_attn", "cross_attn"
        return {
            "modulation": Slot(self.modulation, (1, *self.modulation.shape)),
            **self.qkv.slots(f"{attn}.q", f"{attn}.k", f"{attn}.v"),
            f"{attn}.norm_q.weight": Slot(self.q_gain),
            f"{attn}.norm_k.weight": Slot(self.k_gain),
            **self.out.slots(f"{attn}.o"),
            "norm3.weight": Slot(self.cross_norm_gain),
            "norm3.bias": Slot(self.cross_norm_bias),
            **self.cross_q.slots(f"{cross}.q"),
            **self.cross_kv.slots(f"{cross}.k", f"{cross}.v"),
            f"{cross}.norm_q.weight": Slot(self.cross_q_gain),
            f"{cross}.norm_k.weight": Slot(self.cross_k_gain),
            **self.cross_out.slots(f"{cross}.o"),
            **self.ffn_in.slots("ffn.0"),
            **self.ffn_out.slots("ffn.2"),
        }


def cross_cache_of(blocks: Sequence[TransformerBlock], text: Tensor, into: CrossCache | None = None) -> CrossCache:
    """Keys and values of these layers for a prompt ``text`` [text_len, D], written into ``into`` if that is given."""
    shape = len(blocks), len(text), *blocks[0].heads
    cross = into or CrossCache(text.new_empty(shape), text.new_empty(shape))
    for layer, block in enumerate(blocks):
        k, v = block.cross_kv_of(text)
        cross.k[layer], cross.v[layer] = k, v
    return cross


class Transformer(NarrowNetwork):
    """The diffusion transformer of LongLive-1.3B (docs/model.md 2), q, k, v fused into one matrix product.

    With ``int8_only`` the weights that ``precision.policy_of`` names are held in 8 bits alone; others of them are never
    allocated. Raises ValueError then for a network whose widths int8 products do not take.
    """

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        int8_only: bool = False,
    ):
        super().__init__()
        where = {"device": device, "dtype": dtype}
        d, self.config = config.dim, config
        if int8_only:
            self._check_widths("low_memory must be false")
        patch = PATCH * PATCH
        self.patch = Linear(config.in_dim * patch, d, **where)
        self.text_in, self.text_out = Linear(config.text_dim, d, **where), Linear(d, d, **where)
        self.time_in, self.time_out = Linear(config.freq_dim, d, **where), Linear(d, d, **where)
        self.time_projection = Linear(d, 6 * d, **where)
        held, layers = policy_of("int8" if int8_only else "bf16", config.num_layers), range(config.num_layers)
        blocks = nn.ModuleList(TransformerBlock(config, parts_at(held, layer), **where) for layer in layers)
        self.blocks = cast("Sequence[TransformerBlock]", blocks)
        self.head_modulation = _vector(2, d, **where)
        self.head = Linear(d, config.out_dim * patch, **where)
        self.adapted: frozenset[str] = frozenset()  # the checkpoint's keys of what a user's LoRAs are merged into

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of activations and what is added to them: modulation, a prompt's keys and values."""
        return self.head.bias.dtype

    kv_dtype = compute_dtype  # of the ring's keys and values
    latent_dtype = compute_dtype  # of the latents that a pass is given, their noise, and the flow

    @property
    def device(self) -> torch.device:
        return self.head.bias.device

    def forward(
        self,
        latents: Tensor,
        modulation: Modulation,
        ring: RingCache,
        cross: CrossCache,
        policy: Policy = PLAIN,
        *,
        hints: Hints | None = None,
        store_only: bool = False,
    ) -> Tensor | None:
        """Flow prediction [F, out_dim, h, w] of latents [F, in_dim, h, w].

        The pass's place in time is the ring's (``ring.seek``); its keys and values are written there. With
        ``store_only`` (context pass, recache) the network stops after the last layer's keys and values: returns None.
        ``policy`` says which products run in 8 bits; ``hold_int8`` must come first. ``hints`` gives what is added to
        the layers' results. Where the ring has a shard of several ranks, each computes its own rows of the tokens, and
        latents and flow are whole on all; ``modulation`` must then be one group's, or ValueError is raised.
        """
        shard, groups = ring.shard, len(modulation.head)
        if shard.count > 1 and groups > 1:
            raise ValueError(f"modulation must be of one group on {shard.count} ranks, got {groups}")
        int8 = [parts_at(policy, layer) for layer in range(len(self.blocks) + 1)]  # the head's are the last
        grid = latents.shape[-2] // PATCH, latents.shape[-1] // PATCH
        x = self.patch(shard.rows(patchify(latents)))
        norms = [*modulation.layers[:, :, :2].unbind(1), modulation.head]  # shift and scale before each layer, and last
        z = normed(x, norms[0][:, 0], norms[0][:, 1], self.config.eps, int8[0].qkv)
        of_layers = hints(x, modulation.time, policy) if hints else itertools.repeat(None)
        for layer, block in enumerate(self.blocks):
            if store_only and layer == len(self.blocks) - 1:
                block.store(z, ring.layer(layer))
                return None
            of_layer = modulation.layers[:, layer], norms[layer + 1], ring.layer(layer), cross.layer(layer)
            z = block(x, z, *of_layer, int8[layer], int8[layer + 1].qkv, next(of_layers))
        return unpatchify(shard.gather(self.head(z)), grid)

    def modulation(self, timesteps: Tensor) -> Modulation:
        """Modulation of each of G timesteps, float64 [G]; the sinusoid is float64, then rounded (2.1)."""
        half = self.config.freq_dim // 2
        freqs = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device=timesteps.device) / half)
        angles = timesteps.double()[:, None] * freqs
        features = torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.compute_dtype)
        e = self.time_out(F.silu(self.time_in(features)))
        e0 = self.time_projection(F.silu(e)).unflatten(-1, (6, -1))
        layers = torch.stack([block.modulation for block in self.blocks])
        return Modulation(layers + e0[:, None], self.head_modulation + e[:, None], e0)

    def text(self, embedding: Tensor) -> Tensor:
        """A prompt as the layers' cross-attention reads it, [text_len, D]; embedding [L <= text_len, text_dim], missing
        rows are zeros."""
        rows = self.config.text_len - embedding.shape[0]
        padded = F.pad(embedding.to(self.device, self.compute_dtype), (0, 0, 0, rows))
        # Zero rows become the biases' constant vector and are attended to: there is no mask.
        return self.text_out(F.gelu(self.text_in(padded), approximate="tanh"))

    def cross_cache(self, embedding: Tensor, into: CrossCache | None = None) -> CrossCache:
        """Cross-attention keys and values of a prompt, embedding [L <= text_len, text_dim]; missing rows are zeros.

        Written layer by layer into ``into``, another prompt's, if that is given.
        """
        return cross_cache_of(self.blocks, self.text(embedding), into)

    def int8_linears(self) -> Iterator[Linear]:
        return linears_in_int8(self.blocks, policy_of("int8", len(self.blocks)))

    def checkpoint_slots(self) -> dict[str, Slot]:
        """The place of every tensor of the published checkpoint (docs/model.md 1.2), by its key there."""
        d, c = self.config.dim, self.config.in_dim
        slots = {
            **self.patch.slots("patch_embedding", shape=(d, c, 1, PATCH, PATCH)),
            **self.text_in.slots("text_embedding.0"),
            **self.text_out.slots("text_embedding.2"),
            **self.time_in.slots("time_embedding.0"),
            **self.time_out.slots("time_embedding.2"),
            **self.time_projection.slots("time_projection.1"),
            "head.modulation": Slot(self.head_modulation, (1, *self.head_modulation.shape)),
            **self.head.slots("head.head"),
        }
        for i, block in enumerate(self.blocks):
            slots |= {f"blocks.{i}.{key}": slot for key, slot in block.checkpoint_slots().items()}
        return slots


def generator_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Shape of every tensor of the published checkpoint by its key."""
    return {key: slot.shape for key, slot in Transformer(config, device="meta").checkpoint_slots().items()}


def patchify(latents: Tensor) -> Tensor:
    """[F, C, h, w] to tokens [F*S, C*4]: frame, row, column; within a token channel, row, column."""
    f, c, h, w = latents.shape
    x = latents.view(f, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, c * PATCH * PATCH)


def unpatchify(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens [F*S, 4*C] to [F, C, h, w]; within a token row, column, channel (not patchify's order)."""
    x = tokens.view(-1, *grid, PATCH, PATCH, tokens.shape[-1] // PATCH**2)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3).contiguous()  # one token wide: still a view
