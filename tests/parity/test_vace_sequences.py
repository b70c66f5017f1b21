"""With VACE's inputs our calls give as many frames, cut, recache and are steered where scope's were recorded to.

A network of random weights stands for the real one: what is compared are the rules, call by call.
"""

import json
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from longlive_optimized.weights.random_checkpoint import make_checkpoint
from support.scope_double import scope_installed

HEIGHT, WIDTH = 32, 48
SCENARIOS = json.loads(Path(__file__).with_name("vace_sequences.json").read_text())
PORTS = {"vace_input_frames": 3, "vace_input_masks": 1, "video": 3}


def write_picture(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    with av.open(str(path), "w", format="image2") as file:
        stream = file.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 30, 40, "rgb24"
        for packet in [*stream.encode(av.VideoFrame.from_ndarray(noise, "rgb24")), *stream.encode()]:
            file.mux(packet)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    root = tmp_path_factory.mktemp("scope") / "models"
    (root.parent / "assets").mkdir()
    write_picture(root.parent / "assets" / "picture.png")
    with scope_installed() as scope, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAYDREAM_SCOPE_MODELS_DIR", str(make_checkpoint(root, "tiny", control=True)))
        patch.setattr(torch.cuda, "is_available", lambda: False)
        pipeline_class = scope.discover("longlive-optimized")["longlive-optimized"]
        size = {"height": HEIGHT, "width": WIDTH, "denoising_steps": [1000, 500]}
        yield pipeline_class(model_path=str(root), vace_enabled=True, show_messages=False, **size)
    for name in [name for name in sys.modules if name.startswith("longlive_optimized.demo.scope_plugin")]:
        del sys.modules[name]  # they hold the double's classes


def keywords(call: dict) -> dict:
    real = dict(call) | {"graph": {"nodes": []}}
    for port, channels in PORTS.items():
        if real.get(port) is not None:
            real[port] = [torch.full((1, HEIGHT, WIDTH, channels), v, dtype=torch.uint8) for v in real[port]]
    return real


def replay(pipeline, calls: list[dict]) -> None:
    engine, asked = pipeline._engine, []
    make = engine.generate_block

    def noted(request, stream):
        asked.append(request)
        return make(request, stream)

    engine.generate_block = noted
    try:
        for number, call in enumerate(calls):
            frames = pipeline(**keywords(call["call"]))["video"]
            stream, request = pipeline._sessions.current()._stream, asked[-1]
            control = request.control
            seen = {
                "frames": len(frames),
                "next_start": stream.position,
                "steered": control is not None,
                "scale": None if control is None else control.scale,
                "recache": "recache" in engine.block_times(stream)[-1].stages,
            }
            said = call["scale"] if call["scale"] is not None or call["context"] is None else 1.0
            wanted = {name: call[name] for name in ("frames", "next_start", "recache")}
            assert seen == wanted | {"steered": call["context"] is not None, "scale": said}, f"call {number}"
            assert (request.video is not None) == ("video" in call["call"])
    finally:
        del engine.generate_block


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_rules_are_scopes(pipeline, name):
    failed = []

    def run():  # a thread is a session
        try:
            replay(pipeline, SCENARIOS[name])
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
