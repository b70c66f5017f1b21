"""What a video is made from beside its prompt: which pictures each block gets, and the options' mistakes."""

import json
import logging
import sys

import av
import numpy as np
import pytest

import longlive_optimized.cli
from longlive_optimized.cli import generate, main
from longlive_optimized.cli.inputs import InputOptions, Inputs
from longlive_optimized.weights.random_checkpoint import make_checkpoint
from support.footage import lossless, numbers, ramp, random_picture


@pytest.fixture
def files(tmp_path):
    """A video of 40 pictures, one of 25 and pictures."""
    for name, count in (("long", 40), ("short", 25)):
        lossless(tmp_path / f"{name}.mkv", ramp(count))
    for i, name in enumerate(("cat", "dog", "mask")):
        lossless(tmp_path / f"{name}.png", [random_picture(32, 48, i)])
    return {path.stem: path for path in tmp_path.iterdir()}


def opened(**options):
    return Inputs(InputOptions(**options), 32, 48)


def test_blocks_of_video_follow_each_other(files):
    inputs = opened(video=files["long"], noise_scale=0.3)
    assert inputs.length == 40
    first, second, third = (inputs.of_block(start, 40) for start in (0, 13, 25))
    assert numbers(first["video"]) == [*range(13)] and numbers(second["video"]) == [*range(13, 25)]
    assert numbers(third["video"]) == [*range(25, 37)] and third["noise_scale"] == 0.3 and "control" not in third


def test_control_shows_what_the_first_block_leaves_out_again(files):
    inputs = opened(control=files["long"], mask=files["mask"], control_scale=0.5)
    first, second = inputs.of_block(0, 40)["control"], inputs.of_block(9, 40)["control"]  # 9 of 13 are made
    assert numbers([picture.numpy() for picture in first.frames]) == [*range(13)] and first.scale == 0.5
    assert numbers([picture.numpy() for picture in second.frames]) == [*range(9, 21)]
    masks = [mask.numpy() for mask in (*first.masks, *second.masks)]
    assert len(masks) == 25 and all(np.array_equal(mask, random_picture(32, 48, 2)) for mask in masks)


def test_the_shorter_one_says_how_long(files):
    assert opened(video=files["long"], control=files["short"]).length == 25
    assert opened(video=files["long"], control=files["cat"]).length == 40
    assert opened(control=files["cat"]).length is None and opened(reference=[files["cat"]]).length is None
    assert opened(control=files["long"], mask=files["short"]).length == 40
    shorter = opened(video=files["long"], control=files["short"])
    shorter.of_block(0, 60)
    asked = shorter.of_block(20, 60)
    assert numbers(asked["video"]) == [*range(20, 32)]
    assert numbers([picture.numpy() for picture in asked["control"].frames]) == [20, 21, 22, 23, 24, *range(7)]


def test_ends_belong_to_the_first_and_last_block(files):
    inputs = opened(first_frame=files["cat"], last_frame=files["dog"], reference=[files["mask"], files["cat"]])
    assert [inputs.whole_blocks(frames) for frames in (1, 9, 10, 21, 22)] == [9, 9, 21, 21, 33]
    controls = [inputs.of_block(start, 33)["control"] for start in (0, 9, 21)]
    assert [control.first_frame is not None for control in controls] == [True, False, False]
    assert [control.last_frame is not None for control in controls] == [False, False, True]
    assert all(len(control.references) == 2 and control.scale == 1 for control in controls)
    short = inputs.of_block(0, 9)["control"]
    assert short.first_frame is not None and short.last_frame is not None
    with_video = opened(video=files["long"], last_frame=files["dog"])
    assert [with_video.whole_blocks(frames) for frames in (1, 13, 14)] == [13, 13, 25]
    assert "control" in with_video.of_block(0, 13) and "control" not in with_video.of_block(0, 25)
    without = opened(first_frame=files["cat"])
    assert without.whole_blocks(10) == 10 and without.of_block(9, 10) == {}


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)
    monkeypatch.setattr(longlive_optimized.cli, "share_the_machine", lambda: None)

    def call(*args) -> int:
        monkeypatch.setattr(sys, "argv", ["longlive-optimized", "generate", "--prompt", "a", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0

    return call


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--video none.mp4", "--video: none.mp4 cannot be read: No such file"),
        ("--control cat.txt", "--control: cat.txt holds no video"),
        ("--control long.mkv --mask cat.txt", "--mask: cat.txt holds no video"),
        ("--reference cat.png --reference cat.txt", "--reference: cat.txt holds no video"),
        ("--first-frame cat.txt", "--first-frame: cat.txt holds no video"),
        ("--last-frame none.png", "--last-frame: none.png cannot be read"),
        ("--mask cat.png", "--mask needs --control"),
        ("--control-scale 1", "--control-scale needs --control, --reference"),
        ("--control long.mkv --control-scale 2.5", "--control-scale must lie in [0, 2], got 2.5"),
        ("--control long.mkv --control-scale nan", "--control-scale must lie in [0, 2], got nan"),
        ("--noise-scale 0.5", "--noise-scale needs --video"),
        ("--video long.mkv --noise-scale 0.05", "--noise-scale must lie in [0.1, 1], got 0.05"),
        ("--video x.mp4", "--out must be another file than --video"),
    ],
)
def test_mistakes_name_the_option_before_anything_is_loaded(
    run, files, monkeypatch, tmp_path, capsys, options, message
):
    monkeypatch.setattr(generate, "load_engine", lambda *args: 1 / 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.txt").write_text("a cat " * 100)
    assert run(*options.split(), "--out", "x.mp4", "--height", "32", "--width", "48") == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x.mp4").exists()


def test_a_model_without_the_module_says_what_to_fetch(run, files, tmp_path, capsys):
    make_checkpoint(tmp_path / "model", "tiny")
    options = "--model", tmp_path / "model", "--reference", files["cat"], "--height", "32", "--width", "48"
    assert run(*options, "--out", tmp_path / "x.mp4") == 2
    assert "error: --model" in (told := capsys.readouterr().err) and "hf download" in told


def shown(path):
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]).astype(int)


def test_generate_from_files(run, files, tmp_path):
    """Each input matters, and reports say what was given."""
    make_checkpoint(tmp_path / "model", "tiny", control=True)
    common = "--model", tmp_path / "model", "--height", "32", "--width", "48", "--device", "cpu"
    videos = {}
    for name, options in {
        "plain": ["--seconds", "1.3"],
        "control": ["--control", files["short"]],
        "weak": ["--control", files["short"], "--control-scale", "0"],
        "masked": ["--control", files["short"], "--mask", files["mask"]],
        "reference": ["--reference", files["cat"], "--seconds", "1.3"],
        "ends": ["--first-frame", files["cat"], "--last-frame", files["dog"], "--seconds", "1.1"],
        "video": ["--video", files["long"], "--noise-scale", "0.3", "--seconds", "1.3"],
        "both": ["--video", files["long"], "--noise-scale", "0.3", "--control", files["short"]],
    }.items():
        out = tmp_path / f"{name}.mp4"
        assert run(*common, *options, "--out", out, "--json", tmp_path / "report.json") == 0
        videos[name] = shown(out)
        (tmp_path / "report.json").rename(tmp_path / f"{name}.json")
    lengths = {name: len(frames) for name, frames in videos.items()}
    assert lengths == dict.fromkeys(videos, 21) | dict.fromkeys(("control", "weak", "masked", "both"), 25)
    seen = [frames[:21].tobytes() for name, frames in videos.items() if name != "weak"]
    assert len(set(seen)) == len(seen)
    assert np.array_equal(videos["weak"][:21], videos["plain"])  # the same file up to there
    report = json.loads((tmp_path / "both.json").read_text())
    wanted = {"video": str(files["long"]), "noise_scale": 0.3, "control": str(files["short"])}
    assert report["inputs"] == wanted and report["config"]["control"]
    assert [block["frames"] for block in report["blocks"]] == [13, 12]
    assert json.loads((tmp_path / "plain.json").read_text())["inputs"] == {}


def test_the_built_in_model_follows_a_video(run, tmp_path):
    """Of a black and of a white video, with little noise, dark and bright pictures are made."""
    means = []
    for level in (0, 255):
        lossless(tmp_path / "in.mkv", [np.full((64, 96, 3), level, np.uint8)] * 30)
        out = tmp_path / f"{level}.mp4"
        assert run("--video", tmp_path / "in.mkv", "--noise-scale", "0.1", "--device", "cpu", "--out", out) == 0
        frames = shown(out)
        assert len(frames) == 30
        means.append(frames.mean())
    assert means[1] - means[0] > 60
