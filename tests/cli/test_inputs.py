"""What ``generate`` starts from and follows: files read in time, block by block, and mistakes told by their options."""

import json
import re
from fractions import Fraction

import av
import numpy as np
import pytest

from longlive_optimized import LongLiveEngine
from longlive_optimized.cli.inputs import Clip, InputOptions, open_inputs
from longlive_optimized.media import read_video
from longlive_optimized.video_time import TRAINED_FPS
from longlive_optimized.weights.locate import TINY_SIZE
from longlive_optimized.weights.random_checkpoint import make_checkpoint
from support.clips import lossless, numbers, ramp, random_picture

SIZE = 32, 48


def opened(**options):
    return open_inputs(InputOptions(**options), SIZE)


@pytest.fixture
def picture(tmp_path):
    return lossless(tmp_path / "picture.png", [random_picture(*SIZE)])


@pytest.mark.parametrize("rate", [1, 8, 10, 16, 24, 30, 32, 50, Fraction(30000, 1001)])
@pytest.mark.parametrize("suffix", ["mkv", "mov"])  # times in milliseconds, and exact ones
def test_each_instant_shows_the_frame_of_then(tmp_path, rate, suffix):
    count = max(2, int(2 * rate))
    clip = Clip("--video", lossless(tmp_path / f"a.{suffix}", ramp(count), rate), SIZE)
    length = round(count / rate * TRAINED_FPS)
    assert round(clip.seconds * TRAINED_FPS) == length
    rounded = Fraction(2, 1000)  # seconds that a container's times may be off
    wanted = [min(int((Fraction(k, TRAINED_FPS) + rounded) * rate), count - 1) for k in range(length)]
    assert numbers(clip.frames(0, length)) == wanted


def test_a_clip_follows_its_times_overlaps_and_stands_still_at_its_end(tmp_path):
    clip = Clip("--control", lossless(tmp_path / "a.mkv", ramp(5), times=[0, 125, 250, 1000, 1063]), SIZE)
    assert numbers(clip.frames(0, 13)) == [0, 0, 1, 1, *[2] * 9]
    assert numbers(clip.frames(9, 12)) == [*[2] * 7, 3, *[4] * 4]
    assert numbers(clip.frames(21, 12)) == [4] * 12


def test_the_last_frame_lasts_as_long_as_most_do(tmp_path):
    clip = Clip("--video", lossless(tmp_path / "a.mkv", ramp(4), times=[0, 100, 500, 600]), SIZE)
    assert clip.seconds == pytest.approx(0.7, abs=0.002)


def test_a_picture_as_a_clip_stands_still(picture):
    clip = Clip("--mask", picture, SIZE)
    assert clip.seconds is None
    assert all(np.array_equal(frame, random_picture(*SIZE)) for start in (0, 13) for frame in clip.frames(start, 12))


def test_a_clip_covers_the_size(tmp_path):
    wide = random_picture(32, 96)
    for name, frames in (("a.png", [wide]), ("a.mkv", [wide] * 2)):
        clip = Clip("--control", lossless(tmp_path / name, frames), SIZE)
        assert np.array_equal(clip.frames(0, 1)[0], wide[:, 24:72])


def test_each_block_is_given_its_time(tmp_path, picture):
    video, control = (lossless(tmp_path / f"{name}.mkv", ramp(40)) for name in ("video", "control"))
    pictures = {"reference": [picture], "first_frame": picture, "last_frame": picture, "mask": picture}
    given = opened(**pictures, control=control, control_scale=0.5)
    assert given.options.steers and given.first_frames == 9 and given.length == pytest.approx(2.5, abs=0.01)
    first, second, last = (given.fields(*at)["control"] for at in ((0, False), (9, False), (21, True)))
    assert numbers(first.frames) == [*range(13)] and numbers(second.frames) == [*range(9, 21)]
    assert numbers(last.frames) == [*range(21, 33)] and first.scale == 0.5
    masks = [np.asarray(mask) for mask in (*first.masks, *second.masks)]
    assert len(masks) == 25 and all(np.array_equal(mask, random_picture(*SIZE)) for mask in masks)
    assert [c.references is not None for c in (first, second, last)] == [True, False, False]
    assert [c.first_frame is not None for c in (first, second, last)] == [True, False, False]
    assert [c.last_frame is not None for c in (first, second, last)] == [False, False, True]

    alone = opened(reference=[picture])
    controls = [alone.fields(start, False)["control"] for start in (0, 9)]
    assert alone.length is None and all(control.references and control.scale == 1 for control in controls)

    started = opened(video=video, noise_scale=0.4)
    fields = [started.fields(start, False) for start in (0, 13)]
    assert [numbers(f["video"]) for f in fields] == [[*range(13)], [*range(13, 25)]]
    assert fields[0]["noise_scale"] == 0.4 and fields[0]["control"] is None and not started.options.steers
    assert started.first_frames == 13

    nothing = opened()
    assert nothing.fields(0, True) == {"control": None} and not nothing.options.steers


def test_the_shorter_one_says_how_long(tmp_path, picture):
    long, short = (lossless(tmp_path / f"{count}.mkv", ramp(count)) for count in (40, 24))
    for options, seconds in [
        ({"video": long, "control": short}, 1.5),
        ({"video": long, "control": picture}, 2.5),
        ({"control": long, "mask": short}, 2.5),
    ]:
        assert opened(**options).length == pytest.approx(seconds, abs=0.01)
    assert opened(control=picture).length is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--video", "nowhere.mp4"], r"--video: there is no file nowhere\.mp4"),
        (["--control", "text.mp4"], r"--control: text\.mp4 cannot be read as a picture or video"),
        (["--first-frame", "sound.wav"], r"--first-frame: sound\.wav holds no picture"),
        (["--reference", "."], "--reference: there is no file"),
        (["--control", "picture.png", "--mask", "prose.txt"], r"--mask: prose\.txt holds no picture"),
        (["--last-frame", "nowhere.png"], r"--last-frame: there is no file nowhere\.png"),
        (["--control", "strip.png"], r"--control: .*proportions of 1 to 8, got 800x16"),
        (["--mask", "picture.png"], "--mask needs --control"),
        (["--noise-scale", "0.5"], "--noise-scale needs --video"),
        (["--control-scale", "1", "--video", "picture.png"], "--control-scale needs --control, --reference"),
        (["--video", "picture.png", "--noise-scale", "0"], "--noise-scale must lie in 0.1 to 1, got 0"),
        (["--last-frame", "picture.png", "--control-scale", "3"], "--control-scale must lie in 0 to 2, got 3"),
        (["--control", "picture.png", "--control-scale", "nan"], "--control-scale must lie in 0 to 2, got nan"),
        (["--video", "x.mp4"], r"--out must be another file than --video, got 'x\.mp4'"),
        (["--reference", "./x.mp4", "--force"], "--out must be another file than --reference"),
        (
            ["--control", "picture.png", "--json", "picture.png", "--force"],
            "--json must be another file than --control",
        ),
    ],
)
def test_mistakes_are_told_by_their_options_before_any_work(run, tmp_path, picture, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("text.mp4", "prose.txt"):
        (tmp_path / name).write_text("no video " * 100)
    lossless(tmp_path / "strip.png", [np.zeros((16, 800, 3), np.uint8)])
    with av.open("sound.wav", "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    monkeypatch.setattr("longlive_optimized.cli.generate.load_engine", lambda *args: pytest.fail("loaded"))
    done = run("generate", "--prompt", "a fox", "--out", "x.mp4", *arguments, check=False)
    told = " ".join(done.stderr.split())
    assert done.returncode == 2 and re.search(message, told), told
    assert not (tmp_path / "x.mp4").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("control") / "model", "tiny", control=True)


@pytest.mark.parametrize(
    ("options", "length"),
    [
        (["--video", "a.mkv", "--noise-scale", "0.5"], 30),
        (["--control", "a.mkv", "--mask", "picture.png", "--reference", "picture.png"], 30),
        (["--control", "a.mkv", "--video", "a.mkv", "--seconds", "0.5"], 8),
        (["--first-frame", "picture.png", "--last-frame", "picture.png", "--seconds", "0.75"], 21),
    ],
)
def test_a_video_is_made_as_long_as_what_it_is_made_from(run, tmp_path, folder, picture, monkeypatch, options, length):
    monkeypatch.chdir(tmp_path)
    lossless(tmp_path / "a.mkv", ramp(30))
    asked, make = [], LongLiveEngine.generate_block

    def noted(engine, request, *args):
        asked.append(request)
        return make(engine, request, *args)

    monkeypatch.setattr(LongLiveEngine, "generate_block", noted)
    size = ["--height", "32", "--width", "48", "--device", "cpu", "--preset", "ultra"]
    run("generate", "--prompt", "a fox", "--out", "x.mp4", "--model", folder, *size, *options)
    assert len([*read_video(tmp_path / "x.mp4")]) == length
    assert all((request.control is not None) == ("--video" != options[0]) for request in asked)
    assert all((request.video is not None) == ("--video" in options) for request in asked)


def test_a_model_without_the_module_says_what_to_fetch(run, tmp_path, picture):
    make_checkpoint(tmp_path / "model", "tiny")
    options = "--model", tmp_path / "model", "--reference", picture, "--height", "32", "--width", "48"
    done = run("generate", "--prompt", "a fox", "--out", tmp_path / "x.mp4", *options, check=False)
    assert done.returncode == 2 and "error: --model" in done.stderr and "longlive-optimized download" in done.stderr


def test_each_input_matters_and_the_report_names_it(run, folder, tmp_path, picture):
    long, short = (lossless(tmp_path / f"{count}.mkv", ramp(count)) for count in (40, 25))
    other = lossless(tmp_path / "other.png", [random_picture(*SIZE, seed=1)])
    common = ["--prompt", "a", "--model", folder, "--height", "32", "--width", "48", "--device", "cpu", "--force"]
    videos, reports = {}, {}
    for name, options in {
        "plain": ["--seconds", "1.3"],
        "control": ["--control", short],
        "weak": ["--control", short, "--control-scale", "0"],
        "masked": ["--control", short, "--mask", picture],
        "reference": ["--reference", picture, "--seconds", "1.3"],
        "ends": ["--first-frame", picture, "--last-frame", other, "--seconds", "1.1"],
        "video": ["--video", long, "--noise-scale", "0.3", "--seconds", "1.3"],
        "both": ["--video", long, "--noise-scale", "0.3", "--control", short],
    }.items():
        run("generate", *common, *options, "--out", tmp_path / "x.mp4", "--json", tmp_path / "x.json")
        videos[name] = np.stack([shown.picture for shown in read_video(tmp_path / "x.mp4")])
        reports[name] = json.loads((tmp_path / "x.json").read_text())
    lengths = {name: len(frames) for name, frames in videos.items()}
    assert lengths == dict.fromkeys(videos, 21) | dict.fromkeys(("control", "weak", "masked", "both"), 25)
    seen = [frames[:21].tobytes() for name, frames in videos.items() if name != "weak"]
    assert len(set(seen)) == len(seen)
    assert np.array_equal(videos["weak"][:21], videos["plain"])  # the same file up to there
    assert reports["both"]["inputs"] == {"video": str(long), "noise_scale": 0.3, "control": str(short)}
    assert reports["reference"]["inputs"] == {"reference": [str(picture)]} and reports["plain"]["inputs"] == {}
    assert [block["frames"] for block in reports["both"]["blocks"]] == [13, 12]


def test_the_built_in_model_follows_a_video(run, tmp_path):
    """Of a black and of a white video, with little noise, dark and bright pictures are made."""
    means = []
    for level in (0, 255):
        source = lossless(tmp_path / "in.mkv", [np.full((*TINY_SIZE, 3), level, np.uint8)] * 30)
        given = ["--video", source, "--noise-scale", "0.1", "--device", "cpu"]
        run("generate", "--prompt", "a", *given, "--out", tmp_path / f"{level}.mp4")
        frames = [shown.picture for shown in read_video(tmp_path / f"{level}.mp4")]
        assert len(frames) == 30
        means.append(np.mean(frames))
    assert means[1] - means[0] > 60
