"""What ``generate`` starts from and follows: files read in time, block by block, and mistakes told by their options."""

import re
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from longlive_optimized import LongLiveEngine
from longlive_optimized.cli.inputs import Clip, open_inputs
from longlive_optimized.media import read_picture, read_video, video_seconds
from longlive_optimized.weights.random_checkpoint import make_checkpoint

NOTHING = dict.fromkeys(("video", "control", "mask", "reference", "first_frame", "last_frame"))
NOTHING |= {"noise_scale": 0.7, "control_scale": 1.0}


def write_video(path, levels, rate=16, times=None, codec="ffv1"):
    """A lossless video of even frames 32x48, of these levels of grey."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "bgr0"
        stream.time_base = Fraction(1, 1000)
        for number, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), level, np.uint8), "rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = round(1000 * (number / rate if times is None else times[number]))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def write_picture(path, picture):
    with av.open(str(path), "w", format="image2") as file:
        stream = file.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "rgb24"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode())
    return path


@pytest.fixture
def picture(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    return write_picture(tmp_path / "picture.png", noise), noise


def levels(frames):
    return [int(frame[0, 0, 0]) for frame in frames]


def test_a_picture_and_a_video_are_read_bit_for_bit(tmp_path, picture):
    path, noise = picture
    assert np.array_equal(read_picture(path), noise) and video_seconds(path) is None
    video = write_video(tmp_path / "a.mkv", range(10), rate=10)
    shown = [*read_video(video)]
    assert levels(frame.picture for frame in shown) == [*range(10)]
    assert [round(frame.second, 2) for frame in shown] == [round(0.1 * n, 2) for n in range(10)]
    assert video_seconds(video) == pytest.approx(1.0, abs=0.01) and levels([read_picture(video)]) == [0]


@pytest.mark.parametrize(
    ("rate", "wanted"), [(16, [*range(12)]), (32, [*range(0, 24, 2)]), (8, [n // 2 for n in range(12)])]
)
def test_a_clip_runs_at_sixteen_frames_a_second(tmp_path, rate, wanted):
    clip = Clip("--video", write_video(tmp_path / "a.mkv", range(24), rate))
    assert levels(clip.frames(0, 12)) == wanted


def test_a_clip_follows_its_times_overlaps_and_stands_still_at_its_end(tmp_path):
    clip = Clip("--control", write_video(tmp_path / "a.mkv", range(5), times=[0, 0.125, 0.25, 1.0, 1.0625]))
    assert levels(clip.frames(0, 13)) == [0, 0, 1, 1, *[2] * 9]
    assert levels(clip.frames(9, 12)) == [*[2] * 7, 3, *[4] * 4]
    assert levels(clip.frames(21, 12)) == [4] * 12


def test_a_picture_as_a_clip_stands_still(picture):
    clip = Clip("--mask", picture[0])
    assert clip.seconds is None
    assert all(np.array_equal(frame, picture[1]) for start in (0, 13) for frame in clip.frames(start, 12))


def test_each_block_is_given_its_time(tmp_path, picture):
    video, control = (write_video(tmp_path / f"{name}.mkv", range(40)) for name in ("video", "control"))
    pictures = {"reference": [picture[0]], "first_frame": picture[0], "last_frame": picture[0], "mask": picture[0]}
    given = open_inputs(**NOTHING | pictures | {"control": control, "control_scale": 0.5})
    assert given.steers and given.first_frames == 9 and given.length == pytest.approx(2.5, abs=0.01)
    first, second, last = (given.fields(*at)["control"] for at in ((0, False), (9, False), (21, True)))
    assert levels(first.frames) == [*range(13)] and levels(second.frames) == [*range(9, 21)]
    assert levels(last.frames) == [*range(21, 33)] and first.scale == 0.5 and len(second.masks) == 12
    assert [c.references is not None for c in (first, second, last)] == [True, False, False]
    assert [c.first_frame is not None for c in (first, second, last)] == [True, False, False]
    assert [c.last_frame is not None for c in (first, second, last)] == [False, False, True]

    alone = open_inputs(**NOTHING | {"reference": [picture[0]]})
    assert alone.length is None and all(alone.fields(start, False)["control"].references for start in (0, 9))

    started = open_inputs(**NOTHING | {"video": video, "noise_scale": 0.4})
    fields = [started.fields(start, False) for start in (0, 13)]
    assert [levels(f["video"]) for f in fields] == [[*range(13)], [*range(13, 25)]]
    assert fields[0]["noise_scale"] == 0.4 and fields[0]["control"] is None and not started.steers
    assert started.first_frames == 13

    nothing = open_inputs(**NOTHING)
    assert nothing.fields(0, True) == {"control": None} and not nothing.steers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--video", "nowhere.mp4"], r"--video: there is no file nowhere\.mp4"),
        (["--control", "text.mp4"], r"--control: text\.mp4 cannot be read as a picture or video"),
        (["--first-frame", "sound.wav"], r"--first-frame: sound\.wav holds no picture"),
        (["--reference", "."], "--reference: there is no file"),
        (["--mask", "picture.png"], "--mask needs --control"),
        (["--video", "picture.png", "--noise-scale", "0"], "--noise-scale must lie in 0.1 to 1"),
        (["--last-frame", "picture.png", "--control-scale", "3"], "--control-scale must lie in 0 to 2"),
    ],
)
def test_mistakes_are_told_by_their_options_before_any_work(run, tmp_path, picture, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("no video " * 20)
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
    write_video(tmp_path / "a.mkv", range(0, 240, 8))
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
    assert isinstance(asked[0].prompt, str) and torch.is_tensor(asked[0].video[0] if asked[0].video else torch.zeros(1))
