"""Records what scope's own LongLive pipeline does with VACE's inputs, call by call.

    python tests/parity/record_vace.py SCOPE_CHECKOUT > tests/parity/vace_sequences.json

Run as record_scope.py is, whose fakes it takes. Of each call: keywords (frames and masks as grey levels, pictures by
name), the frames of the returned chunk, where the next block starts, the number of latent frames of the context that
each denoising pass was given (null: none) and its scale, and whether a recache was made.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from record_scope import HEIGHT, STILL, WIDTH, Session, make_importable

PORTS = "vace_input_frames", "vace_input_masks", "video"
MOVING = [*range(0, 240, 20)]


class VaceSession(Session):
    """Frames on any port, for the calls that name them alone; pictures for one call."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        generator = self.pipeline.components.generator
        generator.forward = self._noting(generator.forward)
        self.steered: list[tuple[int | None, float]] = []

    def _noting(self, forward: Any) -> Any:
        def noted(**how: Any) -> Any:
            if not how.get("is_recache") and not how.get("update_cache"):
                context = how.get("vace_context")
                self.steered.append((None if context is None else context[0].shape[1], how.get("vace_context_scale")))
            return forward(**how)

        return noted

    def __call__(self, *, times: int = 1, reset: bool = False, **update: Any) -> None:
        passing = {name: update.pop(name) for name in [*update] if name in PORTS or name.endswith(("images", "image"))}
        if "prompts" in update and "transition" not in update:
            self.parameters.pop("transition", None)
        self.parameters |= update
        for _ in range(times):
            self._run({**self.parameters, **passing, "init_cache": reset or not self._prepared})
            self._prepared, reset = True, False
            passing = {name: given for name, given in passing.items() if name in PORTS}

    def _run(self, keywords: dict[str, Any]) -> None:
        self.log.clear(), self.steered.clear()
        real = {**keywords}
        for port in PORTS:
            if real.get(port) is not None:
                channels = 1 if port == "vace_input_masks" else 3  # scope raises for masks of three
                real[port] = [torch.full((1, HEIGHT, WIDTH, channels), v, dtype=torch.uint8) for v in real[port]]
        for name in ("first_frame_image", "last_frame_image"):
            if name in real:
                real[name] = str(self._folder / real[name])
        if "vace_ref_images" in real:
            real["vace_ref_images"] = [str(self._folder / name) for name in real["vace_ref_images"]]
        try:
            frames = len(self.pipeline(**real)["video"])
        except Exception as error:
            self.calls.append({"call": keywords, "error": f"{type(error).__name__}: {error}"})
            return
        if "transition" in self.parameters and not self.pipeline.state.get("_transition_active", False):
            del self.parameters["transition"]
        (context, scale), *others = {*self.steered}
        assert not others, "passes of one block differ"
        self.calls.append(
            {
                "call": keywords,
                "frames": frames,
                "next_start": self.pipeline.state.get("current_start_frame"),
                "context": context,
                "scale": scale if context is not None else None,
                "recache": any(event["event"] == "recache" for event in self.log),
            }
        )


def scenarios(folder: Path) -> dict[str, VaceSession]:
    s: dict[str, VaceSession] = {}

    def begin(name: str) -> VaceSession:
        s[name] = VaceSession(folder)
        return s[name]

    def to(target: str, n: int) -> dict:
        return {"target_prompts": [{"text": target, "weight": 1.0}], "num_steps": n}

    frames, masked = {"vace_input_frames": MOVING}, {"vace_input_masks": [0] * 6 + [255] * 6}

    call = begin("control steady")
    call(prompts="fox", times=4, **frames)

    call = begin("control with masks")
    call(prompts="fox", times=3, **frames, **masked)

    call = begin("control and video")
    call(prompts="fox", noise_scale=0.7, noise_controller=False, times=3, video=STILL, **frames)

    call = begin("a reference at call 3")
    call(prompts="fox", times=3)
    call(vace_ref_images=["picture.png"])
    call(times=2)

    call = begin("a reference at the first call")
    call(prompts="fox", vace_ref_images=["picture.png"], times=2)

    call = begin("a reference beside control")
    call(prompts="fox", times=2, **frames)
    call(vace_ref_images=["picture.png"], times=2, **frames)

    call = begin("first and last frame")
    call(prompts="fox", first_frame_image="picture.png", times=2)
    call(last_frame_image="picture.png", times=2)
    call(first_frame_image="picture.png", last_frame_image="picture.png", times=2, **frames)

    for manages in (True, False):
        call = begin(f"new prompts under control, manage_cache {manages}")
        call(prompts="fox", manage_cache=manages, times=2, **frames)
        call(prompts="boat", times=3, **frames)

    call = begin("a transition under control, then new prompts")
    call(prompts="fox", times=2, **frames)
    call(transition=to("boat", 3), times=4, **frames)
    call(prompts="storm", times=2, **frames)

    call = begin("new prompts just after a transition under control")
    call(prompts="fox", times=2, **frames)
    call(transition=to("boat", 2), times=2, **frames)
    call(prompts="storm", times=2, **frames)

    call = begin("other steps under control")
    call(prompts="fox", denoising_step_list=[1000, 750], times=2, **frames)
    call(denoising_step_list=[1000, 500], times=2, **frames)

    call = begin("control goes")
    call(prompts="fox", times=2, **frames)
    call(times=2, vace_input_frames=None)

    call = begin("a scale that changes")
    call(prompts="fox", vace_context_scale=1.0, times=2, **frames)
    call(vace_context_scale=0.3, **frames)
    call(vace_context_scale=0.0, **frames)
    call(vace_context_scale=2.0, **frames)

    call = begin("a reset under control")
    call(prompts="fox", times=2, **frames)
    call(reset=True, times=2, **frames)

    call = begin("noise keys under control alone")
    call(prompts="fox", noise_scale=0.4, noise_controller=True, times=2, **frames)
    return s


def _stand_in_for_torchvision() -> None:
    """The one function that scope's pictures pass through, where torchvision is not installed."""
    import numpy
    from torchvision.transforms import functional

    if not hasattr(functional, "to_tensor"):
        functional.to_tensor = lambda image: torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 255


def picture(path: Path) -> None:
    from PIL import Image

    noise = torch.randint(0, 256, (40, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(path)


def main() -> None:
    torch.set_grad_enabled(False)
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:  # scope prints
        make_importable(sys.argv[1])
        _stand_in_for_torchvision()
        picture(Path(folder, "picture.png"))
        recorded = {name: session.calls for name, session in scenarios(Path(folder)).items()}
    scenes = (
        json.dumps(name) + ": [\n " + ",\n ".join(map(json.dumps, calls)) + "]" for name, calls in recorded.items()
    )
    print("{" + ",\n".join(scenes) + "}")


if __name__ == "__main__":
    main()
