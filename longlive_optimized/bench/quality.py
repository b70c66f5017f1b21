"""Error of one forward, and of decoding, against float32: ours and the baseline's, in the model's dtype.

Every pass is given the same latents in all three networks (teacher-forced): rollouts decorrelate and tell nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..engine.engine import LongLiveEngine
from ..engine.sampler import make_schedule
from ..vae.modules import ModulesCodec
from ..vae.stream import DecoderStream
from ..video_time import BLOCK_FRAMES
from .baseline import baseline_network
from .block import PROMPT


def relative_error(got: Tensor, truth: Tensor) -> float:
    """||got - truth|| / ||truth||."""
    truth = truth.double()
    return ((got.double() - truth).norm() / truth.norm()).item()


class _Trio:
    """The engine's network, the baseline in the same dtype, and the baseline in float32, fed alike."""

    def __init__(self, engine: LongLiveEngine):
        if engine.config.positions != "base":
            raise ValueError("positions must be 'base': the variants cache different keys")
        self.model, self.stream = engine.model, engine.stream
        self.baseline, self.truth = baseline_network(engine), baseline_network(engine, torch.float32)

    def prompt(self, embedding: Tensor) -> None:
        self.embedding = embedding
        self.cross = self.model.cross_cache(embedding)
        for net in (self.baseline, self.truth):
            net.reset()
        self.stream.ring.reset()

    def forward(self, x: Tensor, t: float, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Flow of ours, the baseline and float32."""
        self.stream.ring.seek(start, len(x))
        timestep = torch.tensor([t], dtype=torch.float64, device=x.device)
        times = timestep.expand(len(x))
        return (
            self.model(x, self.model.modulation(timestep), self.stream.ring, self.cross),
            self.baseline.forward(x, times, self.embedding, start),
            self.truth.forward(x.float(), times, self.embedding.float(), start),
        )

    def cached(self) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        """Each layer's keys and values of the newest frames, with their names."""
        ring = self.stream.ring
        for layer, (baseline, truth) in enumerate(zip(self.baseline.caches, self.truth.caches, strict=True)):
            for name in ("k", "v"):
                ours = getattr(ring, name)[layer][ring.slots].flatten(0, 1)
                rest = (getattr(cache, name)[-len(ours) :] for cache in (baseline, truth))
                yield f"{name} of layer {layer}", ours, *rest


@torch.no_grad()
def run(engine: LongLiveEngine, seeds: int) -> dict:
    """Worst ratio of our error to the baseline's, over seeds and passes of a steady block.

    Turns TF32 off for this process. Raises ValueError unless the engine's positions are ``base``.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    trio = _Trio(engine)
    steps = make_schedule(engine.config.denoising_steps, engine.config.step_schedule)
    shape = BLOCK_FRAMES, *trio.stream.latent_shape
    blocks = -(-trio.stream.window // BLOCK_FRAMES) + 1
    rows = []
    for seed in range(seeds):
        generator = torch.Generator(engine.device).manual_seed(seed)
        trio.prompt(engine.prompts.get(f"{PROMPT}, number {seed}"))
        for block in range(blocks):
            passes = [(s.timestep, s.sigma) for s in steps] if block == blocks - 1 else []
            clean = torch.randn(shape, generator=generator, device=engine.device)
            for t, sigma in [*passes, (0.0, 0.0)]:
                noise = torch.randn(shape, generator=generator, device=engine.device)
                x = ((1 - sigma) * clean + sigma * noise).to(engine.dtype)
                ours, baseline, truth = trio.forward(x, t, block * BLOCK_FRAMES)
                if passes and t:
                    rows.append((f"flow, t {t:.0f}", relative_error(ours, truth), relative_error(baseline, truth)))
        for what, ours, baseline, truth in trio.cached():
            rows.append((f"context pass, {what}", relative_error(ours, truth), relative_error(baseline, truth)))
    return _summary(rows) | _logits(trio, engine) | _pixels(engine, seeds)


def _summary(rows: list[tuple[str, float, float]]) -> dict:
    assert all(math.isfinite(ours) and math.isfinite(baseline) for _, ours, baseline in rows)
    what, ours, baseline = max(rows, key=lambda row: row[1] / max(row[2], 1e-12))
    flows = [row for row in rows if row[0].startswith("flow")]
    return {
        "worst_ratio": ours / max(baseline, 1e-12),
        "worst_at": what,
        "worst_ours": ours,
        "worst_baseline": baseline,
        "max_flow_error_ours": max(row[1] for row in flows),
        "max_flow_error_baseline": max(row[2] for row in flows),
        "measurements": len(rows),
    }


def _pixels(engine: LongLiveEngine, seeds: int) -> dict:
    """Worst ratio of errors of a block's pixels to float32: the engine's decoder, and its network as modules."""
    wide = copy.deepcopy(engine.vae).float()
    ours, modules = engine.stream.decoder, DecoderStream(ModulesCodec(engine.vae))
    truth = DecoderStream(ModulesCodec(wide))
    shape = BLOCK_FRAMES, *engine.stream.latent_shape
    rows = []
    for seed in range(seeds):
        generator = torch.Generator(engine.device).manual_seed(seed)
        for stream in (ours, modules, truth):
            stream.reset()
        for _ in range(3):
            latents = torch.randn(shape, generator=generator, device=engine.device).to(engine.dtype)
            want = truth.decode(latents.float())
            rows.append(tuple(relative_error(stream.decode(latents), want) for stream in (ours, modules)))
    engine.stream.reset()
    worst = max(rows, key=lambda row: row[0] / max(row[1], 1e-12))
    return {
        "pixels_worst_ratio": worst[0] / max(worst[1], 1e-12),
        "pixels_ours": worst[0],
        "pixels_modules": worst[1],
    }


def _logits(trio: _Trio, engine: LongLiveEngine) -> dict:
    """Standard deviation of attention logits at the first and last layer: random weights must not make this easy."""
    spread = []
    for layer in (0, engine.model.config.num_layers - 1):
        k = trio.truth.caches[layer].k.flatten(1)
        gain = engine.model.blocks[layer].q_gain.float().square().mean().sqrt()
        spread.append((k.square().mean().sqrt() * gain).item())
    return {"logit_std_estimate": spread}
