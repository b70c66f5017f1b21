"""Records what scope's own LongLive pipeline does, call by call, as the truth our plugin is tested against.

    python tests/parity/record_scope.py SCOPE_CHECKOUT > tests/parity/sequences.json

Run by hand, on a CPU, in an environment with scope's requirements; the checkout is imported, never copied. The pipeline
class, its blocks, its scheduler and its VAE wrapper are scope's. The network is a recording fake (its x0 of a latent
frame is that frame's number), the text encoder returns the vectors of EMBEDDINGS, the VAE is eight channels wide with
random weights, and scope's processor is imitated (``Session``).

The result, one event to a line:

    scope, pixels       scope's version; height and width of the pictures
    embeddings          what the text encoder answers: for each text rows x columns of numbers
    scenarios           for each name its calls, in order: {call, events, result}
      call              the keywords of the pipeline's call, as JSON; ``video`` is a list of grey levels, one for each
                        uniform uint8 frame [1, H, W, 3]; ``times`` beside it: so many such calls, not recorded
      events            in order, each with its ``event``:
        encode_text     texts
        clear_vae       the VAE forgets, encoder and decoder
        encode_video    frames in, latents out; fresh: whether the encoder had forgotten; levels: what it was given
        denoise         passes of one block: t, one for each pass; start, the first latent frame; latents, how many;
                        condition, the embedding that they attend to: a text of ``embeddings``, or rows of numbers
        recache, clean  one pass at t = [0], otherwise as denoise
        decode          latents in, frames out
      result            frames of the returned chunk; seed of the block's generator, from which first the start noise
                        and then each re-noising is drawn; noise_scale, the share of noise in the start latents of video
                        and what replaced the first t (null: neither); transition_active as the state says; next_start;
                        or ``error``, what was raised
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import sys
import tempfile
import tomllib
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from scope_on_cpu import StayHere, make_importable
from torch import Tensor, nn

HEIGHT, WIDTH = 32, 48
TOKENS = HEIGHT * WIDTH // 256  # of a latent frame
# Rows of unlike lengths at unlike angles: a blend's norm is over all rows, a slerp goes row by row.
EMBEDDINGS = {
    "fox": [[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]],
    "boat": [[0.0, 2.0, 0.0], [3.0, 4.0, 0.0]],
    "storm": [[0.0, 0.0, 3.0], [0.0, 0.0, 1.0]],
    "almost fox": [[1.0, 0.0, 0.005], [2.0, 0.0, 0.0]],
    "two": [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]],
    "ten": [[10.0, 10.0, 10.0], [10.0, 10.0, 10.0]],
    "": [[0.5, 0.5, 0.5], [0.0, 0.0, 0.0]],
}
STILL = [128] * 12


class Log(list):
    """Events of one call; denoising passes of one block become one event."""

    def add(self, event: str, **facts: Any) -> None:
        last = self[-1] if self else {}
        if event == last.get("event") == "denoise":
            assert {**last, "t": None} == {"event": event, **facts, "t": None}, "one block's passes differ"
            last["t"] += facts["t"]
        else:
            self.append({"event": event, **facts})


class FakeNetwork(nn.Module):
    """What scope's blocks touch of the network itself."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Module()
        block.self_attn = nn.Module()
        self.blocks = nn.ModuleList([block])
        self.parameter = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.num_heads, self.dim = 1, 2

    def _prepare_blockwise_causal_attn_mask(self, **_: Any) -> None:
        return None


class FakeGenerator(nn.Module):
    """Logs its passes; predicts for every latent frame its number in the stream."""

    def __init__(self, log: Log, scheduler: Any) -> None:
        super().__init__()
        self.log, self.scheduler, self.model = log, scheduler, FakeNetwork()
        self.start_latents: Tensor | None = None

    def get_scheduler(self) -> Any:
        return self.scheduler

    def forward(self, noisy_image_or_video: Tensor, conditional_dict: dict, timestep: Tensor, **how: Any):
        x, start = noisy_image_or_video, how["current_start"] // TOKENS
        frames = torch.arange(start, start + x.shape[1]).view(1, -1, 1, 1, 1).expand_as(x).to(x)
        kind = "recache" if how.get("is_recache") else "clean" if how.get("update_cache") else "denoise"
        if kind != "denoise":
            assert torch.equal(x, frames), f"{kind}: other latents than those of frames {start}.."
        elif not self.log or self.log[-1]["event"] != "denoise":
            self.start_latents = x
        (t,) = set(timestep.flatten().tolist())
        condition = described(conditional_dict["prompt_embeds"][0])
        self.log.add(kind, t=[int(t)], start=start, latents=x.shape[1], condition=condition)
        return torch.zeros_like(x), frames


class FakeTextEncoder(nn.Module):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    def forward(self, text_prompts: list[str]) -> dict[str, Tensor]:
        self.log.add("encode_text", texts=text_prompts)
        return {"prompt_embeds": torch.tensor([EMBEDDINGS[text] for text in text_prompts])}


def recording_vae(log: Log) -> nn.Module:
    """scope's VAE wrapper around scope's network, narrow and random."""
    from scope.core.pipelines.wan2_1.vae import wan
    from scope.core.pipelines.wan2_1.vae.modules.vae import WanVAE_, _video_vae

    class RecordingVae(wan.WanVAEWrapper):
        encoded: Tensor | None = None

        def clear_cache(self) -> None:
            log.add("clear_vae")
            super().clear_cache()

        def encode_to_latent(self, pixel: Tensor, **how: Any) -> Tensor:
            levels = [round(v) for v in ((pixel.mean(dim=(0, 1, 3, 4)) + 1) * 127.5).tolist()]
            fresh = self.model.first_batch
            self.encoded = super().encode_to_latent(pixel, **how)
            latents = self.encoded.shape[1]
            log.add("encode_video", frames=pixel.shape[2], latents=latents, fresh=fresh, levels=levels)
            return self.encoded

        def decode_to_pixel(self, latent: Tensor, use_cache: bool) -> Tensor:
            with StayHere():
                video = super().decode_to_pixel(latent, use_cache)
            log.add("decode", latents=latent.shape[1], frames=video.shape[1])
            return video

    size = {
        "dim": 8,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_scales": [],
        "temperal_downsample": [False, True, True],
    }
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vae.pth")
        torch.save(WanVAE_(z_dim=16, **size).state_dict(), path)
        wan._video_vae = functools.partial(_video_vae, **size)
        try:
            return RecordingVae(vae_path=str(path))
        finally:
            wan._video_vae = _video_vae


def make_pipeline(log: Log) -> Any:
    """scope's pipeline class, constructed by its own ``__init__`` around the fakes."""
    from scope.core.pipelines.longlive import pipeline as module
    from scope.core.pipelines.wan2_1.components.scheduler import FlowMatchScheduler

    scheduler = FlowMatchScheduler(shift=5.0, sigma_min=0.0, extra_one_step=True)
    scheduler.set_timesteps(1000, training=True)
    parts = {
        "WanDiffusionWrapper": lambda *_, **__: FakeGenerator(log, scheduler),
        "WanTextEncoderWrapper": lambda **_: FakeTextEncoder(log),
        "create_vae": lambda **_: recording_vae(log),
    }
    originals = {name: getattr(module, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(module, name, part)
        config = SimpleNamespace(height=HEIGHT, width=WIDTH, base_seed=42)
        return module.LongLivePipeline(config, device=torch.device("cpu"), dtype=torch.float32)
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


class Session:
    """One scenario: parameters kept and passed on as scope's processor does, and what each call then did."""

    def __init__(self) -> None:
        self.log = Log()
        self.pipeline = make_pipeline(self.log)
        self.parameters: dict[str, Any] = {}
        self.calls: list[dict] = []
        self._prepared = False

    def __call__(
        self,
        *,
        times: int = 1,
        reset: bool = False,
        video: list[int] | None = None,
        modulated: dict[str, Any] | None = None,
        **update: Any,
    ) -> None:
        """``times`` chunks after one parameter update; ``modulated`` keywords are of these calls alone."""
        if "prompts" in update and "transition" not in update:
            self.parameters.pop("transition", None)
        self.parameters |= update
        for _ in range(times):
            keywords = {**self.parameters, "init_cache": reset or not self._prepared, **(modulated or {})}
            self.parameters.pop("lora_scales", None)
            if video is not None:
                keywords["video"] = video
            self._run(keywords)
            self._prepared, reset = True, False

    def silently(self, times: int, **update: Any) -> None:
        """So many equal chunks, of which only the number is recorded."""
        start = len(self.calls)
        self(times=times, **update)
        first = self.calls[start]
        assert all(call["call"] == first["call"] for call in self.calls[start:])
        self.calls[start:] = [{"call": first["call"], "times": times}]

    def _run(self, keywords: dict[str, Any]) -> None:
        self.log.clear()
        real = dict(keywords)
        if "video" in real:
            real["video"] = [torch.full((1, HEIGHT, WIDTH, 3), v, dtype=torch.uint8) for v in real["video"]]
        try:
            out = self.pipeline(**real)
            result = self._result(len(out["video"]))
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        else:
            if "transition" in self.parameters and not self.pipeline.state.get("_transition_active", False):
                del self.parameters["transition"]
        self.calls.append({"call": keywords, "events": list(self.log), "result": result})

    def _result(self, frames: int) -> dict[str, Any]:
        state, generator = self.pipeline.state, self.pipeline.components.generator
        seed, noise_scale = state.get("generator").initial_seed(), state.get("noise_scale")
        start, vae = generator.start_latents, self.pipeline.components.vae
        noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed))
        if state.get("video") is not None:
            noise = torch.lerp(vae.encoded, noise, noise_scale)
        torch.testing.assert_close(start, noise, msg="the start latents are not what seed and noise_scale say")
        return {
            "frames": frames,
            "seed": seed,
            "noise_scale": None if noise_scale is None else round(noise_scale, 6),
            "transition_active": state.get("_transition_active"),
            "next_start": state.get("current_start_frame"),
        }


def described(embedding: Tensor) -> str | list[list[float]]:
    """The text of an embedding, or its numbers."""
    rows = [[round(v, 5) + 0.0 for v in row] for row in embedding.tolist()]  # + 0.0: no negative zeros
    return next((text for text, known in EMBEDDINGS.items() if known == rows), rows)


def text_scenarios() -> dict[str, Session]:
    s: dict[str, Session] = {}

    def begin(name: str) -> Session:
        s[name] = Session()
        return s[name]

    def mix(*pairs: tuple[str, float]) -> list[dict]:
        return [{"text": text, "weight": weight} for text, weight in pairs]

    def to(target: str, n: int, **how: Any) -> dict:
        return {"target_prompts": mix((target, 1.0)), "num_steps": n, **how}

    call = begin("steady text")
    call(prompts="fox", denoising_step_list=[1000, 750, 500, 250], times=6)

    call = begin("no step list")
    call(prompts="fox", times=2)

    call = begin("prompt change at call 3 and 7")
    call(prompts="fox", times=2)
    call(prompts="boat", times=4)
    call(prompts="storm", times=2)

    call = begin("prompt change without manage_cache")
    call(prompts="fox", manage_cache=False, times=2)
    call(prompts="boat", times=2)

    call = begin("one prompt in other forms")
    call(prompts="fox", times=2)
    call(prompts=["fox"])
    call(prompts=mix(("fox", 1.0)))
    call(prompts=[{"text": "fox"}])

    call = begin("reset")
    call(prompts="fox", times=3)
    call(reset=True, times=2)
    call(reset=True, prompts="boat")

    call = begin("steps changed")
    call(prompts="fox", denoising_step_list=[1000, 750, 500, 250], times=2)
    call(denoising_step_list=[1000, 500], times=2)
    call(denoising_step_list=[1000], prompts="boat", times=2)

    call = begin("steps changed without manage_cache")
    call(prompts="fox", denoising_step_list=[1000, 750, 500, 250], manage_cache=False, times=2)
    call(denoising_step_list=[1000, 500], times=2)

    for n in (3, 1, 0):
        call = begin(f"transition of {n}, then the old prompts are still sent")
        call(prompts="fox", times=2)
        call(transition=to("boat", n), times=5)

    call = begin("transition by slerp")
    call(prompts="fox", times=2)
    call(transition=to("boat", 3, temporal_interpolation_method="slerp"), times=3)

    call = begin("transition on the first call")
    call(prompts="fox", transition=to("boat", 3), times=3)

    call = begin("transition together with a reset")
    call(prompts="fox", times=2)
    call(transition=to("boat", 3), reset=True, times=3)

    call = begin("transition to the present prompt")
    call(prompts="fox", times=2)
    call(transition=to("fox", 3), times=2)

    call = begin("transition together with its target as prompts")
    call(prompts="fox", times=2)
    call(prompts="boat", transition=to("boat", 3), times=4)

    call = begin("transition to a target that is not its prompts")
    call(prompts="fox", times=2)
    call(prompts="storm", transition=to("boat", 3), times=5)

    call = begin("transition from blend to blend")
    call(prompts=mix(("fox", 3), ("boat", 1)), times=2)
    call(transition={"target_prompts": mix(("boat", 1), ("storm", 1)), "num_steps": 3}, times=4)

    call = begin("transition to almost the present prompt")
    call(prompts="fox", times=2)
    call(transition=to("almost fox", 3), times=2)
    call(prompts="almost fox")
    call(transition=to("boat", 2), times=3)

    call = begin("transition to another target midway")
    call(prompts="fox", times=2)
    call(transition=to("boat", 4), times=2)
    call(transition=to("storm", 3), times=4)

    call = begin("transition of another length midway")
    call(prompts="fox", times=2)
    call(transition=to("boat", 4), times=2)
    call(transition=to("boat", 2), times=3)

    call = begin("transition cancelled by new prompts")
    call(prompts="fox", times=2)
    call(transition=to("boat", 4), times=2)
    call(prompts="storm", times=2)

    call = begin("transition cancelled by the old prompts")
    call(prompts="fox", times=2)
    call(transition=to("boat", 4), times=2)
    call(prompts="fox", times=2)

    call = begin("transition, then the old prompts anew, then others")
    call(prompts="fox", times=2)
    call(transition=to("boat", 2), times=3)
    call(prompts="fox", times=2)
    call(prompts="storm", times=2)
    call(prompts="fox", times=2)

    call = begin("transition and back")
    call(prompts="fox", times=2)
    call(transition=to("boat", 2), times=3)
    call(transition=to("fox", 2), times=3)

    call = begin("transition, then a reset")
    call(prompts="fox", times=2)
    call(transition=to("boat", 2), times=3)
    call(reset=True, times=2)

    call = begin("two weighted prompts")
    call(prompts=mix(("two", 3), ("ten", 1)))
    call(prompts=mix(("fox", 3), ("boat", 1)), times=2)
    call(prompts=mix(("fox", 3), ("boat", 1)), prompt_interpolation_method="slerp")
    call(prompts=mix(("fox", 1), ("boat", 1)), prompt_interpolation_method="slerp")

    call = begin("weights change")
    call(prompts=mix(("fox", 3), ("boat", 1)), times=2)
    call(prompts=mix(("fox", 1), ("boat", 3)))
    call(prompts=mix(("fox", 2), ("boat", 6)))
    call(prompts=mix(("fox", 0), ("boat", 1)))
    call(prompts=mix(("fox", 0), ("boat", 0)))
    call(prompts=mix(("fox", -1), ("boat", 3)))
    call(prompts=mix(("fox", -1), ("boat", -3)))
    call(prompts=["fox", "storm"])

    call = begin("slerp of two prompts, by the name scope's blocks read")
    call(prompts=mix(("fox", 3), ("boat", 1)), spatial_interpolation_method="slerp")

    call = begin("noise keys in text mode")
    call(prompts="fox", noise_scale=0.5, noise_controller=True, times=3)

    call = begin("lora_scales")
    call(prompts="fox", times=2)
    call(lora_scales=[{"path": "style.safetensors", "scale": 0.5}], times=2)
    call(lora_scales=[], times=2)
    call(lora_scales=[{"path": "style.safetensors", "scale": 1.0}], manage_cache=False)
    call(lora_scales=[{"path": "style.safetensors", "scale": 0.5}], times=2)

    call = begin("no prompts")
    call(times=2)
    call(prompts="fox", times=2)

    call = begin("empty prompts")
    call(prompts=[])
    call(prompts="", times=2)
    call(prompts="fox", times=2)
    call(prompts=[], times=2)
    call(prompts="fox", times=2)

    call = begin("base_seed changes")
    call(prompts="fox", times=2)
    call(base_seed=7, times=2)
    call(reset=True, times=2)

    call = begin("base_seed of one call only")
    call(prompts="fox", times=2)
    call(modulated={"init_cache": True, "base_seed": 7})
    call(times=2)

    call = begin("start frame 1021")
    call(prompts="fox")
    call.silently(times=338)
    call(times=3)

    call = begin("modulated steps, then a change by hand")
    call(prompts="fox", denoising_step_list=[1000, 750, 500, 250], times=2)
    for offset in (50, 0, -50):
        steps = [min(1000, step + offset) for step in (1000, 750, 500, 250)]
        call(modulated={"denoising_step_list": steps, "_modulated_step_list": True})
    call(times=2)
    call(denoising_step_list=[1000, 500], times=2)

    call = begin("modulated noise scale in text mode")
    call(prompts="fox", noise_scale=0.5, times=2)
    for scale in (0.62, 0.38):
        call(modulated={"noise_scale": scale, "noise_controller": False, "_modulated_noise_scale": True})
    call(times=2)

    call = begin("size changed by a reset")
    call(prompts="fox", times=2)
    call(height=WIDTH, width=HEIGHT, reset=True, times=2)
    return s


def video_scenarios() -> dict[str, Session]:
    s: dict[str, Session] = {}
    steady = {"noise_scale": 0.7, "noise_controller": False}

    def begin(name: str) -> Session:
        s[name] = Session()
        return s[name]

    def ramp(first: int, step: int) -> list[int]:
        return [first + step * i for i in range(12)]

    def to(target: str, n: int) -> dict:
        return {"target_prompts": target, "num_steps": n}

    call = begin("video steady")
    call(prompts="fox", **steady, video=ramp(40, 5), times=4)

    call = begin("video with scope's interface's steps")
    call(prompts="fox", **steady, denoising_step_list=[1000, 750], video=STILL, times=2)

    call = begin("video without noise keys")
    call(prompts="fox", video=STILL, times=3)

    call = begin("video with controller, still")
    call(prompts="fox", noise_scale=0.7, noise_controller=True, video=STILL, times=3)

    call = begin("video with controller, moving")
    call(prompts="fox", noise_scale=0.7, noise_controller=True, video=ramp(40, 5))
    call(video=ramp(100, 5))
    call(video=ramp(154, 1))
    call(video=STILL)
    call(video=ramp(0, 20))

    call = begin("video with controller, in and out")
    call(prompts="fox", noise_scale=0.5, noise_controller=True, video=STILL)
    call(noise_controller=False, video=ramp(100, 1))
    call(noise_controller=True, noise_scale=0.4, video=[138] * 12)
    call(video=[148] * 12)
    call(reset=True, video=[158] * 12)
    call(prompts="boat", video=[168] * 12)
    call(denoising_step_list=[1000, 500], video=[178] * 12)

    call = begin("video noise scale changes")
    call(prompts="fox", **steady, video=STILL, times=2)
    for scale in (0.3, 1.0, 0.1, 0.05, 0.0):
        call(noise_scale=scale, video=STILL)

    call = begin("video new prompt")
    call(prompts="fox", **steady, video=STILL, times=2)
    call(prompts="boat", video=STILL, times=2)

    call = begin("video new prompt without manage_cache")
    call(prompts="fox", **steady, manage_cache=False, video=STILL, times=2)
    call(prompts="boat", video=STILL, times=2)

    for n in (3, 1, 0):
        call = begin(f"video transition of {n}")
        call(prompts="fox", **steady, video=STILL, times=2)
        call(transition=to("boat", n), video=STILL, times=5)

    call = begin("video new prompt right after a transition")
    call(prompts="fox", **steady, video=STILL, times=2)
    call(transition=to("boat", 2), video=STILL, times=2)
    call(prompts="storm", video=STILL, times=2)

    call = begin("video steps changed")
    call(prompts="fox", **steady, denoising_step_list=[1000, 750], video=STILL, times=2)
    call(denoising_step_list=[1000, 500, 250], video=STILL, times=2)

    call = begin("video reset")
    call(prompts="fox", **steady, video=STILL, times=2)
    call(reset=True, video=STILL, times=2)

    call = begin("video modulated noise scale")
    call(prompts="fox", noise_scale=0.7, noise_controller=True, video=STILL, times=2)
    for scale in (0.62, 0.38):
        modulated = {"noise_scale": scale, "noise_controller": False, "_modulated_noise_scale": True}
        call(modulated=modulated, video=STILL)
    call(video=STILL)

    call = begin("video start frame 1021")
    call(prompts="fox", **steady, video=STILL)
    call.silently(times=338, video=STILL)
    call(video=STILL, times=3)

    call = begin("text to video")
    call(prompts="fox", **steady, times=3)
    call(video=ramp(40, 5), times=3)

    call = begin("video to text")
    call(prompts="fox", **steady, video=STILL, times=3)
    call(times=3)

    call = begin("text to video with a new prompt")
    call(prompts="fox", **steady, times=3)
    call(prompts="boat", video=STILL, times=2)

    call = begin("text to video with a reset")
    call(prompts="fox", **steady, times=3)
    call(reset=True, video=STILL, times=2)
    return s


def dump(document: dict[str, Any]) -> str:
    """JSON with one call's keywords, one event and one result to a line."""
    lines = ["{"]
    for key in ("scope", "pixels"):
        lines.append(f' "{key}": {json.dumps(document[key])},')
    lines.append(' "embeddings": {')
    lines.append(",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in document["embeddings"].items()))
    lines.append(' },\n "scenarios": {')
    scenarios = []
    for name, calls in document["scenarios"].items():
        scenarios.append(f"  {json.dumps(name)}: [\n" + ",\n".join(map(_dump_call, calls)) + "\n  ]")
    return "\n".join([*lines, ",\n".join(scenarios), " }", "}"])


def _dump_call(call: dict) -> str:
    head = f'   {{"call": {json.dumps(call["call"])}'
    if "times" in call:
        return f'{head}, "times": {call["times"]}}}'
    events = ",\n".join(f"     {json.dumps(event)}" for event in call["events"])
    events = f"[\n{events}]" if events else "[]"
    return f'{head},\n    "events": {events},\n    "result": {json.dumps(call["result"])}}}'


def main() -> None:
    parser = argparse.ArgumentParser(description="Record scope's LongLive pipeline; JSON to standard output.")
    parser.add_argument("checkout", type=Path, help="a checkout of daydreamlive/scope")
    checkout = parser.parse_args().checkout
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(sys.stderr):  # scope prints
        make_importable(checkout)
        sessions = {**text_scenarios(), **video_scenarios()}
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    document = {
        "scope": project["version"],
        "pixels": [HEIGHT, WIDTH],
        "embeddings": EMBEDDINGS,
        "scenarios": {name: session.calls for name, session in sessions.items()},
    }
    print(dump(document))


if __name__ == "__main__":
    main()
