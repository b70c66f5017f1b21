"""A control branch for the built-in model: ``python -m longlive_optimized.tinyworld.control FOLDER``.

Trains VACE's layers beside a frozen network, on two kinds of control: silhouettes (grey shapes on black) that the video
is to follow, and clips of which a box is to be made anew. Shapes stand where they like, not where their noise would put
them (``coupling``), and beside the world's grid, too: that is what control has to say. FOLDER gets the module, where
``locate`` finds it; ``measure`` says how well a video follows.
"""

from __future__ import annotations

import argparse
import math
import time
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..engine.engine import LongLiveEngine
from ..engine.request import BlockRequest, Control
from ..engine.sampler import TIMESTEP_SHIFT, make_schedule
from ..model.control import EVERY, ControlBranch
from ..model.transformer import Transformer
from ..vae.wan.model import WanVae
from ..video_time import BLOCK_FRAMES, BLOCK_PIXEL_FRAMES, FIRST_PIXEL_FRAMES
from ..weights.load import load_generator, load_vae
from ..weights.locate import CONTROL_FILE, locate
from ..weights.text import load_text_encoder
from . import forward as training
from .autoencode import encode, normalise
from .render import GRID, NATIVE, layouts, render
from .score import centre_of, shown
from .script import Script
from .vocabulary import known_to
from .world import WHOLE, Known, Scene, caption, sample_scene

_LATENTS = 4 * BLOCK_FRAMES  # of a clip
_FRAMES = 4 * _LATENTS - 3
_SILHOUETTES = 0.6  # share of the clips
_DISTURBED = 0.3  # largest noise level in the past that is not declared
_WARM, _COOL, _AVERAGED = 100, 0.3, 0.05  # as in ``train``
_LEVELS = [step.sigma for kind in ("longlive", "scope") for step in make_schedule((1000, 750, 500, 250), kind)]


class Clips(NamedTuple):
    """Latents [B, T, C, h, w], contexts [B, T, 96, h, w] and embedded captions [B, 1, text_len, text_dim]."""

    latents: Tensor
    contexts: Tensor
    prompts: Tensor


@cache
def opening() -> Script:
    """The first block of a stream."""
    script = Script()
    script.noisy(0)
    return script


@cache
def stream() -> Script:
    """A clip's blocks, each with what came before it."""
    script = Script()
    for start in range(0, _LATENTS, BLOCK_FRAMES):
        script.noisy(start)
        script.clean(start)
    return script


class Training:
    """The branch beside a frozen model, and clips to train it on; ``off_grid`` as in ``starts``."""

    def __init__(self, model: str | Path, clips: int, seed: int, device: torch.device, off_grid: float = 0.0):
        files, where = locate(model), (device, torch.float32)
        self.model = load_generator(files, *where)
        narrow = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._vae = cast(WanVae, load_vae(files, device, narrow))
        self._text, self.device = load_text_encoder(files, *where), device
        torch.manual_seed(seed)
        self.branch = new_branch(self.model)
        self._levels = torch.tensor(_LEVELS, device=device)
        self._known = known_to(model)
        self._random, self._generator, self._off_grid = Random(seed), torch.Generator().manual_seed(seed), off_grid
        parts = [self._make(min(50, clips - start)) for start in range(0, clips, 50)]
        self._bank = Clips(*map(torch.cat, zip(*parts, strict=True)))

    def loss(self, batch: int) -> Tensor:
        """The flow's mean squared error over denoised frames, of openings or of streams."""
        script = opening() if self._random.random() < 0.5 else stream()
        if script is opening():
            batch *= 4
        clips = self._pick(batch)
        frame = torch.tensor([row.frame for row in script.rows], device=self.device)
        noisy = torch.tensor([row.noisy for row in script.rows], device=self.device)
        latents, step = clips.latents[:, frame], frame // BLOCK_FRAMES
        s = (self._noise_levels(batch)[:, step] * noisy)[:, :, None, None, None]
        past = _DISTURBED * torch.rand(batch, 1, 1, 1, 1, device=self.device).mul(2).sub(1).clamp(min=0)
        clean = latents + past * ~noisy[:, None, None, None] * torch.randn_like(latents)
        noise = torch.randn_like(latents)
        x = (1 - s) * clean + s * noise
        contexts = clips.contexts[:, : int(frame.max()) + 1].unflatten(1, (-1, BLOCK_FRAMES))
        control = training.Control(self.branch, contexts)
        times = 1000 * s[:, :, 0, 0, 0]
        flow = training.forward(self.model, x, times, clips.prompts, script, control=control).flow
        return (flow - (noise - latents))[:, noisy].square().mean()

    def _pick(self, batch: int) -> Clips:
        chosen = torch.randint(len(self._bank.latents), (batch,), device=self.device)
        return Clips(*(each[chosen] for each in self._bank))

    def _noise_levels(self, batch: int) -> Tensor:
        """A level for each block: half of them of the presets' steps, the others even over the shifted schedule."""
        u, step = torch.rand(2, batch, _LATENTS // BLOCK_FRAMES, device=self.device)
        level = (TIMESTEP_SHIFT * u / (1 + (TIMESTEP_SHIFT - 1) * u)).clamp(min=0.01)
        index = (step * 2 * len(self._levels)).long().clamp(max=len(self._levels) - 1)
        return torch.where(step < 0.5, self._levels[index], level)

    @torch.no_grad()
    def _make(self, count: int) -> Clips:
        scenes = [sample_scene(self._random, held_out=False, known=self._known) for _ in range(count)]
        centres = starts(count, self._off_grid, self._generator)
        of_clip = [(scene,) for scene in scenes], centres, _FRAMES, *NATIVE
        frames, outlines = (
            self._signed(render(*of_clip, device=self.device, silhouettes=grey)) for grey in (False, True)
        )
        masks = self._masks(count)
        hinted = torch.rand(count, generator=self._generator) < 0.5
        filled = torch.where(hinted.to(self.device)[:, None, None, None, None], outlines, 0.0)
        whole = (torch.rand(count, generator=self._generator) < _SILHOUETTES).to(self.device)[:, None, None, None, None]
        masks = torch.where(whole, 1.0, masks)
        video = torch.where(whole, outlines, torch.where(masks > 0.5, filled, frames))
        kept, anew = (self._encode(each) for each in (video * (1 - masks), video * masks))
        channels = nn.functional.pixel_unshuffle(masks[:, 0, :1], 8)[:, None].expand(-1, _LATENTS, -1, -1, -1)
        prompts = self._text.encode([caption(scene, self._random) for scene in scenes])
        return Clips(self._encode(frames), torch.cat((kept, anew, channels), 2), prompts[:, None].float())

    def _masks(self, count: int) -> Tensor:
        """A box of each clip [count, 1, 1, H, W], white."""
        height, width = NATIVE
        y, x = torch.arange(height)[:, None], torch.arange(width)
        boxes = torch.zeros(count, 1, 1, height, width)
        for i in range(count):
            h, w = self._random.randint(height // 3, height), self._random.randint(width // 3, width)
            top, left = self._random.randint(0, height - h), self._random.randint(0, width - w)
            boxes[i, 0, 0] = ((y >= top) & (y < top + h) & (x >= left) & (x < left + w)).float()
        return boxes.to(self.device)

    def _signed(self, frames: Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] to [B, 3, T, H, W] in [-1, 1]."""
        return frames.movedim(-1, 1) / 127.5 - 1

    def _encode(self, frames: Tensor) -> Tensor:
        frames = frames.to(self._vae.dtype).contiguous(memory_format=torch.channels_last_3d)
        return normalise(encode(self._vae, frames)[0].float())


def starts(count: int, off_grid: float, generator: torch.Generator) -> Tensor:
    """Centres as ``layouts`` gives them. In about the share ``off_grid`` of the clips all shapes stand off the grid by
    the same whole pixels of its cells, down and to the right: they are as far apart as before."""
    centres = layouts(count, *NATIVE, generator)
    by = torch.randint(GRID, (count, 1, 2), generator=generator)
    return centres + by * (torch.rand(count, 1, 1, generator=generator) < off_grid)


def new_branch(model: Transformer) -> ControlBranch:
    """A branch for ``model`` whose layers begin as those beside them, and whose hints begin at 0."""
    branch = ControlBranch(model.config, model.device)
    for n, block in enumerate(branch.blocks):
        block.load_state_dict(model.blocks[EVERY * n].state_dict())
    for linear in (branch.patch, branch.before, *branch.after):
        assert linear.weight is not None
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    for linear in (branch.patch, branch.before):
        assert linear.weight is not None
        nn.init.xavier_uniform_(linear.weight)
    return branch.requires_grad_(True)


def train(work: Training, seconds: float, batch: int, rate: float, steps: int | None = None) -> dict[str, Tensor]:
    """The branch's averaged weights after ``seconds``, or ``steps``, by name."""
    weights = [*work.branch.parameters()]
    average = [weight.detach().clone() for weight in weights]
    optimiser = torch.optim.AdamW(weights, betas=(0.9, 0.95), weight_decay=0.0)
    begun, step, logged, seen = time.monotonic(), 0, 0.0, []
    while (progress := step / steps if steps else (time.monotonic() - begun) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / _WARM, (1 - progress) / _COOL)
        loss = work.loss(batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        step += 1
        torch._foreach_lerp_(average, [weight.detach() for weight in weights], 1 / (1 + _AVERAGED * step))
        seen.append(loss.detach())
        if time.monotonic() - logged > 5:
            print(f"step {step}: loss {torch.stack(seen).mean().item():.4f}", flush=True)
            logged, seen = time.monotonic(), []
    with torch.no_grad():
        for weight, mean in zip(weights, average, strict=True):
            weight.copy_(mean)
    return {key: slot.read().to(torch.bfloat16).cpu() for key, slot in work.branch.checkpoint_slots().items()}


def outlines(scene: Scene, centres: Tensor, blocks: int) -> list[Tensor]:
    """Silhouettes uint8 [T, H, W, 3] of each block of a video of ``scene``, 9 and then 12 frames."""
    frames = FIRST_PIXEL_FRAMES + BLOCK_PIXEL_FRAMES * (blocks - 1)
    video = render([(scene,)], centres, frames, *NATIVE, silhouettes=True)[0]
    return [video[:FIRST_PIXEL_FRAMES], *video[FIRST_PIXEL_FRAMES:].split(BLOCK_PIXEL_FRAMES)]


def measure(
    engine: LongLiveEngine,
    prompts: int,
    blocks: int = 4,
    seed: int = 0,
    scale: float = 1.0,
    off: int = 0,
    known: Known = WHOLE,
) -> dict[str, float]:
    """How well videos of held-out prompts follow silhouettes that their noise knows nothing of: ``overlap``, shown
    shapes' intersection with the silhouette by their union; ``pixels``, from centre to centre, of single shapes; and
    ``score``, the share of the prompt's attributes met. ``off``: pixels, down and to the right, that silhouettes stand
    off the grid on which shapes start in training. ``known``: the part of the world that the model knows."""
    from .adherence import tally
    from .score import score

    found: dict[str, list[float]] = {"overlap": [], "pixels": []}
    scores = []
    for i in range(prompts):
        random, generator = Random(f"{seed} control {i}"), torch.Generator().manual_seed(seed + i)
        scene = sample_scene(random, held_out=True, known=known)
        text, video = caption(scene, random), outlines(scene, layouts(1, *NATIVE, generator) + off, blocks)
        stream, made = engine.open_stream(seed=seed + 10**6 * i), []
        for frames in video:
            control = Control(frames, scale=scale)
            made.append(engine.generate_block(BlockRequest(text, control=control), stream).cpu())
        scores.append(score(torch.cat(made), scene))
        wanted, got = torch.cat(video)[..., 0] > 95, shown(torch.cat(made))
        found["overlap"].append(((wanted & got).sum() / (wanted | got).sum()).item())
        if len(scene.shapes) == 1:
            pairs = [pair for pair in zip(wanted[::4], got[::4], strict=True) if pair[1].any()]
            found["pixels"] += [_distance(*(centre_of(each.float()) for each in pair)) for pair in pairs]
    return {name: sum(each) / max(1, len(each)) for name, each in found.items()} | tally(scores)


def _distance(a: tuple[float, float], b: tuple[float, float]) -> float:
    """On the torus."""
    gaps = (abs((p - q + n / 2) % n - n / 2) for p, q, n in zip(a, b, NATIVE, strict=True))
    return math.hypot(*gaps)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return value


def main(arguments: list[str] | None = None) -> None:
    """Train, and write the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of a model; the module goes where locate finds it there")
    parser.add_argument("--model", default="tiny", help="folder, or 'tiny', to train beside")
    parser.add_argument("--seconds", type=float, default=85.0, help="of training, after the clips are made")
    parser.add_argument("--steps", type=int, help="instead of the seconds")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3, help="of learning")
    parser.add_argument("--clips", type=int, default=1800)
    parser.add_argument("--off-grid", type=_share, default=0.6, help="share of the clips that start beside the grid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    torch.set_float32_matmul_precision("high")
    begun = time.monotonic()
    work = Training(options.model, options.clips, options.seed, torch.device(options.device), options.off_grid)
    print(f"data ready after {time.monotonic() - begun:.1f} s", flush=True)
    tensors = train(work, options.seconds, options.batch, options.rate, options.steps)
    path = options.folder / CONTROL_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
