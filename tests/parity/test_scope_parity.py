"""Our engine against scope's own pipeline, number by number: one random checkpoint, float32, the CPU, the same seeds.

Runs where SCOPE_CHECKOUT names a checkout of scope and its requirements are installed:

    SCOPE_CHECKOUT=… pytest -s tests/parity/test_scope_parity.py

scope's are the pipeline class with all its blocks, the network with its KV cache, PEFT with LongLive's LoRA unmerged,
the scheduler, the VAE and the text encoder with its tokenizer. Replaced: what ``scope_on_cpu`` says; the sizes that
scope's loaders write into the code (VAE, text encoder, the LoRA's rank) by those of the checkpoint; the text encoder
runs in float32 instead of the file's bfloat16, and the VAE decodes float32 latents where they are.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Collection
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from parity.scope_on_cpu import StayHere, make_importable
from torch import Tensor

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.engine.recache import plan_recache
from longlive_optimized.model.ring_cache import RingCache
from longlive_optimized.text.blend import blend, slerp
from longlive_optimized.vae.codec import Codec
from longlive_optimized.vae.config import LATENT_MEAN, LATENT_STD, TaeConfig, VaeConfig
from longlive_optimized.vae.modules import ModulesCodec
from longlive_optimized.vae.stream import DecoderStream, EncoderStream
from longlive_optimized.vae.tae import Tae
from longlive_optimized.vae.wan.model import WanVae
from longlive_optimized.weights.files import open_checkpoint
from longlive_optimized.weights.locate import ModelFiles, locate

CHECKOUT = os.environ.get("SCOPE_CHECKOUT")
NEEDED = ("diffusers", "omegaconf", "peft", "einops", "easydict")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(not CHECKOUT, reason="SCOPE_CHECKOUT names no checkout of daydreamlive/scope"),
    pytest.mark.skipif(bool(MISSING), reason=f"scope's requirements are not installed: {', '.join(MISSING)}"),
]

HEIGHT, WIDTH = 64, 96
GRID = (HEIGHT // 16, WIDTH // 16)
TOKENS = GRID[0] * GRID[1]
SEED = 42
TOLERANCE = 1e-5  # relative L2 in float32; another order of summation makes some 1e-6
FOX, BOAT = "a red fox walks  through fresh snow", "a boat on a lake – in the evening"
AS_SCOPE = OptimizationConfig(
    height=HEIGHT,
    width=WIDTH,
    seed=SEED,
    step_schedule="scope",
    positions="base",
    restart_at=1021,
    model_dtype="float32",
)


@pytest.fixture(scope="module")
def engine() -> LongLiveEngine:
    return LongLiveEngine("tiny", AS_SCOPE, device="cpu")


@pytest.fixture(scope="module")
def scope() -> Scope:
    return Scope(locate("tiny"))


class Scope:
    """scope's pipeline on a checkpoint of ours, and everything that went through its parts."""

    def __init__(self, files: ModelFiles):
        make_importable(CHECKOUT)
        from scope.core.pipelines.longlive import pipeline
        from scope.core.pipelines.wan2_1.components import text_encoder
        from scope.core.pipelines.wan2_1.vae import wan

        text = open_checkpoint(files.text)
        sizes = {
            "vocab_size": len(text["token_embedding.weight"]),
            "dim": text["token_embedding.weight"].shape[1],
            "dim_attn": len(text["blocks.0.attn.q.weight"]),
            "dim_ffn": len(text["blocks.0.ffn.fc1.weight"]),
            "num_heads": text["blocks.0.pos_embedding.embedding.weight"].shape[1],
            "encoder_layers": len({key.split(".")[1] for key in text if key.startswith("blocks.")}),
        }
        width = len(open_checkpoint(files.vae)["decoder.head.2.weight"][0])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_encoder, "umt5_xxl", functools.partial(text_encoder.umt5_xxl, **sizes))
            patch.setattr(wan, "_video_vae", functools.partial(wan._video_vae, dim=width))
            config, where = _config(files, pipeline), {"device": torch.device("cpu"), "dtype": torch.float32}
            self.pipeline = pipeline.LongLivePipeline(config, **where)
        parts = self.pipeline.components
        parts.text_encoder.float()
        self.passes: list[Pass] = []
        self.latents: Tensor | None = None  # of the last block, [F, 16, h, w]
        parts.generator.register_forward_hook(self._note_pass, with_kwargs=True)
        self._decode = parts.vae.decode_to_pixel
        parts.vae.decode_to_pixel = self._note_latents

    def __call__(self, **keywords: Any) -> Tensor:
        """One call's frames, float32 [T, H, W, 3] in 0..1."""
        with torch.no_grad():
            return self.pipeline(**keywords)["video"]

    def _note_pass(self, module: torch.nn.Module, args: tuple, how: dict, out: tuple) -> None:
        kind = "recache" if how.get("is_recache") else "clean" if how.get("update_cache") else "denoise"
        self.passes.append(
            Pass(
                kind,
                how["timestep"][0, 0].item(),
                how["current_start"] // TOKENS,
                how["noisy_image_or_video"][0].clone(),
                how["conditional_dict"]["prompt_embeds"][0].clone(),
                out[0][0].clone(),
            )
        )

    def _note_latents(self, latents: Tensor, use_cache: bool) -> Tensor:
        self.latents = latents[0].clone()
        with StayHere():
            return self._decode(latents, use_cache)


@dataclass
class Pass:
    """One forward of scope's generator."""

    kind: str
    timestep: float
    start: int
    latents: Tensor  # [F, 16, h, w]
    embedding: Tensor  # [512, text_dim]
    flow: Tensor  # [F, 16, h, w]


def _config(files: ModelFiles, pipeline: Any) -> SimpleNamespace:
    from omegaconf import OmegaConf

    rank = len(next(iter(open_checkpoint(files.lora)["generator_lora"].values())))
    model = OmegaConf.load(os.path.join(os.path.dirname(pipeline.__file__), "model.yaml"))
    model.adapter.rank = model.adapter.alpha = rank
    return SimpleNamespace(
        height=HEIGHT,
        width=WIDTH,
        base_seed=SEED,
        model_config=model,
        model_dir=str(files.config.parent.parent),
        generator_path=str(files.generator),
        lora_path=str(files.lora),
        text_encoder_path=str(files.text),
        tokenizer_path=str(files.tokenizer),
    )


def compare(ours: Tensor, scopes: Tensor) -> tuple[float, float]:
    """Largest difference, and the relative L2 norm of all."""
    difference = ours.double() - scopes.double()
    return difference.abs().max().item(), (difference.norm() / scopes.double().norm()).item()


def roll_out(
    engine: LongLiveEngine, scope: Scope, blocks: list[tuple[dict, dict]], title: str, anew: Collection[int] = ()
) -> float:
    """Both make the same blocks, each from its own past; the worst relative difference of a block's latents.

    ``blocks``: the call's keywords for scope, the request's fields for us. ``anew``: blocks that the VAE begins with.
    """
    engine.reset()
    decoder, worst = DecoderStream(engine.codec), 0.0
    print(f"\n{title}\nblock frames   latents max abs, rel L2   pixels (0..1) max abs, rel L2   bytes that differ, by")
    for number, (keywords, fields) in enumerate(blocks, 1):
        theirs = scope(**keywords)
        frames = engine.generate_block(BlockRequest(**fields, noise_steps="scope"))
        latents = engine.stream.history[-len(scope.latents) :]
        if fields.get("reset") or number in anew:
            decoder.reset()
        pixels = (decoder.decode(latents).permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1)
        assert frames.shape == theirs.shape == pixels.shape
        of_latents, of_pixels = compare(latents, scope.latents), compare(pixels, theirs)
        steps = (frames.int() - (theirs * 255).to(torch.uint8).int()).abs()
        worst = max(worst, of_latents[1])
        print(
            f"{number:5} {len(frames):6}         {of_latents[0]:.1e}  {of_latents[1]:.1e}"
            f"               {of_pixels[0]:.1e}  {of_pixels[1]:.1e}"
            f"             {(steps > 0).float().mean():.1e}   {steps.max()}"
        )
        assert steps.max() <= 1, "pixels differ by more than one rounding"
    return worst


def noise_video(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (12, height, width, 3), dtype=torch.uint8, generator=generator)


def test_text_with_new_prompts_and_a_reset(engine, scope):
    prompts = [FOX] * 4 + [BOAT] * 3 + [FOX] * 2
    blocks = [({"prompts": p, "init_cache": i == 0}, {"prompt": p}) for i, p in enumerate(prompts)]
    blocks += [({"prompts": BOAT, "init_cache": True}, {"prompt": BOAT, "reset": True})]
    blocks += [({"prompts": BOAT, "init_cache": False}, {"prompt": BOAT})]
    assert roll_out(engine, scope, blocks, "text: new prompt at blocks 5 and 8, reset at block 10") < TOLERANCE


def test_video(engine, scope):
    """A new prompt is recached without ``manage_cache``; with it, it begins the stream anew."""
    blocks = []
    for i, prompt in enumerate([FOX] * 3 + [BOAT] * 3 + [FOX] * 2):
        video, anew = noise_video(i, 50, 70), i == 6
        keywords = {"noise_scale": 0.7, "noise_controller": False, "manage_cache": anew, "init_cache": i == 0}
        request = {"prompt": prompt, "video": video, "noise_scale": 0.7, "reset": anew}
        blocks.append(({"prompts": prompt, "video": list(video.split(1)), **keywords}, request))
    title = "video of 50 x 70 pixels, noise_scale 0.7: new prompt at block 4, new prompt and reset at block 7"
    assert roll_out(engine, scope, blocks, title) < TOLERANCE


def test_video_with_the_noise_controller(engine, scope):
    still, blocks = noise_video(0)[:1], []
    for i in range(4):
        video = (still.int() + 5 * i * (noise_video(i).int() - 128) // 128).clamp(0, 255).to(torch.uint8)
        keywords = {"noise_scale": 0.7, "noise_controller": True, "init_cache": i == 0}
        request = {"prompt": FOX, "video": video, "noise_scale": 0.7, "noise_from_motion": True}
        blocks.append(({"prompts": FOX, "video": list(video.split(1)), **keywords}, request))
    assert roll_out(engine, scope, blocks, "video that moves more and more, noise controller") < TOLERANCE


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_transition(engine, scope, method):
    transition = {"target_prompts": BOAT, "num_steps": 3, "temporal_interpolation_method": method}
    path = {"prompt": BOAT, "transition_blocks": 3, "transition_blend": method, "transition_from_source": True}
    blocks = [({"prompts": FOX, "init_cache": i == 0}, {"prompt": FOX}) for i in range(5)]
    blocks += [({"prompts": FOX, "init_cache": False, "transition": transition}, path)] * 3
    blocks += [({"prompts": FOX, "init_cache": False}, {"prompt": BOAT})]
    assert roll_out(engine, scope, blocks, f"text: transition of 3 at block 6, {method}") < TOLERANCE


def test_weighted_prompts(engine, scope):
    blocks = []
    for i, weights in enumerate([(3, 1), (3, 1), (1, 2)]):
        prompts = [{"text": text, "weight": weight} for text, weight in zip((FOX, BOAT), weights, strict=True)]
        request = {"prompt": tuple(zip((FOX, BOAT), weights, strict=True))}
        blocks.append(({"prompts": prompts, "init_cache": i == 0}, request))
    assert roll_out(engine, scope, blocks, "text: two prompts, weights 3:1, 1:2 at block 3") < TOLERANCE


def test_between_text_and_video(engine, scope):
    """Only the VAE begins anew: nine frames, of the twelve that came in."""
    blocks = []
    for i, from_video in enumerate([False] * 3 + [True] * 3 + [False] * 2):
        keywords = {"prompts": FOX, "init_cache": i == 0, "noise_scale": 0.7, "noise_controller": False}
        request = {"prompt": FOX, "noise_scale": 0.7}
        if from_video:
            request["video"] = noise_video(i)
            keywords["video"] = list(request["video"].split(1))
        blocks.append((keywords, request))
    assert roll_out(engine, scope, blocks, "video at blocks 4 to 6, text before and after", {4, 7}) < TOLERANCE


def test_each_pass_alone(engine, scope):
    """Every pass of scope's through our network, from scope's own latents, embedding and place in time."""
    scope.passes.clear()
    for i, prompt in enumerate([FOX] * 3 + [BOAT] * 3 + [FOX] * 2):
        scope(prompts=prompt, init_cache=i == 0)
    for i, prompt in enumerate([FOX] * 3 + [BOAT] * 3):
        scope(prompts=prompt, init_cache=i == 0, manage_cache=False, video=list(noise_video(i).split(1)))
    model, window, sink = engine.model, engine.config.local_attn_size, engine.config.sink_size
    ring = RingCache(model.config, GRID, window=window, sink=sink, relative=False, dtype=torch.float32, device="cpu")
    count: dict[str, int] = {}
    worst: dict[str, float] = {}
    for p in scope.passes:
        count[p.kind] = count.get(p.kind, 0) + 1
        cross = model.cross_cache(p.embedding)
        modulation = model.modulation(torch.tensor([p.timestep], dtype=torch.float64))
        if p.kind == "recache":  # what it leaves in the ring shows in the passes that follow
            plan = plan_recache(p.start + len(p.latents), window, sink, engine.config.global_sink)
            ring.seek(*plan)
            model(p.latents[-plan.frames :], modulation, ring, cross, store_only=True)
            continue
        ring.seek(p.start, len(p.latents))
        _, relative = compare(model(p.latents, modulation, ring, cross), p.flow)
        worst[p.kind] = max(worst.get(p.kind, 0), relative)
    print(f"\npasses: {count}; worst relative L2 of the flow: { {k: f'{v:.1e}' for k, v in worst.items()} }")
    assert count == {"denoise": 56, "clean": 14, "recache": 3}
    assert max(worst.values()) < TOLERANCE


def test_text_embeddings(engine, scope):
    texts = [FOX, BOAT, "snow", "x" * 2000, "&lt;b&gt; ＡＢＣ \n\t été", "日本語"]
    with torch.no_grad():
        theirs = scope.pipeline.components.text_encoder(text_prompts=texts)["prompt_embeds"]
    for text, ours, expected in zip(texts, engine.text.encode(texts), theirs, strict=True):
        largest, relative = compare(ours, expected)
        print(f"\n{text[:20]!r:30} max abs {largest:.1e}, rel L2 {relative:.1e}", end="")
        assert relative < TOLERANCE


def test_blends(engine, scope):
    from scope.core.pipelines import blending

    a, b = engine.text.encode([FOX, BOAT])
    for weights in ([3, 1], [1, 1], [0, 1], [0, 0]):
        theirs = blending.blend_embeddings([a, b], weights, "linear", torch.float32, "cpu")
        assert compare(blend([a, b], weights), theirs)[1] < TOLERANCE
    common, longer = sorted(len(engine.text.tokenizer(text)) for text in (FOX, BOAT))
    for t in (0.0, 0.25, 0.5, 1.0):
        ours, theirs = slerp(a, b, t), blending.slerp(a, b, t)
        both, one = (compare(ours[part], theirs[part])[0] for part in (slice(common), slice(common, longer)))
        print(f"\nslerp {t}: max abs {both:.1e} in the rows of both texts, {one:.1e} in the longer one's rest", end="")
        assert compare(ours[:common], theirs[:common])[1] < TOLERANCE


def test_vae(engine, scope):
    both_ways(engine.codec, scope.pipeline.components.vae)


@pytest.mark.parametrize("vae_type", ["lightvae", "tae", "lighttae"])
def test_small_vaes(vae_type, scope, tmp_path):
    from scope.core.pipelines.wan2_1.vae import create_vae

    statistics = {"latent_mean": LATENT_MEAN, "latent_std": LATENT_STD} if vae_type == "lighttae" else {}
    ours = WanVae(VaeConfig(base=24)) if vae_type == "lightvae" else Tae(TaeConfig(**statistics))
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: torch.randn(t.shape, generator=generator) / t[0].numel() ** 0.5 if t.ndim > 1 and len(t) > 1 else t
        for key, t in ours.state_dict().items()
    }
    ours.load_state_dict(weights)
    torch.save(weights, tmp_path / "vae.pth")
    theirs = create_vae(vae_type=vae_type, vae_path=str(tmp_path / "vae.pth"))
    both_ways(ModulesCodec(ours), theirs)


@torch.no_grad()
def both_ways(ours: Codec, theirs: torch.nn.Module) -> None:
    """Three chunks of noise through both encoders, then scope's latents through both decoders."""
    encoder, decoder = EncoderStream(ours), DecoderStream(ours)
    theirs.clear_cache()
    generator = torch.Generator().manual_seed(0)
    for count in (13, 12, 12):
        frames = 2 * torch.rand(count, 3, HEIGHT, WIDTH, generator=generator) - 1
        latents = theirs.encode_to_latent(frames.transpose(0, 1)[None])
        with StayHere():
            pixels = theirs.decode_to_pixel(latents, use_cache=True)[0]
        _, encoded = compare(encoder.encode(frames), latents[0])
        _, decoded = compare(decoder.decode(latents[0]).clamp(-1, 1), pixels)
        print(f"\n{count} frames: relative L2 of the latents {encoded:.1e}, of the pixels {decoded:.1e}", end="")
        assert max(encoded, decoded) < TOLERANCE
