"""``generate`` plays stories, and takes what a config takes; ``presets`` lists what there is."""

import json

import av
import numpy as np
import pytest
from demo.test_live import webp_times

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.cli import generate as command
from longlive_optimized.cli.presets import WORDS
from longlive_optimized.cli.story import parse_lora, parse_loras, parse_steps
from longlive_optimized.config import PRESETS
from support.loras import for_the_built_in_model

CIRCLE, SQUARE = "a red circle moves left over a green field", "a blue square rests on a black night"
SMALL = {"height": 32, "width": 48}
SIZE = ["--height", "32", "--width", "48", "--device", "cpu"]


class Kept:
    """What ``generate`` would have written."""

    def __init__(self, monkeypatch):
        self.blocks = []
        write = command.Mp4Writer.write

        def keep(writer, frames):
            self.blocks.append(frames.copy())
            write(writer, frames)

        monkeypatch.setattr(command.Mp4Writer, "write", keep)

    @property
    def frames(self):
        return np.concatenate(self.blocks)


@pytest.fixture
def kept(monkeypatch):
    return Kept(monkeypatch)


def story_file(folder, **fields):
    prompts = [{"block": 0, "prompt": CIRCLE}, {"block": 2, "prompt": SQUARE, "transition_blocks": 2}]
    story = {"version": 1, "seed": 5, **SMALL, "blocks": 4, "prompts": prompts, **fields}
    (folder / "story.json").write_text(json.dumps(story))
    return folder / "story.json"


def by_hand(requests, changes=(), **config):
    """The engine's frames: a block for each request, the engine's configuration changed before some."""
    with LongLiveEngine("tiny", OptimizationConfig(**SMALL, **config), "cpu") as engine:
        blocks = []
        for i, request in enumerate(requests):
            if i in dict(changes):
                engine.configure(**dict(changes)[i])
            blocks.append(engine.generate_block(request).numpy())
        return np.concatenate(blocks)


def test_a_story_is_played(run, tmp_path, kept):
    changes = [{"block": 3, "preset": "ultra"}]
    out, report = tmp_path / "a.mp4", tmp_path / "a.json"
    run("generate", "--story", story_file(tmp_path, changes=changes), "--out", out, "--device", "cpu", "--json", report)
    circle, square = BlockRequest(CIRCLE), BlockRequest(SQUARE, transition_blocks=2)
    ultra = OptimizationConfig.preset_fields("ultra")
    wanted = by_hand([circle, circle, square, square], {3: ultra}.items(), seed=5)
    assert np.array_equal(kept.frames, wanted)
    stats = json.loads(report.read_text())
    assert (stats["config"]["seed"], stats["preset"], len(stats["blocks"])) == (5, "balanced", 4)


def test_what_may_be_chosen_beside_a_story(run, tmp_path, kept):
    story = story_file(tmp_path, blocks=1, prompts=[{"seconds": 0, "prompt": CIRCLE}], model="nowhere", width=64)
    run("generate", "--story", story, "--seed", "3", "--model", "tiny", *SIZE, "--out", tmp_path / "a.mp4")
    assert np.array_equal(kept.frames, by_hand([BlockRequest(CIRCLE)], seed=3))


def test_options_of_the_config(run, tmp_path, kept):
    args = ["--steps", "1000,400", "--window", "9", "--vae", "tae", "--seconds", "1", "--prompt", CIRCLE]
    run("generate", *args, *SIZE, "--out", tmp_path / "a.mp4")
    wanted = by_hand([BlockRequest(CIRCLE)] * 2, denoising_steps=(1000, 400), local_attn_size=9, vae_type="tae")
    assert np.array_equal(kept.frames, wanted[:16])


def test_a_lora_is_merged(run, tmp_path, kept):
    lora = for_the_built_in_model(tmp_path / "paint.safetensors")
    for scale in ("0", "0.5", "1"):
        name = f"{lora}:{scale}" if scale != "1" else str(lora)
        run(
            "generate",
            "--prompt",
            CIRCLE,
            "--lora",
            name,
            "--seconds",
            "0.5",
            *SIZE,
            "--out",
            tmp_path / f"{scale}.mp4",
        )
    none, half, whole = kept.blocks
    assert np.array_equal(none, by_hand([BlockRequest(CIRCLE)])[:8])
    assert not np.array_equal(none, half) and not np.array_equal(half, whole)


def test_a_story_with_a_lora(run, tmp_path, kept):
    for_the_built_in_model(tmp_path / "paint.safetensors")
    changes = [{"block": 1, "loras": {"paint.safetensors": 0}}]
    more = {"loras": {"paint.safetensors": 1}, "changes": changes, "blocks": 2}
    prompts = [{"block": 0, "prompt": CIRCLE}]
    done = run("generate", "--story", story_file(tmp_path, prompts=prompts, **more), "--out", tmp_path / "a.mp4")
    assert "block 1, recache" in done.stdout and "prompt switch" not in done.stdout
    first, second = kept.blocks
    plain = by_hand([BlockRequest(CIRCLE)] * 2, seed=5)
    assert not np.array_equal(first, plain[:9]) and len(second) == 12


def test_a_story_whose_lora_lies_elsewhere(run, tmp_path):
    story = story_file(tmp_path, prompts=[{"block": 0, "prompt": CIRCLE}], loras={"paint.safetensors": 1})
    done = run("generate", "--story", story, "--out", tmp_path / "a.mp4", check=False)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2 and f"there is none at {tmp_path}/paint.safetensors; a story's LoRAs" in said, said


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("a.safetensors", ("a.safetensors", 1.0)), ("a:0.5", ("a", 0.5)), ("a:-1", ("a", -1.0)), ("b:a", ("b:a", 1.0))],
)
def test_loras_as_they_are_given(text, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, scale = wanted
    assert parse_lora(text) == (str(tmp_path / path), scale)


def test_a_lora_that_is_given_twice_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_loras(["a.pt:2", "b.pt"]) == {str(tmp_path / "a.pt"): 2.0, str(tmp_path / "b.pt"): 1.0}
    with pytest.raises(ValueError, match=r"--lora must name each file once, got .*a\.pt twice"):
        parse_loras(["a.pt:0.5", "b.pt", "./a.pt"])


def test_steps_as_they_are_given():
    assert parse_steps("1000, 500,250") == (1000, 500, 250) and parse_steps(None) is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "error: --prompt, or in its place --story, must be given"),
        (
            ["--prompt", "a", "--steps", "many"],
            "--steps must be numbers between commas, such as 1000,500",
        ),
        (["--prompt", "a", "--steps", "250,500"], "--steps must fall from step to step"),
        (["--prompt", "a", "--steps", "2000"], "--steps"),
        (["--prompt", "a", "--window", "5"], "--window must be at least sink_size + 3 = 6, got 5"),
        (["--prompt", "a", "--window", "65"], "--window must be less than or equal to 64, got 65"),
        (["--prompt", "a", "--vae", "small"], "--vae"),
        (["--prompt", "a", "--fps", "0"], "--fps"),
        (["--prompt", "a", "--fps", "61"], "--fps"),
        (["--prompt", "a", "--scale", "0"], "--scale"),
        (["--prompt", "a", "--lora", "nowhere.safetensors"], "error: --lora: "),
        (["--prompt", "a", "--lora", "a:inf"], "--lora must be FILE or FILE:SCALE with a finite scale, got 'a:inf'"),
        (["--story", "nowhere.json"], "error: --story: there is no file nowhere.json"),
    ],
)
def test_mistakes_are_named_before_any_work(run, tmp_path, monkeypatch, args, message):
    monkeypatch.setattr(command, "load_engine", lambda *args: 1 / 0)
    done = run("generate", *args, "--out", tmp_path / "x.mp4", check=False)
    assert done.returncode == 2 and message in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "x.mp4").exists()


@pytest.mark.parametrize(
    "beside",
    [
        ["--prompt", "a"],
        ["--switch", "1:b"],
        ["--seconds", "2"],
        ["--preset", "ultra"],
        ["--steps", "1000"],
        ["--window", "9"],
        ["--vae", "wan"],
        ["--lora", "a"],
        ["--video", "a.mp4"],
    ],
)
def test_what_a_story_says_itself(run, tmp_path, monkeypatch, beside):
    monkeypatch.setattr(command, "load_engine", lambda *args: 1 / 0)
    done = run("generate", "--story", story_file(tmp_path), *beside, "--out", tmp_path / "x.mp4", check=False)
    assert done.returncode == 2 and f"error: {beside[0]} cannot be given beside --story" in done.stderr


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 3}, "story.json: version must be 1: a story of version 3 cannot be read here"),
        ({"prompts": [{"block": 0, "prompt": ""}]}, "story.json: prompts[0].prompt must hold some text"),
        ({"unrecorded": [{"block": 1, "what": "video input"}]}, "story cannot be replayed: from block 1 on"),
        ({"loras": {"none.safetensors": 1}}, "--story: "),
    ],
)
def test_a_story_that_cannot_be_played(run, tmp_path, monkeypatch, fields, message):
    monkeypatch.setattr(command, "load_engine", lambda *args: 1 / 0)
    done = run("generate", "--story", story_file(tmp_path, **fields), "--out", tmp_path / "x.mp4", check=False)
    assert done.returncode == 2 and message in " ".join(done.stderr.split())


def test_a_gif_and_a_webp(run, tmp_path):
    args = ["--prompt", CIRCLE, "--seconds", "1", "--fps", "8", "--scale", "2", *SIZE]
    done = run("generate", *args, "--out", tmp_path / "a.gif")
    assert "2 s of 96x64, made after" in done.stderr
    with av.open(str(tmp_path / "a.gif")) as file:
        frames = [*file.decode(video=0)]
    assert len(frames) == 16 and (frames[0].height, frames[0].width) == (64, 96)
    assert [frame.time for frame in frames][:3] == pytest.approx([0, 0.125, 0.25], abs=6e-3)
    run("generate", *args, "--out", tmp_path / "a.webp")
    times, size = webp_times((tmp_path / "a.webp").read_bytes())
    assert (len(times), sum(times), size) == (16, 2000, (64, 96))


def test_an_mp4_has_its_rate(run, tmp_path):
    run("generate", "--prompt", CIRCLE, "--seconds", "0.5", "--fps", "30", *SIZE, "--out", tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as file:
        times = [frame.time for frame in file.decode(video=0)]
    assert times == pytest.approx([i / 30 for i in range(8)], abs=1e-4)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--scale", "9", "--seconds", "600"], "error: --seconds: gif of 288x432 may have at most"),
        (["--scale", "200"], "error: --scale: 200 makes pictures of 6400x9600"),
    ],
)
def test_a_gif_that_would_be_too_large(run, tmp_path, monkeypatch, args, message):
    monkeypatch.setattr(command, "load_engine", lambda *args: 1 / 0)
    done = run("generate", "--prompt", "a", *SIZE, *args, "--out", tmp_path / "x.gif", check=False)
    assert done.returncode == 2 and message in done.stderr, done.stderr


def test_presets(run):
    said = " ".join(run("presets").stdout.split())
    assert [*WORDS] == [*PRESETS]
    for name, preset in PRESETS.items():
        assert name in said and WORDS[name].split()[0] in said
        assert str(preset["denoising_steps"][-1]) in said
    assert "quality_stream, quality closest to the model" in said and "steps 1000,250; window 9; int8" in said
