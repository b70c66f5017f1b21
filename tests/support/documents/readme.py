"""What README.md says."""

from __future__ import annotations

import json
import re
import time
import tomllib

import pytest

from longlive_optimized.config import CHANGEABLE, PRESETS, OptimizationConfig, preset_name
from longlive_optimized.video_time import BLOCK_FRAMES, BLOCK_PIXEL_FRAMES, TRAINED_FPS

from .claims import lists, says
from .markdown import Unit
from .place import ROOT, Place
from .tables import body, names

README = "README.md"


@says(README, "A block is 3 latent frames, 12 pictures; it attends to a window of 12 latent frames")
def sizes_of_a_block():
    assert (BLOCK_FRAMES, BLOCK_PIXEL_FRAMES, OptimizationConfig().local_attn_size) == (3, 12, 12)


@says(README, "taken at 25 a second, it plays 1.6 times as fast")
def frame_rates():
    assert TRAINED_FPS == 16 and round(25 / TRAINED_FPS, 1) == 1.6


@lists(README, "Presets")
def presets(units: list[Unit]):
    said = {}
    for cells in body(units, "preset"):
        name, *alias = names(cells[0])
        said[name] = cells
        assert all(preset_name(other) == name for other in alias), cells
    assert [*said] == [*PRESETS]
    for name, (_, steps, window, precision, fps, lag, *_) in said.items():
        preset = PRESETS[name]
        assert tuple(map(int, steps.split())) == preset["denoising_steps"], name
        assert (int(window), int(fps)) == (preset["local_attn_size"], preset["target_fps"]), name
        assert precision.split()[0] == preset["precision"], name
        assert lag == ("drop" if preset["drop_frames_on_lag"] else "keep every frame"), name


@says(README, "`set_optimization_preset` and `configure` change steps, window, precision, streaming fields")
def what_may_change():
    assert {"denoising_steps", "local_attn_size", "precision", "use_cuda_graphs"} <= {*CHANGEABLE}
    fixed = {
        "height": 32,
        "width": 32,
        "positions": "base",
        "sink_size": 1,
    }  # "Size, dtype, positions and sinks are fixed"
    for name, other in fixed.items():
        assert name not in CHANGEABLE
        with pytest.raises(ValueError, match="cannot change"):
            OptimizationConfig().changed(**{name: other})
    with pytest.raises(ValueError, match="cannot change"):
        OptimizationConfig().changed(model_dtype="float32")


@says(README, '`"tiny"` is the built-in model, 17 MB')
def size_of_the_built_in_model(units: list[Unit]):
    from longlive_optimized.tinyworld.vocabulary import known_to
    from longlive_optimized.tinyworld.world import MAX_SHAPES, MOTIONS
    from longlive_optimized.weights.locate import TINY_SIZE, locate

    files = [p for p in locate("tiny").generator.parents[2].rglob("*") if p.is_file()]
    assert round(sum(p.stat().st_size for p in files) / 1e6) == 17
    # "one to three shapes (circle, square, triangle, cross) in six colours move left, right, up, down or stand still
    # over five grounds, at …"
    known = known_to("tiny")
    assert known.forms == ("circle", "square", "triangle", "cross")
    assert len(known.colours) == 6 and len(known.grounds) == 5
    assert [*MOTIONS] == ["left", "right", "up", "down", "still"] and MAX_SHAPES == 3
    assert "at {}×{}.".format(*TINY_SIZE) in " ".join(units[0].text.split()), units[0].text


@says(README, "Python 3.11 to 3.13, torch 2.9 to")
def versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert any(re.fullmatch(r"torch>=2\.9\b.*", needed) for needed in project["dependencies"])
    assert "(3, 11) <= sys.version_info < (3, 14)" in (ROOT / "setup_env.sh").read_text()


@says(README, "which torch to install where there is none")
def torch_that_is_installed(units: list[Unit]):
    said = re.search(r"`TORCH` \(default `([^`]+)`\)", units[0].text)
    assert said and f"TORCH=${{TORCH:-{said[1]}}}" in (ROOT / "setup_env.sh").read_text(), said


@says(README, "(extra `demo`)")
def extras():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "aiortc" in extra["demo"] and {"aiortc", "fastapi", "uvicorn"} <= {*extra["serve"]}


@says(README, "Eight programs of a page each and a notebook are in [docs/examples](docs/examples)")
def examples():
    programs = sorted((ROOT / "docs/examples").glob("*.py"))
    assert [p.stem for p in programs] == sorted(
        "stream story one_video frame_loop own_queue two_streams video_input lora".split()
    )
    assert all(len(p.read_text().splitlines()) <= 60 for p in programs)


@lists(README, "How it works", "shell")
def rooms(units: list[Unit]):
    inside = ""
    for unit in units:
        name = unit.text.split()[0]
        inside = "" if (ROOT / name).is_dir() and name != "tests/" else inside
        assert (ROOT / inside / name).is_dir() or (ROOT / name).is_dir(), name
        inside = name if name == "longlive_optimized/" else inside


@says(README, "The panel is made for pictures from about 200 pixels on")
def the_panel():
    import torch

    from longlive_optimized.demo.scope_integration import create_latency_overlay

    for (height, width), hidden in (((64, 96), True), ((208, 320), False)):
        frame = torch.full((3, height, width), 0.5)
        drawn = create_latency_overlay().apply(frame.clone(), {"current_ms": 20.0, "fps": 50.0})
        changed = (drawn != frame).any(0).float().mean().item()
        assert (changed > 0.6) if hidden else (changed < 0.4), (height, width, changed)


@says(README, "Files that exist are overwritten only with `--force`.")
def nothing_is_overwritten(place: Place):
    command = "longlive-optimized generate --prompt 'a red circle moves left over a green field' --seconds 0.5"
    (place.folder / "there.mp4").write_text("mine")
    ran = place.run(f"{command} --out there.mp4")
    assert ran.status == 2 and "error: --out: there.mp4 exists; --force overwrites it" in ran.text, ran.text
    assert (place.folder / "there.mp4").read_text() == "mine"
    ran = place.run(f"{command} --out there.mp4 --force")
    assert ran.status == 0 and (place.folder / "there.mp4").stat().st_size > 1000, ran.text


@says(README, "threads of OpenMP should sleep while they wait: the commands see to it")
def threads_sleep(place: Place):
    code = "from longlive_optimized.cli.threads import share_the_machine as s; s(); import os; "
    ran = place.run(f"python -c \"{code} print(os.environ['OMP_WAIT_POLICY'])\"")
    assert ran.text.strip() == "PASSIVE", ran.text


@says(README, "`LONGLIVE_BACKEND=reference|library|triton|cuda` forces a backend on every operator that has it")
def backends(place: Place):
    for name in ("reference", "library", "triton", "cuda", "nonsense"):
        code = "from longlive_optimized.kernels.registry import forced; print(forced())"
        ran = place.run(f'LONGLIVE_BACKEND={name} python -c "{code}"')
        assert (name == "nonsense") == (ran.status != 0), f"{name}: {ran.text}"


@says(
    README,
    "Up to `--viewers` may watch",
    "The server listens on this machine alone unless given `--host` and a `--token`",
    "STUN and TURN servers are used where given",
)
def the_server_keeps_to_itself(place: Place):
    from longlive_optimized.demo.server.settings import ServerSettings

    settings = ServerSettings()
    assert settings.loopback and settings.ice_servers == () and settings.max_viewers == 8
    ran = place.run("longlive-optimized serve --host 0.0.0.0")
    assert ran.status == 2 and "token" in ran.text, ran.text


@says(README, "`generate_frame` then gives the first latent's frames before the others are decoded")
def the_first_latent_comes_first():
    from longlive_optimized import BlockRequest, LongLiveEngine

    engine, request = LongLiveEngine("tiny", device="cpu"), BlockRequest("a red circle moves left over a green field")
    assert len(engine.generate_block(request, first_latent_only=True)) == 1 and len(engine.rest_of_block()) == 8
    assert len(engine.generate_block(request, first_latent_only=True)) == 4 and len(engine.rest_of_block()) == 8


@says(README, "repeating the old prompt does not undo `switch_prompt`, nor does `reset()`")
def the_last_wish():
    from longlive_optimized.demo.scope_integration import OptimizedScopePipeline

    pipeline, old = OptimizedScopePipeline("tiny", device="cpu"), "a red circle moves left over a green field"
    pipeline.generate_frame(old)
    pipeline.switch_prompt("a white cross rests on a black night")
    time.sleep(0.15)  # longer than prompts are held
    for _ in range(30):
        frame = pipeline.generate_frame(old)
    assert frame.mean() < 0.25, "the night is black"
    pipeline.reset()
    assert pipeline.generate_frame(old).mean() < 0.25


@says(README, "runs at 30 to 75 frames a second on two CPU cores")
def speed_of_the_built_in_model():
    records = [json.loads(path.read_text()) for path in (ROOT / "docs/measurements").glob("demo-*.json")]
    rates = [row["fps"] for record in records for row in record["rows"]]
    assert round(min(rates), -1) == 30 and max(rates) <= 76, rates


@says(README, "what scope has downloaded is used where it is", "scope's models, or of a LongLive download")
def folders_of_models(place: Place):
    code = """
import shutil, sys
from pathlib import Path
import torch
from safetensors.torch import save_file

small, models = Path(sys.argv[1]), Path("models")
shutil.copytree(small / "longlive_models/models", models / "LongLive-1.3B/models")
shutil.copytree(small / "wan_models/Wan2.1-T2V-1.3B", models / "Wan2.1-T2V-1.3B")
text = models / "Wan2.1-T2V-1.3B/models_t5_umt5-xxl-enc-bf16.pth"
(models / "WanVideo_comfy").mkdir()
save_file(torch.load(text), models / "WanVideo_comfy/umt5-xxl-enc-fp8_e4m3fn.safetensors")
text.unlink()
"""
    (place.folder / "scope_layout.py").write_text(code)
    ran = place.run("python scope_layout.py $MODEL && longlive-optimized doctor models")
    assert ran.status == 0 and "models is complete and its parts fit together" in ran.text, ran.text


@says(README, "an active environment's own torch is used as it is")
def torch_of_the_environment(place: Place):
    ran = place.run('VENV=second PYTHON="$ENVIRONMENT/bin/python" ./setup_env.sh', place.checkout)
    assert ran.status == 0 and "using the torch of" in ran.text and "ready: second/bin" in ran.text, ran.text
    ran = place.run("second/bin/longlive-optimized --version", place.checkout)
    assert ran.status == 0, ran.text
    ran = place.run(
        "PYTHON=/nowhere/python ./setup_env.sh; ./setup_env.sh nonsense; LONGLIVE_CUDA=X ./setup_env.sh", place.checkout
    )
    assert "usage: ./setup_env.sh [demo|lint|test]" in ran.text and "LONGLIVE_CUDA must be ON, OFF or AUTO" in ran.text
