"""Training of the tiny model: ``python -m longlive_optimized.tinyworld.train --out DIR --minutes 9``.

Stages, in order: ``vae``, ``flow``. Each leaves STAGE.pt in DIR, a contact sheet STAGE.png of held-out
prompts, and its lines in ``log.jsonl``. The minutes are shared out among the stages named and pace their learning
rates. A call that is cut short loses a minute at most: the same call again goes on from there. Everything random is
seeded; how many steps fit into the minutes is the machine's, and ``--steps`` fixes it. docs/performance.md tells how
the model in ``trained/`` was made, which ``export`` wrote there.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..weights.load import load_vae
from ..weights.locate import locate
from .checkpoint import half, load, named, save
from .export import take
from .networks import SIZES
from .pictures import contact_sheet, write_png
from .stage import Stage
from .stage_flow import FlowStage
from .stage_vae import VaeStage

STAGES = {stage.name: stage for stage in (VaeStage, FlowStage)}
_BETAS = (0.9, 0.95)
_WARM, _COOL = 100, 0.6  # steps until the full rate; share of the training in which it falls to nothing
_AVERAGED = 0.05  # the weights' average looks back on so large a share of the steps: it is what a stage leaves
_SAVE_EVERY, _LOG_EVERY = 60, 5  # seconds
_SHOWN = 12  # videos on a contact sheet


class Weights:
    """The weights of some modules as one float32 vector, of which the modules hold copies in their own dtype."""

    def __init__(self, parts: dict[str, nn.Module]):
        self._own = named(parts)
        self.vector = nn.Parameter(torch.cat([w.detach().float().flatten() for w in self._own.values()]))

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector's parts by the weights' names, and in their shapes."""
        parts = vector.detach().split([w.numel() for w in self._own.values()])
        return {name: part.view(w.shape) for (name, w), part in zip(self._own.items(), parts, strict=True)}

    @torch.no_grad()
    def give(self, vector: Tensor) -> None:
        """Round ``vector`` into the modules."""
        torch._foreach_copy_(list(self._own.values()), list(self.views(vector).values()))

    def take_gradient(self) -> Tensor:
        """The modules' gradient as a vector; they are left without."""
        gradient = torch.cat([w.grad.flatten().float() for w in self._own.values() if w.grad is not None])
        for w in self._own.values():
            w.grad = None
        return gradient


class Trainer:
    """One stage under way: optimiser, average of the weights, pace, checkpoints, log."""

    def __init__(
        self, stage: Stage, out: Path, seed: int, minutes: float, steps: int | None = None, again: bool = False
    ):
        self.stage, self.out, self.seed, self.minutes, self.steps, self.again = stage, out, seed, minutes, steps, again
        self.weights = Weights(stage.parts)
        self.optimiser = self._new_optimiser()
        self.average = self.weights.vector.detach().clone()
        self.step, self.seconds, self.done = 0, 0.0, False
        if self.path.is_file():
            self._resume(torch.load(self.path, map_location=self.average.device, weights_only=True))

    @property
    def path(self) -> Path:
        return self.out / f"{self.stage.name}.pt"

    @property
    def progress(self) -> float:
        """Share of the stage that is done."""
        return min(1.0, self.step / self.steps if self.steps else self.seconds / (60 * self.minutes))

    def run(self, deadline: float, batch: int, samples: int) -> None:
        """Train until the stage is done, or until ``deadline`` on the monotonic clock."""
        clock = time.monotonic()
        begun = zlib.crc32(f"{self.stage.name} {self.seed} {self.step}".encode())
        torch.manual_seed(begun)
        self.stage.begin(begun, self.again)
        print(f"{self.stage.name}: data ready after {time.monotonic() - clock:.1f} s", flush=True)
        clock = logged = saved = time.monotonic()
        seen, since = defaultdict(list), self.step
        while self.progress < 1 and clock < deadline:
            for name, value in self.train_step(batch).items():
                seen[name].append(value)
            now = time.monotonic()
            self.seconds, clock = self.seconds + now - clock, now
            if now - logged > _LOG_EVERY or self.progress >= 1:
                count = self.step - since
                means = {name: torch.stack(each).mean().item() for name, each in seen.items()}  # waits for the device
                self._log(means | {"steps/s": count / (time.monotonic() - logged), "progress": self.progress})
                if means["skipped"] > 0.5:
                    self._fall_back()
                seen, since, logged = defaultdict(list), self.step, time.monotonic()
            if now - saved > _SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        if self.progress >= 1:
            self._finish(samples)
        self.save()

    def train_step(self, batch: int) -> dict[str, Tensor]:
        """One step; its losses, which stay on the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.stage.rate * min(1.0, (self.step + 1) / _WARM, (1 - self.progress) / _COOL)
        losses = self.stage.losses(batch, self.progress)
        losses["loss"].backward()
        gradient = self.weights.take_gradient()
        norm = gradient.norm()
        # A gradient that is no number counts as none. Decided on the device, which is not waited for.
        good = norm.isfinite()
        self.weights.vector.grad = torch.where(good, gradient * (1 / norm).clamp(max=1), 0)
        self.optimiser.step()
        self.weights.give(self.weights.vector)
        self.step += 1
        self.average.lerp_(self.weights.vector.detach(), 1 / (1 + _AVERAGED * self.step))
        shown = {name: value.detach() for name, value in losses.items()} | {"gradient": norm}
        return {name: torch.where(good, value, 0) for name, value in shown.items()} | {"skipped": 1 - good.float()}

    def save(self) -> None:
        """Write the stage's file."""
        content: dict[str, Any] = {"step": self.step, "seconds": self.seconds, "done": self.done}
        if self.done:
            content["average"] = half(self.weights.views(self.average))
        else:  # the optimiser's moments and the average's distance keep half of their digits
            content["vector"] = self.weights.vector.detach().cpu()
            moments = self.optimiser.state_dict()["state"].get(0, {})
            vectors = {key: moments[key] for key in ("exp_avg", "exp_avg_sq") if key in moments}
            content |= half({"distance": self.average - self.weights.vector, **vectors})
        save(self.path, content)

    @torch.no_grad()
    def _resume(self, content: dict[str, Any]) -> None:
        self.step, self.seconds, self.done = content["step"], content["seconds"], content["done"]
        if self.done:
            return
        self.weights.vector.copy_(content["vector"])
        self.weights.give(self.weights.vector)
        self.average.copy_(content["vector"] + content["distance"])
        if "exp_avg" in content:
            moments = {key: content[key].float() for key in ("exp_avg", "exp_avg_sq")}
            state = self.optimiser.state_dict()
            state["state"] = {0: {"step": torch.tensor(float(self.step)), **moments}}
            self.optimiser.load_state_dict(state)

    def _new_optimiser(self) -> torch.optim.Optimizer:
        vector = self.weights.vector
        return torch.optim.AdamW([vector], betas=_BETAS, weight_decay=0.0, fused=vector.is_cuda)

    @torch.no_grad()
    def _fall_back(self) -> None:
        """Leave a place where there is no gradient: on from the average, with no momentum."""
        print(f"{self.stage.name}: most gradients are no numbers; on from the average", flush=True)
        self.weights.vector.copy_(self.average)
        self.weights.give(self.average)
        self.optimiser = self._new_optimiser()

    def _finish(self, samples: int) -> None:
        dtype = {name: next(part.parameters()).dtype for name, part in self.stage.parts.items()}
        for part in self.stage.parts.values():
            part.float()
        self.weights.give(self.average)
        self.stage.finish()
        self.average = Weights(self.stage.parts).vector.detach()
        self.done = True
        self.save()
        for name, part in self.stage.parts.items():
            part.to(dtype[name])
        scores, videos, scenes = self.stage.sample(samples)
        write_png(self.out / f"{self.stage.name}.png", contact_sheet(videos[:_SHOWN]))
        self._log(scores)
        for scene in scenes[:_SHOWN]:
            print(f"  {scene}", flush=True)

    def _log(self, row: dict[str, float]) -> None:
        rounded = {name: float(f"{value:.4g}") for name, value in row.items()}
        line = json.dumps({"stage": self.stage.name, "step": self.step, **rounded})
        print(line, flush=True)
        with (self.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")


def begin_again(stage: Stage, out: Path, asked: bool) -> bool:
    """Give a stage that is done, or was taken from a model, the weights that it left, to be trained once more; its file
    becomes STAGE.before. Whether it was trained before."""
    path = out / f"{stage.name}.pt"
    before = path.with_suffix(".before")
    content = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {"done": False}
    if content["done"] and (asked or not content["step"]):
        load(path, stage.parts)
        path.replace(before)
    return before.is_file()


def main(arguments: list[str] | None = None) -> None:
    """Run stages, or what is left of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="of training, for all the stages named")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--call-minutes", type=float, default=math.inf, help="that this call may take")
    parser.add_argument("--steps", type=int, help="of each stage, instead of the minutes")
    parser.add_argument(
        "--from",
        dest="model",
        metavar="MODEL",
        help="folder whose weights to train once more, and whose latents a VAE is held to",
    )
    parser.add_argument("--again", action="store_true", help="train stages that are done once more, from there")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rate", type=float, help="of learning")
    parser.add_argument("--clips", type=int, help="in the bank of the flow stage")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=16, help="held-out prompts that a stage is scored on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.call_minutes
    options.out.mkdir(parents=True, exist_ok=True)
    if options.model and not any((options.out / f"{name}.pt").exists() for name in STAGES):
        take(options.model, options.out, SIZES[options.size])
    torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, 4
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape, and scripts have many
    torch.set_float32_matmul_precision("high")
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shares = sum(STAGES[name].share for name in options.stage)
    for name in (name for name in STAGES if name in options.stage):
        stage = STAGES[name](SIZES[options.size], options.out, device, dtype, options.seed)
        stage.rate = options.rate or stage.rate
        stage.clips = options.clips or stage.clips
        if isinstance(stage, VaeStage) and options.model:
            stage.learn_from(load_vae(locate(options.model), device, dtype))
        again = begin_again(stage, options.out, options.again)
        minutes = options.minutes * stage.share / shares
        trainer = Trainer(stage, options.out, options.seed, minutes, options.steps, again)
        if not trainer.done:
            trainer.run(deadline, options.batch or stage.batch, options.samples)
        if not trainer.done:
            break


if __name__ == "__main__":
    main()
