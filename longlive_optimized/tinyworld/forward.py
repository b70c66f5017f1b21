"""The transformer for training: the engine's weights, streams in batches, every pass of a script at once.

Nothing is written in place and nothing is cached. ``tests/tinyworld/test_forward.py`` holds it to the engine's passes
over the ring, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import rope
from ..model.config import PATCH
from ..model.control import EVERY, ControlBranch
from ..model.transformer import Modulation, Transformer, TransformerBlock, patchify, unpatchify
from .chains import gated, modulated, rotated
from .script import Pass, Script


class Memory(NamedTuple):
    """Keys before their rotation and values of M rows, for every layer: [layers, B, M, S, heads, head_dim]."""

    k: Tensor
    v: Tensor

    def select(self, rows: Sequence[int]) -> Memory:
        """The rows named, in that order."""
        index = _index(tuple(rows), self.k.device)
        return Memory(self.k.index_select(2, index), self.v.index_select(2, index))


@lru_cache(maxsize=512)
def _index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(rows, device=device)  # waits for the device: once


class Result(NamedTuple):
    """Flow [B, R, C, h, w] of R rows, and the keys and values of memory's rows followed by theirs."""

    flow: Tensor
    memory: Memory


class Control(NamedTuple):
    """A control branch and the contexts [B, blocks, F, 96, h, w] of the script's noisy passes, in their order."""

    branch: ControlBranch
    contexts: Tensor

    def hints(self, x: Tensor, time: Tensor, text: Tensor, script: Script, grid: tuple[int, int]) -> dict[int, Tensor]:
        """For each layer that has one, its hint [B, R, S, D]: zeros but for the noisy rows. x [B, R, S, D], time
        [B, R, 6, D] and text [B, P, text_len, D] are the network's (docs/model.md 14.2)."""
        branch, first = self.branch, len(script.memory)
        steps = [[row - first for row in step.rows] for step in script.passes]
        steps = [rows for rows in steps if script.rows[rows[0]].noisy]
        rows = _index(tuple(row for rows in steps for row in rows), x.device)
        prompts = _index(tuple(script.rows[rows[0]].prompt for rows in steps), x.device)
        frames = len(steps[0])

        def alone(each: Tensor) -> Tensor:
            """[B, R, ...] to [B * passes, F, ...]."""
            return each[:, rows].unflatten(1, (len(steps), frames)).flatten(0, 1)

        tokens = branch.patch(patchify(self.contexts.flatten(0, 2).to(x.dtype))).view(-1, frames, *x.shape[2:])
        c, e = branch.before(tokens) + alone(x), alone(time)
        one = (Pass(tuple(range(frames)), tuple((row, row) for row in range(frames))),)
        plan = _plan(one, 0, (0,) * frames, x.device)
        turns = _turns(plan.positions, grid, branch.config.head_dim, rope.table_dtype(x.dtype))
        text = text[:, prompts].flatten(0, 1)[:, None]
        hints = {}
        for n, (block, after) in enumerate(zip(branch.blocks, branch.after, strict=True)):
            m = (block.modulation + e)[:, :, :, None]
            c, _, _ = _layer(block, c, m, text, plan, turns, x.new_empty(0), x.new_empty(0))
            own = after(c).unflatten(0, (len(x), len(steps))).flatten(1, 2)
            hints[EVERY * n] = torch.zeros_like(x).index_copy(1, rows, own)
        return hints


def forward(
    model: Transformer,
    latents: Tensor,
    timesteps: Tensor,
    prompts: Tensor,
    script: Script,
    memory: Memory | None = None,
    control: Control | None = None,
) -> Result:
    """All passes of ``script`` for a batch of B streams.

    latents [B, R, C, h, w], one for each of the script's rows; timesteps [B, R]; prompts [B, P, text_len, text_dim],
    by the rows' prompt numbers; memory: keys and values of the script's memory; control: adds hints to layers' results.
    All is computed in the weights' dtype.
    """
    batch, count, _, h, w = latents.shape
    grid = h // PATCH, w // PATCH
    plan = _plan(_passes_of(script), len(script.memory), tuple(row.prompt for row in script.rows), model.device)
    turns = _turns(plan.positions, grid, model.config.head_dim, rope.table_dtype(model.compute_dtype))
    modulation = _modulation(model, timesteps)
    x = model.patch(patchify(latents.to(model.compute_dtype).flatten(0, 1))).view(batch, count, grid[0] * grid[1], -1)
    context = model.text_out(F.gelu(model.text_in(prompts.to(model.compute_dtype)), approximate="tanh"))
    hints = control.hints(x, modulation.time, context, script, grid) if control else {}
    keys, values = [], []
    for layer, block in enumerate(model.blocks):
        past = (memory.k[layer], memory.v[layer]) if memory else (x.new_empty(0), x.new_empty(0))
        m = modulation.layers[:, :, layer, :, None]  # [B, R, 6, 1, D]
        x, k, v = _layer(block, x, m, context, plan, turns, *past)
        if layer in hints:
            x = x + hints[layer]
        keys.append(k)
        values.append(v)
    shift, scale = modulation.head[:, :, :, None].unbind(2)
    tokens = model.head(modulated(x, shift, scale, model.config.eps))
    flow = unpatchify(tokens.flatten(0, 2), grid).unflatten(0, (batch, count))
    return Result(flow, Memory(torch.stack(keys), torch.stack(values)))


def _passes_of(script: Script) -> tuple[Pass, ...]:
    """The passes; moved to the beginning of time where only differences of positions matter, so that plans repeat."""
    first = min(position for step in script.passes for _, position in step.keys) if script.relative else 0
    if not first:
        return tuple(script.passes)
    return tuple(Pass(rows, tuple((row, at - first) for row, at in keys)) for rows, keys in script.passes)


class _Choice(NamedTuple):
    """Rows of many, in any order and number, in ``shape``.

    Chosen by a product with ones and zeros: exact, and its gradient is a product too, where that of an index adds up
    in an order that changes from run to run, and slowly. Nothing is done where all are chosen as they are.
    """

    matrix: Tensor | None  # [chosen, of]
    shape: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, of, ...] to [B, chosen, ...]."""
        if self.matrix is None:
            return x
        matrix = self.matrix.to(x.dtype).expand(len(x), -1, -1)
        return torch.bmm(matrix, x.flatten(2)).unflatten(2, x.shape[2:])


class _Group(NamedTuple):
    """Passes with equally many rows and equally many keys."""

    rows: _Choice  # of the new rows
    pairs: _Choice  # of the rotated keys
    seen: _Choice  # of all rows


class _Plan(NamedTuple):
    """A script as choices on the device."""

    pairs: _Choice  # rows to rotate
    positions: Tensor  # and where to
    own: Tensor  # for each new row, its pair: how its query is rotated
    groups: tuple[_Group, ...]
    order: _Choice  # the new rows from the groups' order
    prompts: tuple[tuple[int, _Choice], ...]  # prompt number and its new rows
    prompt_order: _Choice


@lru_cache(maxsize=512)
def _plan(passes: tuple[Pass, ...], memory: int, prompts: tuple[int, ...], device: torch.device) -> _Plan:
    # A key is rotated once for each position that it is seen at: sinks move, all others stay.
    pair_of = {pair: i for i, pair in enumerate(dict.fromkeys(pair for step in passes for pair in step.keys))}
    own: dict[int, int] = {}
    shapes: dict[tuple[int, int], list[Pass]] = {}
    for step in passes:
        own |= {pair[0]: pair_of[pair] for pair in step.keys if pair[0] in step.rows}
        shapes.setdefault((len(step.rows), len(step.keys)), []).append(step)

    new, every = len(prompts), memory + len(prompts)

    def choice(indices: list[list[int]], of: int) -> _Choice:
        shape, rows = (len(indices), len(indices[0])), [row for some in indices for row in some]
        if rows == list(range(of)):
            return _Choice(None, shape)
        return _Choice(F.one_hot(torch.tensor(rows), of).to(device, torch.bfloat16), shape)

    def inverse(order: list[int]) -> _Choice:
        return choice([torch.tensor(order).argsort().tolist()], new)

    groups, order = [], []
    for steps in shapes.values():
        rows = [[row - memory for row in step.rows] for step in steps]
        pairs = [[pair_of[pair] for pair in step.keys] for step in steps]
        seen = [[row for row, _ in step.keys] for step in steps]
        groups.append(_Group(choice(rows, new), choice(pairs, len(pair_of)), choice(seen, every)))
        order += [row for some in rows for row in some]
    numbers = sorted(set(prompts))
    by_prompt = [[row for row, prompt in enumerate(prompts) if prompt == number] for number in numbers]
    return _Plan(
        pairs=choice([[row for row, _ in pair_of]], every),
        positions=torch.tensor([position for _, position in pair_of], device=device),
        own=torch.tensor([own[memory + row] for row in range(new)], device=device),
        groups=tuple(groups),
        order=inverse(order),
        prompts=tuple((number, choice([rows], new)) for number, rows in zip(numbers, by_prompt, strict=True)),
        prompt_order=inverse([row for rows in by_prompt for row in rows]),
    )


def _modulation(model: Transformer, timesteps: Tensor) -> Modulation:
    batch, count = timesteps.shape
    flat = model.modulation(timesteps.flatten())
    return Modulation(*(part.unflatten(0, (batch, count)) for part in flat))


def _turns(positions: Tensor, grid: tuple[int, int], head_dim: int, dtype: torch.dtype) -> Tensor:
    """(cos, sin) for each position and token, [P, S, 1, head_dim / 2, 2]."""
    freqs = rope.frequencies(rope.axis_pairs(head_dim)[0], positions.device)
    time = rope.rotation(positions, freqs, dtype)
    space = rope.spatial_table(grid, head_dim, dtype, positions.device)
    parts = time[:, None].expand(-1, len(space), -1, -1), space[None].expand(len(time), -1, -1, -1)
    return torch.cat(parts, dim=2)[:, :, None]


def _rms(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], gain, eps)


def _layer(
    block: TransformerBlock,
    x: Tensor,
    m: Tensor,
    context: Tensor,
    plan: _Plan,
    turns: Tensor,
    past_k: Tensor,
    past_v: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer (docs/model.md 2.2) on x [B, R, S, D]; also the keys and values of memory's and the new rows."""
    shift1, scale1, gate1, shift2, scale2, gate2 = m.unbind(2)
    q, k, v = block.qkv(modulated(x, shift1, scale1, block.eps)).chunk(3, dim=-1)
    q = _rms(q, block.q_gain, block.eps).unflatten(-1, block.heads)
    k = _rms(k, block.k_gain, block.eps).unflatten(-1, block.heads)
    v = v.unflatten(-1, block.heads)
    if past_k.numel():
        k, v = torch.cat((past_k, k), 1), torch.cat((past_v, v), 1)
    x = gated(x, block.out(_self_attention(q, k, v, plan, turns)), gate1)
    z = F.layer_norm(x, x.shape[-1:], block.cross_norm_gain, block.cross_norm_bias, block.eps)
    x = x + block.cross_out(_cross_attention(block, z, context, plan))
    z = modulated(x, shift2, scale2, block.eps)
    x = gated(x, block.ffn_out(F.gelu(block.ffn_in(z), approximate="tanh")), gate2)
    return x, k, v


def _self_attention(q: Tensor, k: Tensor, v: Tensor, plan: _Plan, turns: Tensor) -> Tensor:
    q = rotated(q, turns[plan.own])
    k = rotated(plan.pairs(k), turns)
    out = []
    for group in plan.groups:  # one batch, each pass with its own copy of its keys
        batches = (_passes(q, group.rows), _passes(k, group.pairs), _passes(v, group.seen))
        y = F.scaled_dot_product_attention(*batches).transpose(1, 2)
        out.append(y.reshape(len(q), -1, q.shape[2], q.shape[3] * q.shape[4]))
    return plan.order(torch.cat(out, 1))


def _passes(x: Tensor, choice: _Choice) -> Tensor:
    """x [B, R, S, heads, head_dim] as attention's batch [B * passes, heads, rows * S, head_dim]."""
    return choice(x).reshape(len(x) * choice.shape[0], -1, *x.shape[3:]).transpose(1, 2)


def _cross_attention(block: TransformerBlock, z: Tensor, context: Tensor, plan: _Plan) -> Tensor:
    q = _rms(block.cross_q(z), block.cross_q_gain, block.eps).unflatten(-1, block.heads)
    keys, values = block.cross_kv(context).chunk(2, dim=-1)
    keys = _rms(keys, block.cross_k_gain, block.eps).unflatten(-1, block.heads)
    values = values.unflatten(-1, block.heads)
    out = []
    for prompt, rows in plan.prompts:
        some = rows(q)
        query, k, v = (t.transpose(1, 2) for t in (some.flatten(1, 2), keys[:, prompt], values[:, prompt]))
        out.append(F.scaled_dot_product_attention(query, k, v).transpose(1, 2).reshape(*some.shape[:3], -1))
    return plan.prompt_order(torch.cat(out, 1))
