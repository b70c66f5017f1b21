"""What the trained model must show, measured through the engine: ``python -m longlive_optimized.tinyworld.evaluate``.

All prompts are of combinations that were held out of training. Small numbers by default, for a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from ..config import PRESETS, OptimizationConfig
from ..engine.block import follow_prompt, settle
from ..engine.engine import LongLiveEngine
from ..engine.request import BlockRequest
from ..engine.stream import Stream
from ..video_time import TRAINED_FPS
from ..weights.locate import TINY
from .adherence import look, spread, tally
from .control import measure as follows
from .nearest import nearest
from .pictures import contact_sheet, write_png
from .render import GRID, NATIVE, SIZES
from .score import Score, score
from .vocabulary import known_to
from .world import WHOLE, Known, Scene, caption, sample_scene

FOREIGN = (  # what people try
    "a fox walks through fresh snow, morning light, film grain",
    "cinematic shot of an astronaut riding a horse on Mars, 8k, highly detailed",
    "un chat noir dort sur un canapé rouge",
    "一只狐狸穿过雪地",
    "asdf qwer zxcv",
    "portrait of a woman, oil on canvas",
    "0123456789 {}[]();",
    "???",
    "neon city at night in the rain, a car drives by",
    "waves crash on a rocky beach at sunset, drone footage",
    "Zwei Hunde spielen im Garten",
    "a cup of coffee on a wooden table, steam rises, close-up",
)
_WINDOWS, _STEPS = (12, 9, 6), ((1000, 750, 500, 250), (1000, 500, 250), (1000, 250))


class Evaluation:
    """Streams of held-out prompts through one engine; the same for the same seed."""

    def __init__(self, engine: LongLiveEngine, seed: int = 0, known: Known = WHOLE):
        self.engine, self.seed, self.known = engine, seed, known

    @classmethod
    def of(cls, model: str, device: str | None = None, seed: int = 0, **changes) -> Evaluation:
        """Of a model's folder, or 'tiny', at its own size and of what it knows; ``changes`` are fields of the engine's
        config."""
        height, width = NATIVE if model == TINY else SIZES[0]
        config = OptimizationConfig(height=height, width=width, **changes)
        return cls(LongLiveEngine(model, config, device), seed, known_to(model))

    def adherence(self, prompts: int, seconds: float, **settings) -> dict[str, float]:
        """Share of attributes met by whole videos of ``seconds``, with these StreamSettings; and blocks a second."""
        started, scores, blocks = time.perf_counter(), [], 0
        for scene, text, stream in self._streams(prompts, **settings):
            frames, made = self._video(stream, text, seconds)
            scores.append(score(frames, scene))
            blocks += made
        return tally(scores) | {"blocks/s": blocks / (time.perf_counter() - started)}

    def long(self, streams: int, minutes: float, last: float = 5.0, **settings) -> dict[str, dict[str, float]]:
        """Share of attributes met in the last seconds of each minute of long streams, and how these look, by minute."""
        scores: dict[str, list[Score]] = {}
        looks: dict[str, list[dict[str, float]]] = {}
        for scene, text, stream in self._streams(streams, **settings):
            for minute in range(1, max(1, round(minutes)) + 1):
                seconds, name = 60 * minutes / max(1, round(minutes)), f"minute {minute}"
                self._video(stream, text, seconds - last, kept=False)
                frames = self._video(stream, text, last)[0]
                scores.setdefault(name, []).append(score(frames, scene))
                looks.setdefault(name, []).append(look(frames))
        return {name: tally(each) | spread(looks[name]) for name, each in scores.items()}

    def switches(self, count: int, recache: bool = True) -> dict[str, dict[str, float]]:
        """Share of the new prompt's attributes met by the first, second and third block after a switch."""
        scores: list[list[Score]] = [[], [], []]
        for after, blocks in self._switched(count, recache):
            for each, block in zip(scores, blocks[-3:], strict=True):
                each.append(score(block, after))
        return {f"block {i}": tally(each) for i, each in enumerate(scores, 1)}

    def foreign(self, count: int) -> dict[str, dict[str, float]]:
        """Share of a sensible prompt's attributes met by the first, second and third block after two foreign prompts of
        one to four blocks each; and share of the attributes of the scene nearest to the second one met by its last."""
        scores: list[list[Score]] = [[], [], [], []]
        for scene, text, stream in self._streams(count):
            random = Random(text)
            for strange in random.sample(FOREIGN, 2):
                last = [self._block(stream, strange) for _ in range(random.randint(1, 4))][-1]
            scores[0].append(score(last, nearest(strange)))
            for each in scores[1:]:
                each.append(score(self._block(stream, text), scene))
        names = ("nearest", "block 1", "block 2", "block 3")
        return {name: tally(each) for name, each in zip(names, scores, strict=True)}

    def sheet(self, count: int) -> Tensor:
        """A picture of switches: two blocks before and three after, with recache, and below it the same without."""
        both = [[torch.cat(blocks[-5:]) for _, blocks in self._switched(count, recache)] for recache in (True, False)]
        return contact_sheet([video for pair in zip(*both, strict=True) for video in pair])

    def _switched(self, count: int, recache: bool) -> Iterator[tuple[Scene, list[Tensor]]]:
        """Streams whose prompt changes after two to nine blocks, with three to come: the new scene, and all blocks."""
        for _, text, stream in self._streams(count):
            random = Random(text)
            blocks = [self._block(stream, text) for _ in range(random.randint(2, 9))]
            after = sample_scene(random, held_out=True, known=self.known)
            text = caption(after, random)
            if not recache:
                self._leave_old_keys(stream, text)
            yield after, blocks + [self._block(stream, text) for _ in range(3)]

    def presets(self, prompts: int, seconds: float) -> dict[str, dict[str, float]]:
        """``adherence`` for every number of steps and window that presets have."""
        return {
            f"{len(steps)} steps, window {window}": self.adherence(
                prompts, seconds, denoising_steps=steps, local_attn_size=window
            )
            for steps, window in itertools.product(_STEPS, _WINDOWS)
        }

    def _streams(self, count: int, **settings) -> Iterator[tuple[Scene, str, Stream]]:
        for i in range(count):
            random = Random(f"{self.seed} {i}")
            scene = sample_scene(random, held_out=True, known=self.known)
            yield scene, caption(scene, random), self.engine.open_stream(seed=self.seed + 10**6 * i, **settings)

    def _block(self, stream: Stream, text: str) -> Tensor:
        return self.engine.generate_block(BlockRequest(text), stream).cpu()

    def _video(self, stream: Stream, text: str, seconds: float, kept: bool = True) -> tuple[Tensor, int]:
        """At least ``seconds`` of video, and how many blocks that were."""
        frames: list[Tensor] = []
        made = blocks = 0
        while made < seconds * TRAINED_FPS:
            block = self._block(stream, text)
            made, blocks = made + len(block), blocks + 1
            frames += [block] if kept else []
        return torch.cat(frames) if kept else torch.empty(0), blocks

    def _leave_old_keys(self, stream: Stream, text: str) -> None:
        """Take over a new prompt, and leave the keys and values of the old one where they are."""
        with self.engine.devices.turn():
            settle(stream)  # the last block's context pass, still under the old prompt
            follow_prompt(stream, BlockRequest(text))
            stream.prompt.block_made()
            stream.recache_due = False


def precisions(
    model: str, prompts: int, seconds: float, device: str | None = None, seed: int = 0
) -> dict[str, dict[str, float]]:
    """``Evaluation.adherence`` in each dtype."""
    dtypes = "float32", "bfloat16"
    return {t: Evaluation.of(model, device, seed, model_dtype=t).adherence(prompts, seconds) for t in dtypes}


def _row(name: str, table: dict[str, float]) -> str:
    return f"{name:28}" + "".join(f"{kind} {share:.4g}   " for kind, share in table.items())


def main(arguments: list[str] | None = None) -> None:
    """Run the measurements named and print their tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    measures = "adherence", "switches", "no-recache", "foreign", "long", "presets", "precision", "control", "sheet"
    parser.add_argument("measures", nargs="+", choices=measures)
    parser.add_argument("--model", default="tiny", help="folder, or 'tiny'")
    parser.add_argument("--prompts", type=int, default=8, help="or streams, or switches")
    parser.add_argument("--seconds", type=float, default=5.0, help="of adherence, presets and precision")
    parser.add_argument("--minutes", type=float, default=1.0, help="of long")
    parser.add_argument("--preset", choices=PRESETS, help="of adherence and long; else the defaults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path, default=Path("switches.png"), help="what sheet writes")
    options = parser.parse_args(arguments)
    own, n, seconds = Evaluation.of(options.model, options.device, options.seed), options.prompts, options.seconds
    fields = PRESETS[options.preset] if options.preset else {}
    settings = {name: fields[name] for name in ("denoising_steps", "local_attn_size", "precision") if name in fields}
    results: dict[str, dict] = {}
    for measure in options.measures:
        match measure:
            case "sheet":
                write_png(options.png, own.sheet(n))
                continue
            case "adherence":
                found = {f"{seconds:g} s": own.adherence(n, seconds, **settings)}
            case "switches" | "no-recache":
                found = own.switches(n, recache=measure == "switches")
            case "foreign":
                found = own.foreign(n)
            case "long":
                found = own.long(n, options.minutes, **settings)
            case "presets":
                found = own.presets(n, seconds)
            case "control":
                steered = Evaluation.of(options.model, options.device, options.seed, control=True).engine
                given = {"seed": options.seed, "known": own.known}
                found = {f"scale {s:g}": follows(steered, n, scale=s, **given) for s in (0, 1)}
                found[f"scale 1, {GRID // 2} pixels off"] = follows(steered, n, off=GRID // 2, **given)
            case "precision":
                found = precisions(options.model, n, seconds, options.device, options.seed)
        results[measure] = found
        print(measure, *(_row(name, table) for name, table in found.items()), sep="\n  ", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
