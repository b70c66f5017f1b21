"""Error of one forward, and of decoding, against float32: ours, ours in 8 bits, and the baseline's in its dtype.

Every pass is given the same latents and the same older keys and values (teacher-forced): rollouts decorrelate and tell
nothing.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine.engine import LongLiveEngine
from ..engine.sampler import make_schedule
from ..model.precision import PLAIN, Policy
from ..model.ring_cache import RingCache
from ..vae.backends import codec_for
from ..vae.modules import ModulesCodec
from ..vae.stream import DecoderStream
from ..video_time import BLOCK_FRAMES, blocks_of
from .baseline import baseline_network
from .block import PROMPT

SAME = 100.0  # decibels, of pictures without a difference


def psnr(one: Tensor, other: Tensor) -> float:
    """Decibels, over all frames uint8 of both."""
    error = (one.float() - other.float()).square().mean().item()
    return min(SAME, 10 * math.log10(255**2 / error)) if error else SAME


def relative_error(got: Tensor, truth: Tensor) -> float:
    """||got - truth|| / ||truth||."""
    truth = truth.double()
    return ((got.double() - truth).norm() / truth.norm()).item()


class _Error(NamedTuple):
    """Relative errors of one tensor; int8 is 0 where nothing runs in 8 bits."""

    what: str
    ours: float
    baseline: float
    int8: float

    @classmethod
    def of(cls, what: str, truth: Tensor, ours: Tensor, baseline: Tensor, int8: Tensor | None) -> _Error:
        errors = (0.0 if got is None else relative_error(got, truth) for got in (ours, baseline, int8))
        return cls(what, *errors)

    @property
    def ratio(self) -> float:
        """Of our error to the baseline's."""
        return self.ours / max(self.baseline, 1e-12)


class _Networks:
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
            net.window = self.stream.ring.window
            net.reset()
        self.stream.ring.reset()
        self.stream.ring.hold(False)
        self._int8_cached: dict[str, Tensor] = {}

    def forward(self, x: Tensor, t: float, start: int, policy: Policy) -> tuple[Tensor, Tensor, Tensor | None]:
        """Flow of ours, the baseline, and ours with ``policy``, if not PLAIN, over a copy of our keys and values."""
        ring, int8 = self.stream.ring, None
        timestep = torch.tensor([t], dtype=torch.float64, device=x.device)
        times, modulation = timestep.expand(len(x)), self.model.modulation(timestep)
        if policy:
            copied = copy.deepcopy(ring)
            copied.hold(self.stream.int8_keys)
            copied.seek(start, len(x))
            int8 = self.model(x, modulation, copied, self.cross, policy)
            self._int8_cached = dict(self._newest(copied))
        ring.seek(start, len(x))
        ours = self.model(x, modulation, ring, self.cross)
        self._true_flow = self.truth.forward(x.float(), times, self.embedding.float(), start)
        return ours, self.baseline.forward(x, times, self.embedding, start), int8

    def flow_error(self, what: str, x: Tensor, t: float, start: int, policy: Policy) -> _Error:
        """Of one pass."""
        flows = self.forward(x, t, start, policy)
        return _Error.of(what, self._true_flow, *flows)

    def cache_errors(self) -> Iterator[_Error]:
        """Of each layer's keys and values of the newest frames."""
        for what, ours in self._newest(self.stream.ring):
            name, _, layer = what.partition(" of layer ")
            baseline, truth = (
                getattr(net.caches[int(layer)], name)[-len(ours) :] for net in (self.baseline, self.truth)
            )
            yield _Error.of(f"context pass, {what}", truth, ours, baseline, self._int8_cached.get(what))

    def _newest(self, ring: RingCache) -> Iterator[tuple[str, Tensor]]:
        for layer in range(len(ring.k_sink)):
            for name, of_layer in (("k", ring.keys(layer)), ("v", ring.values(layer))):
                yield f"{name} of layer {layer}", of_layer[ring.slots].flatten(0, 1)


class ForwardErrors:
    """Measures the passes of a steady block of an engine's own stream, with the settings that are in force then.

    Turns TF32 off for this process. Raises ValueError unless the engine's positions are ``base``.
    """

    def __init__(self, engine: LongLiveEngine):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.engine, self._networks = engine, _Networks(engine)

    @torch.no_grad()
    def measure(self, seeds: int) -> dict:
        """Worst ratio of our error to the baseline's, over seeds and passes, and what 8 bits, if any, add to it."""
        stream = self.engine.stream
        rows = [row for seed in range(seeds) for row in self._rows(seed)]
        assert all(math.isfinite(row.ours) and math.isfinite(row.baseline) for row in rows)
        worst = max(rows, key=lambda row: row.ratio)
        flows, caches = ([row for row in rows if row.what.startswith(kind)] for kind in ("flow", "context"))
        summary = {
            "worst_ratio": worst.ratio,
            "worst_at": worst.what,
            "worst_ours": worst.ours,
            "worst_baseline": worst.baseline,
            "max_flow_error_ours": max(row.ours for row in flows),
            "max_flow_error_baseline": max(row.baseline for row in flows),
        }
        if stream.policy:
            finite = [row for row in rows if math.isfinite(row.int8)]
            worst = max((row for row in caches if row in finite), key=lambda row: row.int8, default=caches[0])
            summary |= {
                "not_finite_int8": len(rows) - len(finite),
                "max_flow_error_int8": max((row.int8 for row in flows if row in finite), default=0.0),
                "context_worst_int8": worst.int8,
                "context_worst_at": worst.what,
                "context_there_ours": worst.ours,
            }
        stream.reset()
        return summary | {"measurements": len(rows), "logit_std_estimate": self._logits()}

    def _rows(self, seed: int) -> Iterator[_Error]:
        engine, networks, stream = self.engine, self._networks, self.engine.stream
        steps = make_schedule(stream.settings.denoising_steps, stream.settings.step_schedule)
        shape = BLOCK_FRAMES, *stream.latent_shape
        blocks = blocks_of(stream.ring.window) + 1
        generator = torch.Generator(engine.device).manual_seed(seed)
        networks.prompt(engine.prompts.get(f"{PROMPT}, number {seed}"))
        for block in range(blocks):
            steady = block == blocks - 1
            clean = torch.randn(shape, generator=generator, device=engine.device)
            for t, sigma in [*([(s.timestep, s.sigma) for s in steps] if steady else []), (0.0, 0.0)]:
                noise = torch.randn(shape, generator=generator, device=engine.device)
                x = ((1 - sigma) * clean + sigma * noise).to(engine.dtype)
                policy = stream.policy if steady else PLAIN
                row = networks.flow_error(f"flow, t {t:.0f}", x, t, block * BLOCK_FRAMES, policy)
                if steady and t:
                    yield row
        yield from networks.cache_errors()

    def _logits(self) -> list[float]:
        """Standard deviation of attention logits at the first and last layer: random weights must not make this
        easy."""
        spread, model = [], self.engine.model
        for layer in (0, model.config.num_layers - 1):
            k = self._networks.truth.caches[layer].k.flatten(1)
            gain = model.blocks[layer].q_gain.float().square().mean().sqrt()
            spread.append((k.square().mean().sqrt() * gain).item())
        return spread


@torch.no_grad()
def decoder_errors(engine: LongLiveEngine, seeds: int) -> dict:
    """Worst ratio of errors of a block's pixels to float32: the engine's decoder, and its network as modules."""
    vae = copy.deepcopy(engine.vae).to(engine.device)
    wide = copy.deepcopy(vae).float()
    ours, modules = engine.stream.decoder, DecoderStream(ModulesCodec(vae, dtype=engine.dtype))
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


@torch.no_grad()
def int8_figures(engine: LongLiveEngine, blocks: int) -> dict[str, float]:
    """PSNR of so many blocks of normal latents, decoded in int8 against the VAE's dtype, and the values cut off.

    Empty for a VAE that does not run in int8.
    """
    vae = copy.deepcopy(engine.vae).to(engine.device)
    try:
        codec = codec_for(vae, precision="int8")
    except ValueError:
        return {}
    plain, int8, found = DecoderStream(codec_for(vae, precision="bf16")), DecoderStream(codec), []
    generator = torch.Generator(engine.device).manual_seed(0)
    for _ in range(blocks):
        latents = torch.randn(BLOCK_FRAMES, *engine.stream.latent_shape, generator=generator, device=engine.device)
        found.append(psnr(*(stream.decode_uint8(latents.to(vae.dtype)) for stream in (plain, int8))))
    engine.synchronize()
    return {"psnr_median_db": statistics.median(found), "psnr_worst_db": min(found), "saturated": codec.saturated}
