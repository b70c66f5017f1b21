"""Blocks in 8 bits, each from the ring of a stream without: teacher-forced, so that differences do not add up.

Each of the two has a decoder of its own, which sees the latents of that precision from the first block on.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import StreamSettings
from ..engine.block import settle
from ..engine.engine import LongLiveEngine
from ..engine.request import BlockRequest
from ..engine.sampler import make_schedule
from ..engine.stream import Stream
from ..model.precision import PLAIN, Parts, Policy
from ..model.ring_cache import RingCache
from ..tinyworld.vocabulary import known_to
from ..tinyworld.world import caption, sample_scene
from ..video_time import BLOCK_FRAMES, blocks_of
from ..weights.locate import TINY
from .block import PROMPT
from .quality import psnr, relative_error

_SHOWN = 2  # frames of a picture for each preset
_GAIN = 8  # of the difference, in the picture
_GAP = 2  # pixels between pictures


class Pair(NamedTuple):
    """A block's frames uint8 [T, H, W, 3] on the CPU."""

    plain: Tensor
    int8: Tensor
    fallback: bool  # what 8 bits gave was not finite: ``int8`` was made without

    @property
    def psnr(self) -> float:
        """Decibels, over all of the frames."""
        return psnr(self.plain, self.int8)


def prompts_of(model: str) -> list[str]:
    """Two that the model knows."""
    if model != TINY:
        return [PROMPT, "a paper boat on a lake, seen from above"]
    dice = [Random(f"teacher {i}") for i in range(2)]
    known = known_to(TINY)
    return [caption(sample_scene(each, held_out=True, known=known), each) for each in dice]


def forced_pairs(engine: LongLiveEngine, settings: StreamSettings, prompts: Sequence[str], blocks: int) -> list[Pair]:
    """So many steady blocks of each prompt: without 8 bits, and with the precision of ``settings``."""
    return [pair for seed, prompt in enumerate(prompts) for pair in _pairs(engine, settings, prompt, seed, blocks)]


def _pairs(engine: LongLiveEngine, settings: StreamSettings, prompt: str, seed: int, blocks: int) -> Iterator[Pair]:
    teacher = _stream(engine, settings, seed=seed, precision="bf16")
    pupil = _stream(engine, settings, seed=seed, use_cuda_graphs=False)  # its ring is another one for every block
    fill = blocks_of(teacher.ring.window)
    for block in range(fill + blocks):
        if block:
            pupil.passes.ring, pupil.history = _copied(teacher.ring, pupil), teacher.history.clone()
        before = pupil.fallback_blocks
        int8, plain = (engine.generate_block(BlockRequest(prompt), stream).cpu() for stream in (pupil, teacher))
        if block >= fill:
            yield Pair(plain, int8, pupil.fallback_blocks > before)


def _copied(ring: RingCache, pupil: Stream) -> RingCache:
    """A copy as the pupil's precision has it; in 8 bits with the offsets and scales of its own first block."""
    own, ring = pupil.ring.cache8, copy.deepcopy(ring)
    ring.hold(pupil.int8_keys, own)
    return ring


def _stream(engine: LongLiveEngine, settings: StreamSettings, **changes: Any) -> Stream:
    return engine.open_stream(**{**dataclasses.asdict(settings), **changes})


def figures(pairs: Sequence[Pair]) -> dict:
    """Median and worst PSNR of the blocks, and how many 8 bits failed."""
    psnr = [pair.psnr for pair in pairs]
    return {
        "blocks": len(psnr),
        "psnr_median_db": statistics.median(psnr),
        "psnr_worst_db": min(psnr),
        "fallback_blocks": sum(pair.fallback for pair in pairs),
    }


def picture(pairs: Sequence[Pair]) -> Tensor:
    """Some frames of the worst block, uint8 [H', W', 3]: without 8 bits | with | eight times the difference."""
    pair = min(pairs, key=lambda pair: pair.psnr)
    at = torch.linspace(0, len(pair.plain) - 1, _SHOWN).round().long()
    plain, int8 = pair.plain[at], pair.int8[at]
    difference = ((plain.int() - int8.int()).abs() * _GAIN).clamp(max=255).byte()
    framed = [F.pad(each, (0, 0, 0, _GAP, 0, _GAP), value=255) for each in (plain, int8, difference)]
    return torch.cat(framed, 2).flatten(0, 1)


@torch.no_grad()
def error_by_part(engine: LongLiveEngine, settings: StreamSettings, prompt: str) -> dict[str, float]:
    """What 8 bits change in a steady block's flow, relative L2, the worst of its steps: of all that the precision
    names, of each part of the layers by itself, of attention, and of each layer's products. Earlier blocks are without.
    """
    stream = _stream(engine, settings, use_cuda_graphs=False, precision="bf16")
    for _ in range(blocks_of(stream.ring.window)):
        engine.generate_block(BlockRequest(prompt), stream)
    with engine.devices.turn():
        settle(stream)
        plain = copy.deepcopy(stream.ring)
        stream.configure(precision=settings.precision)
        settle(stream)
        rings = {"dtype": plain, stream.ring.keys_read: stream.ring}
        return {name: _change(stream, plain, policy, rings[keys]) for name, policy, keys in _alone(stream)}


def _alone(stream: Stream) -> Iterator[tuple[str, Policy, str]]:
    """A name, and what then runs in 8 bits: products, and the keys that attention reads."""
    whole, keys = stream.policy, stream.ring.keys_read
    yield "all", whole, keys
    for name in Parts._fields:
        yield name, tuple(Parts(**{name: getattr(layer, name)}) for layer in whole), "dtype"
    if keys != "dtype":
        yield "attention", PLAIN, keys
    for i in range(len(whole)):
        yield f"layer {i}", tuple(parts if j == i else Parts() for j, parts in enumerate(whole)), "dtype"


def _change(stream: Stream, plain: RingCache, policy: Policy, ring: RingCache) -> float:
    passes, clean = stream.passes, stream.history[-BLOCK_FRAMES:]
    generator, changes = torch.Generator(clean.device).manual_seed(0), []
    for each in (plain, ring):
        each.seek(stream.position, BLOCK_FRAMES)
    for t, sigma in make_schedule(stream.settings.denoising_steps, stream.settings.step_schedule):
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        x = ((1 - sigma) * clean + sigma * noise).to(clean.dtype)
        modulation = passes.model.modulation(torch.tensor([t], dtype=torch.float64, device=clean.device))
        without = passes.model(x, modulation, plain, passes.cross)
        changes.append(relative_error(passes.model(x, modulation, ring, passes.cross, policy), without))
    return max(changes)
