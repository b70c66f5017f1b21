"""Are the pictures still the same? Hashes of the frames of some situations, to compare two builds on one machine.

``python tests/measure/frame_hashes.py --out FILE.json [--model DIR] [--against OTHER.json]`` uses the public interface
alone, so that it runs on old builds too. Ends with status 1 where a hash differs from ``--against``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.demo.scope_integration import OptimizedScopePipeline, ScopeOptimizationConfig
from longlive_optimized.weights.user_lora import UserLora

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.scope_double import scope_installed

A, B = "a red circle moves left over a green field", "a white cross rests on a black night"
C = "a yellow triangle and a blue square move up over a grey street"


class Situations:
    """Each public method makes the frames of one situation."""

    def __init__(self, model: str, height: int, width: int, device: str | None):
        self._where = {"model_path": model, "device": device}
        self._size = {"height": height, "width": width}
        self._shared: LongLiveEngine | None = None

    @property
    def engine(self) -> LongLiveEngine:
        """One engine for all situations of the default config, reset before each."""
        if self._shared is None:
            self._shared = self._new_engine()
        self._shared.reset(seed=42)
        return self._shared

    def text(self) -> Iterator[Tensor]:
        yield from (self.engine.generate_block(BlockRequest(A)) if i == 0 else self._next(A) for i in range(7))

    def switch(self) -> Iterator[Tensor]:
        yield from self._blocks([A] * 2 + [B] * 3 + [C] * 4)

    def transition(self) -> Iterator[Tensor]:
        yield from self._blocks([A, A])
        yield from self._more([B] * 4, transition_blocks=3)
        yield from self._more([C] * 3, transition_blocks=3, transition_blend="slerp", transition_from_source=True)

    def blends(self) -> Iterator[Tensor]:
        yield from self._blocks([((A, 1.0), (B, 2.0))] * 2)
        yield from self._more([((A, 1.0), (B, 1.0))] * 2, blend="slerp")
        yield from self._more([((A, 1.0), (B, 1.0), (C, 0.5))] * 2)

    def video(self) -> Iterator[Tensor]:
        yield from self._blocks([A] * 3, video=self._film(), noise_scale=0.7)
        yield from self._more([A] * 2)
        yield from self._more([B] * 2, video=self._film(), noise_from_motion=True, denoising_steps=(1000, 750))

    def preset(self) -> Iterator[Tensor]:
        engine = self.engine
        yield from self._blocks([A] * 5)
        for steps, window in ((1000, 500, 250), 9), ((1000, 250), 6), ((1000, 750, 500, 250), 15):
            engine.configure(denoising_steps=steps, local_attn_size=window)
            yield from self._more([A] * 2)
        engine.configure(denoising_steps=(1000, 750, 500, 250), local_attn_size=12)

    def reset_and_restart(self) -> Iterator[Tensor]:
        yield from self._blocks([A, A])
        yield from self._more([B], reset=True, seed=7)
        yield from self._more([B], restart=True, seed=8)
        yield from self._more([B], seed=9)

    def two_streams(self) -> Iterator[Tensor]:
        engine = self.engine
        one, other = engine.open_stream(seed=1), engine.open_stream(seed=2, total_frames=12)
        for i in range(4):
            yield engine.generate_block(BlockRequest(A if i < 2 else C), one)
            yield engine.generate_block(BlockRequest(B), other)

    def first_latent_first(self) -> Iterator[Tensor]:
        engine = self.engine
        for text in A, A, B, C:
            yield engine.generate_block(BlockRequest(text), first_latent_only=True)
            yield engine.rest_of_block()

    def scope_settings(self) -> Iterator[Tensor]:
        engine = self._new_engine(step_schedule="scope", positions="base", restart_at=12, global_sink=False)
        yield from (engine.generate_block(BlockRequest(A if i < 3 else B)) for i in range(6))

    def lightvae(self) -> Iterator[Tensor]:
        yield from self._small_vae("lightvae")

    def tae(self) -> Iterator[Tensor]:
        yield from self._small_vae("tae")

    def lighttae(self) -> Iterator[Tensor]:
        yield from self._small_vae("lighttae")

    def lora(self) -> Iterator[Tensor]:
        dim = self.engine.model.config.dim
        generator = torch.Generator().manual_seed(3)
        pair = {
            "diffusion_model.blocks.1.self_attn.q.lora_A.weight": torch.randn(4, dim, generator=generator) * 0.02,
            "diffusion_model.blocks.1.self_attn.q.lora_B.weight": torch.randn(dim, 4, generator=generator) * 0.02,
        }
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "user.safetensors")
            save_file(pair, path)
            engine = self._new_engine(loras=[UserLora(path)])
            yield engine.generate_block(BlockRequest(A))
            for scale in 0.5, -1.0:
                engine.set_loras([UserLora(path, scale)])
                yield engine.generate_block(BlockRequest(A))

    def pipeline(self) -> Iterator[Tensor]:
        config = ScopeOptimizationConfig.preset_balanced(**self._size, drop_frames_on_lag=False)
        pipeline = OptimizedScopePipeline(config=config, **self._where)
        yield torch.stack([pipeline.generate_frame(A) for _ in range(21)])
        pipeline.switch_prompt(B)
        yield torch.stack([pipeline.generate_frame(A) for _ in range(24)])
        pipeline.configure(denoising_steps=(1000, 250), local_attn_size=9, target_fps=20)
        yield torch.stack([pipeline.generate_frame(A) for _ in range(24)])
        pipeline.reset()
        yield torch.stack([pipeline.generate_frame(C) for _ in range(9)])

    def plugin(self) -> Iterator[Tensor]:
        texts = {name: [{"text": text, "weight": 1.0}] for name, text in zip("ABC", (A, B, C), strict=True)}
        with scope_installed() as scope:
            found = scope.discover("longlive-optimized")["longlive-optimized"]
            load = {"model_path": self._where["model_path"], **self._size, "optimization_preset": "balanced"}
            if not scope.manager.load(found, load):
                raise RuntimeError("the plugin could not be loaded")
            session = scope.manager.open({"prompts": texts["A"]})
            to_b = {"transition": {"target_prompts": texts["B"], "num_steps": 3}}
            calls = [{}, to_b, {}, {}, {"prompts": texts["C"]}]
            calls += [{"optimization_preset": "realtime"}, {}, {"base_seed": 5}, {"reset_cache": True}, {}]
            for message in calls:
                if message:
                    session.send(message)
                yield session.step().result["video"]
            session.stop()

    def _new_engine(self, loras: tuple = (), **fields) -> LongLiveEngine:
        path, device = self._where["model_path"], self._where["device"]
        return LongLiveEngine(path, OptimizationConfig(**self._size, **fields), device, loras=loras)

    def _next(self, prompt, **fields) -> Tensor:
        return self._shared.generate_block(BlockRequest(prompt, **fields))

    def _blocks(self, prompts: list, **fields) -> Iterator[Tensor]:
        self.engine.reset()
        yield from self._more(prompts, **fields)

    def _more(self, prompts: list, **fields) -> Iterator[Tensor]:
        yield from (self._next(prompt, **fields) for prompt in prompts)

    def _small_vae(self, kind: str) -> Iterator[Tensor]:
        engine = self._new_engine(vae_type=kind)
        yield from (engine.generate_block(BlockRequest(A)) for _ in range(2))
        yield engine.generate_block(BlockRequest(A, video=self._film()))

    def _film(self) -> Tensor:
        """Twelve frames that move, of half the height."""
        height, width = self._size["height"] // 2, self._size["width"]
        ramp = torch.arange(height)[:, None, None] * 3 + torch.arange(width)[:, None] * 2 + torch.arange(3) * 40
        return torch.stack([(ramp + 9 * i) % 256 for i in range(12)]).to(torch.uint8)


def _hash(blocks: Iterator[Tensor]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(str((tuple(block.shape), block.dtype)).encode())
        digest.update(block.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="a folder of weights, or tiny")
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--device")
    parser.add_argument("--only", nargs="*", help="situations; all by default")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--against", type=Path, help="hashes that must be equal")
    given = parser.parse_args()
    torch.set_num_threads(1)  # the order of sums on a CPU depends on it
    expected = json.loads(given.against.read_text()) if given.against else {}
    made = Situations(given.model, given.height, given.width, given.device)
    situations: dict[str, Callable] = {
        name: getattr(made, name)
        for name, value in vars(Situations).items()
        if not name.startswith("_") and callable(value) and name in (given.only or vars(Situations))
    }
    hashes = {}
    for name, make in situations.items():
        started = time.perf_counter()
        hashes[name] = _hash(make())
        print(f"{name:20} {hashes[name]}  {time.perf_counter() - started:.1f} s", flush=True)
    given.out.write_text(json.dumps(hashes, indent=2) + "\n")
    wrong = [name for name in hashes if name in expected and hashes[name] != expected[name]]
    if given.against:
        print(f"{len(hashes) - len(wrong)} of {len(hashes)} equal" + f"; different: {', '.join(wrong)}" * bool(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
