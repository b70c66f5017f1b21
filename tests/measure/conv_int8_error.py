"""What 8 bits cost the VAE's pictures, recipe by recipe: PSNR of decoded, and of encoded frames, as a Markdown table.

python tests/measure/conv_int8_error.py

Simulated in float32 on the modules: inputs and weights of the 3x3x3 convolutions behind a norm are rounded as a recipe
says, but for the head's. The built-in model, on latents of its own streams and on the pictures they give, and a VAE
of full width with random weights, on normal latents; both against the same network without a rounding. A few minutes.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.bench.teacher import prompts_of
from longlive_optimized.vae.autoencoder import to_uint8
from longlive_optimized.vae.modules import ModulesCodec
from longlive_optimized.vae.stream import DecoderStream, EncoderStream
from longlive_optimized.vae.wan.layers import CausalConv3d, RMSNorm
from longlive_optimized.vae.wan.model import WanVae
from longlive_optimized.weights.random_checkpoint import _vae_rule

LEAST = 0.2785  # of -SiLU


class Recipe(NamedTuple):
    name: str
    calibrated_on: str  # "noise", or the "first block" of the last video
    margin: float = 1.0
    unsigned: bool = False  # u8 with a zero point, in place of s8
    smooth: float = 0.0  # inputs' channels are divided by their largest values to this power, weights multiplied


RECIPES = [
    Recipe("s8", "noise"),
    Recipe("s8, margin 1.1", "noise", margin=1.1),
    Recipe("s8, margin 1.25", "noise", margin=1.25),
    Recipe("u8 with a zero point", "noise", unsigned=True),
    Recipe("s8, channels evened (power 1/2)", "noise", smooth=0.5),
    Recipe("s8, channels evened (power 1)", "noise", smooth=1.0),
    Recipe("s8", "first block"),
    Recipe("s8, margin 1.25", "first block", margin=1.25),
]


class Simulation:
    """Rounds what goes into the convolutions of ``vae``, once ``recipe`` is set; or measures it."""

    def __init__(self, vae: WanVae):
        self.recipe: Recipe | None = None
        self.measuring, self.saturated, self.values = False, 0, 0
        self.largest: dict[nn.Module, Tensor] = {}  # of each channel
        for module in vae.modules():
            if isinstance(module, CausalConv3d) and module.kernel_size == (3, 3, 3):
                module.forward = self._forward(module, module.forward)

    def _forward(self, layer, plain):
        def forward(x: Tensor, state, norm: RMSNorm | None = None) -> Tensor:
            if norm is None or layer.out_channels == 3 or not (self.measuring or self.recipe):
                return plain(x, state, norm)
            x = F.silu(norm(x))
            if self.measuring:
                seen = x.abs().amax((0, 1, 2))
                self.largest[layer] = torch.maximum(self.largest.get(layer, seen), seen)
                return plain(x, state)
            kept, (x, layer.weight.data) = layer.weight.data, self._rounded(layer, x)
            try:
                return plain(x, state)
            finally:
                layer.weight.data = kept

        return forward

    def _rounded(self, layer, x: Tensor) -> tuple[Tensor, Tensor]:
        recipe, largest = self.recipe, self.largest[layer]
        evened = (largest / largest.max()).clamp(min=1e-3) ** recipe.smooth
        most, least = ((t / evened).max() * recipe.margin for t in (largest, torch.full_like(largest, LEAST)))
        scale = (most + least) / 255 if recipe.unsigned else most / 127
        zero = (least / scale).round() - 128 if recipe.unsigned else 0
        steps = (x / evened / scale).round() + zero
        kept = steps.clamp(-128 if recipe.unsigned else -127, 127)
        self.saturated, self.values = self.saturated + (kept != steps).sum().item(), self.values + steps.numel()
        weight = layer.weight * evened.view(-1, 1, 1, 1)
        step = weight.abs().amax((1, 2, 3, 4), keepdim=True) / 127
        return (kept - zero) * scale, (weight / step).round() * step


def built_in() -> tuple[WanVae, list[Tensor]]:
    """The VAE, and latents of streams [T, 16, h, w]; the last one's is the prompt of an engine's warm-up."""
    engine = LongLiveEngine("tiny", OptimizationConfig(model_dtype="float32"), device="cpu")
    videos = []
    for seed, prompt in enumerate([*prompts_of("tiny"), "warm-up"]):
        stream, blocks = engine.open_stream(seed=seed), []
        for _ in range(4):
            engine.generate_block(BlockRequest(prompt), stream)
            blocks.append(stream.history[-3:].clone())
        videos.append(torch.cat(blocks))
    return engine.vae, videos


def random_weights() -> tuple[WanVae, list[Tensor]]:
    vae, generator = WanVae(), torch.Generator().manual_seed(1)
    for key, p in vae.named_parameters():
        rule = _vae_rule(key, tuple(p.shape))
        p.copy_(torch.randn(p.shape, generator=generator) * rule.std + rule.mean)
    return vae, [torch.randn(6, 16, 6, 8, generator=generator) for _ in range(2)]


def decoded(vae: WanVae, latents: Tensor) -> Tensor:
    return DecoderStream(ModulesCodec(vae)).decode(latents)


def encoded(vae: WanVae, frames: Tensor) -> Tensor:
    return EncoderStream(ModulesCodec(vae)).encode(frames)


def psnr(got: Tensor, truth: Tensor) -> Iterator[float]:
    """Of each 12 frames."""
    for a, b in zip(to_uint8(got).split(12), to_uint8(truth).split(12), strict=True):
        yield 10 * math.log10(255**2 / max((a.float() - b.float()).square().mean().item(), 1e-9))


def noise(like: Tensor, seed: int) -> Tensor:
    return torch.randn(6, *like.shape[1:], generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def measure(vae: WanVae, videos: list[Tensor]) -> Iterator[str]:
    decoding, encoding = Simulation(vae.decoder), Simulation(vae.encoder)
    plain = [decoded(vae, video) for video in videos]
    frames = [pixels.clamp(-1, 1) for pixels in plain]
    again = [decoded(vae, encoded(vae, video)) for video in frames]
    for recipe in RECIPES:
        seen = noise(videos[0], 5) if recipe.calibrated_on == "noise" else videos[-1][:3]
        for side in (decoding, encoding):
            side.largest.clear()
            side.measuring, side.recipe = True, None
        shown = decoded(vae, seen).clamp(-1, 1)
        encoded(vae, shown)
        decoding.measuring = encoding.measuring = False
        cells = []
        for side in (decoding, encoding):
            side.recipe, side.saturated, side.values = recipe, 0, 0
            if side is decoding:
                pairs = [(decoded(vae, video), want) for video, want in zip(videos, plain, strict=True)]
                side.recipe = None
            else:
                latents = [encoded(vae, video) for video in frames]
                side.recipe = None
                pairs = [(decoded(vae, z), want) for z, want in zip(latents, again, strict=True)]
            found = list(itertools.chain.from_iterable(psnr(*pair) for pair in pairs))
            share = side.saturated / side.values
            cells.append(f"{statistics.median(found):.1f} ({min(found):.1f}) | {share:.0e}")
        yield f"| {recipe.name} | {recipe.calibrated_on} | " + " | ".join(cells) + " |"


def main() -> None:
    torch.set_num_threads(1)
    for name, made in (("built-in model", built_in), ("random weights", random_weights)):
        print(f"\n{name}\n\n| recipe | calibrated on | decoded, dB: median (worst) | saturated | encoded | saturated |")
        print("|---" * 6 + "|")
        vae, videos = made()
        for row in measure(vae, videos):
            print(row, flush=True)


if __name__ == "__main__":
    main()
