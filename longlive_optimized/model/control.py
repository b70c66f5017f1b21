"""The control branch (VACE): layers beside the network that turn a control context into hints (docs/model.md 14)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import PATCH, ModelConfig
from .linear import Linear
from .narrow import NarrowNetwork, linears_in_int8
from .precision import Policy, parts_at, policy_of
from .ring_cache import RingCache, RingLayer
from .shard import ALONE, Shard
from .slot import Slot
from .transformer import CrossCache, Hint, TransformerBlock, cross_cache_of, normed, patchify

EVERY = 2  # of the network's layers, so many share one layer of the branch: its hint goes to the first of them
MASK_CHANNELS = 64  # of a context: a mask's 8x8 pixels


def context_channels(config: ModelConfig) -> int:
    """Channels of a context: latents of what is kept, latents of what is made anew, and the mask."""
    return 2 * config.in_dim + MASK_CHANNELS


class ControlBranch(NarrowNetwork):
    """VACE's layers for a network of these dimensions.

    Each is a layer of the network's kind with weights of its own, that attends to the pass's own frames alone. Hints
    depend on a pass's tokens, timestep, prompt and context, not on what came before. ``int8_only`` as Transformer's.
    """

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        int8_only: bool = False,
    ):
        super().__init__()
        where, d, self.config = {"device": device, "dtype": dtype}, config.dim, config
        if int8_only:
            self._check_widths("low_memory must be false")
        held = policy_of("int8" if int8_only else "bf16", config.num_layers)
        self.patch = Linear(context_channels(config) * PATCH * PATCH, d, **where)
        self.before = Linear(d, d, **where)
        beside = self._layers()
        blocks = nn.ModuleList(TransformerBlock(config, parts_at(held, layer), **where) for layer in beside)
        self.blocks = cast("Sequence[TransformerBlock]", blocks)
        self.after = cast("Sequence[Linear]", nn.ModuleList(Linear(d, d, **where) for _ in beside))

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of activations, keys and values."""
        return self.before.bias.dtype

    @property
    def device(self) -> torch.device:
        return self.before.bias.device

    def embed(self, context: Tensor, tokens: int, shard: Shard = ALONE) -> Tensor:
        """What a context [F, channels, h, w] adds to a pass's ``tokens`` before the first layer, [tokens, D]; of a
        shard's ranks each computes its own rows.

        It has as many tokens, cut or filled up with zeros.
        """
        c = self.patch(patchify(context))[:tokens]
        return self.before(shard.rows(F.pad(c, (0, 0, 0, tokens - len(c)))))

    def cross_cache(self, text: Tensor, into: CrossCache | None = None) -> CrossCache:
        """Its layers' keys and values of a prompt, ``Transformer.text``; written into ``into`` if that is given."""
        return cross_cache_of(self.blocks, text, into)

    def hints(
        self,
        x: Tensor,
        time: Tensor,
        policy: Policy,
        *,
        base: Tensor,
        cross: CrossCache,
        ring: RingLayer,
        scale: Tensor,
    ) -> Iterator[Hint | None]:
        """The hint of each of the network's layers in turn, None for those without one; computed as it is asked for.

        x [N, D]: a pass's tokens, read when the first hint is asked for; time [G, 6, D]; base [N, D]: from ``embed``;
        ring: of these tokens alone, which its layers share. On several ranks x and base are a rank's own rows.
        """
        modulation = torch.stack([block.modulation for block in self.blocks]) + time[:, None]
        norms = modulation[:, :, :2].unbind(1)
        int8 = [parts_at(policy, layer) for layer in self._layers()]
        c = base + x
        z = normed(c, norms[0][:, 0], norms[0][:, 1], self.config.eps, int8[0].qkv)
        for n, block in enumerate(self.blocks):
            following = min(n + 1, len(self.blocks) - 1)  # the last norm is not read
            of_layer = modulation[:, n], norms[following], ring, cross.layer(n)
            z = block(c, z, *of_layer, int8[n], int8[following].qkv)
            yield Hint(self.after[n](c), scale)
            yield from itertools.repeat(None, EVERY - 1)

    def int8_linears(self) -> Iterator[Linear]:
        policy = policy_of("int8", self.config.num_layers)
        return linears_in_int8(self.blocks, [parts_at(policy, layer) for layer in self._layers()])

    def checkpoint_slots(self) -> dict[str, Slot]:
        """The place of every tensor of the published module (docs/model.md 14.1), by its key there."""
        d, channels = self.config.dim, context_channels(self.config)
        slots = {
            **self.patch.slots("vace_patch_embedding", shape=(d, channels, 1, PATCH, PATCH)),
            **self.before.slots("vace_blocks.0.before_proj"),
        }
        for n, (block, after) in enumerate(zip(self.blocks, self.after, strict=True)):
            slots |= {f"vace_blocks.{n}.{key}": slot for key, slot in block.checkpoint_slots().items()}
            slots |= after.slots(f"vace_blocks.{n}.after_proj")
        return slots

    def _layers(self) -> range:
        """The network's layers that have hints."""
        return range(0, self.config.num_layers, EVERY)


def control_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Shape of every tensor of the published module by its key."""
    return {key: slot.shape for key, slot in ControlBranch(config, device="meta").checkpoint_slots().items()}


class PassControl:
    """What steers a stream's passes: what a branch reads lies in buffers whose addresses never change.

    most: frames of a pass at most. shard: the ranks that its tokens are divided among.
    """

    def __init__(self, branch: ControlBranch, grid: tuple[int, int], most: int, shard: Shard = ALONE):
        self.branch, self._shard, self._cross = branch, shard, None
        one_layer = dataclasses.replace(branch.config, num_layers=1)
        where = {"dtype": branch.compute_dtype, "device": branch.device}
        # Positions count from 0 wherever the block stands, and every pass sees itself alone.
        self._ring = RingCache(one_layer, grid, window=most, sink=0, relative=False, shard=shard, **where)
        self._tokens = grid[0] * grid[1]
        self._base = torch.zeros(most * self._tokens // shard.count, branch.config.dim, **where)
        self._scale = torch.ones(1, dtype=torch.float32, device=branch.device)

    def set_prompt(self, text: Tensor) -> None:
        """Attend to another prompt, ``Transformer.text``, from here on."""
        self._cross = self.branch.cross_cache(text, self._cross)

    def set_context(self, context: Tensor, scale: float, frames: int) -> None:
        """Steer the next passes, of so many frames, by a context [F, channels, h, w] that acts with this strength."""
        self._ring.seek(0, frames)
        base = self.branch.embed(context, frames * self._tokens, self._shard)
        self._base[: len(base)] = base
        self._scale.fill_(scale)

    def hints(self, x: Tensor, time: Tensor, policy: Policy) -> Iterator[Hint | None]:
        """``transformer.Hints`` for such a pass."""
        assert self._cross is not None
        buffers = {"base": self._base[: len(x)], "cross": self._cross, "scale": self._scale}
        return self.branch.hints(x, time, policy, ring=self._ring.layer(0), **buffers)
