"""A video in one call and frames in one loop."""

import base64
import io
import re
import subprocess
import sys

import av
import numpy as np
import pytest

import longlive_optimized
from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig, Story, Video
from longlive_optimized.demo.scope_integration import ScopeOptimizationConfig

SIZE = {"height": 32, "width": 48}
CIRCLE, SQUARE = "a red circle moves left over a green field", "a blue square rests on a black night"


@pytest.fixture(scope="module")
def engine():
    return LongLiveEngine("tiny", OptimizationConfig(**SIZE), "cpu")


def by_hand(engine, *prompts, **settings):
    """The engine's blocks, one for each prompt."""
    stream = engine.open_stream(**settings)
    return np.concatenate([engine.generate_block(BlockRequest(prompt), stream).numpy() for prompt in prompts])


def test_a_video_is_the_engines(engine):
    video = longlive_optimized.generate(CIRCLE, seconds=2, model=engine, seed=3)
    assert video.frames.dtype == np.uint8 and video.frames.shape == (32, 32, 48, 3)
    assert np.array_equal(video.frames, by_hand(engine, CIRCLE, CIRCLE, CIRCLE, seed=3)[:32])
    assert (len(video), video.fps, video.seconds) == (32, 16, 2.0)
    assert repr(video) == "<Video of 32 frames, 32x48, 2 s>"
    again = longlive_optimized.generate(video.story, model=engine)
    assert np.array_equal(again.frames, video.frames) and again.story == video.story
    assert not engine.closed and not [each for each in engine._streams if not each.closed]


def test_a_video_of_a_model_that_is_loaded_for_it():
    video = longlive_optimized.generate([(CIRCLE, 1.0), (SQUARE, 0.5)], 0.5, preset="ultra", device="cpu", **SIZE)
    assert video.frames.shape == (8, 32, 48, 3) and video.story.preset == "ultra" and video.story.model == "tiny"
    assert np.array_equal(longlive_optimized.generate(video.story, device="cpu").frames, video.frames)


def test_a_story_with_changes(engine):
    prompts = [{"block": 0, "prompt": CIRCLE}, {"block": 2, "prompt": SQUARE}]
    story = Story.read({"version": 1, "blocks": 4, "seed": 7, **SIZE, "prompts": prompts})
    wanted = by_hand(engine, CIRCLE, CIRCLE, SQUARE, SQUARE, seed=7)
    assert np.array_equal(longlive_optimized.generate(story, model=engine).frames, wanted)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"prompt": " "}, ValueError, "prompt must hold some text"),
        ({"prompt": 3}, TypeError, "prompt must be a text or a list"),
        ({"seconds": 0}, ValueError, "seconds must be greater than 0, got 0"),
        ({"seconds": float("nan")}, ValueError, "seconds must be"),
        ({"preset": "fast"}, ValueError, "preset must be one of"),
        ({"seed": -1}, ValueError, "seed must be greater than or equal to 0"),
        ({"height": 100}, ValueError, "height must be a multiple of 16"),
        ({"colour": "red"}, ValueError, "colour is no field"),
        ({"local_attn_size": 65}, ValueError, "local_attn_size must be less than or equal to 64"),
        ({"model": "/no/such"}, FileNotFoundError, "/no/such"),
        ({"device": "tpu"}, ValueError, "device must be cuda, cuda:N or cpu"),
    ],
)
def test_mistakes_of_generate_are_named_before_any_work(monkeypatch, how, error, message):
    monkeypatch.setattr("longlive_optimized.engine.engine.load_generator", lambda *args, **more: 1 / 0)
    with pytest.raises(error, match=message):
        longlive_optimized.generate(**{"prompt": CIRCLE, **how})


def test_mistakes_beside_an_engine_and_a_story(engine):
    story = Story.read({"version": 1, "blocks": 1, **SIZE, "prompts": [{"block": 0, "prompt": CIRCLE}]})
    for how, message in [
        ({"seconds": 3}, "seconds must not be given beside a story"),
        ({"seed": 3, "preset": "turbo"}, "preset, seed must not be given beside a story"),
        ({"device": "cpu"}, "device must be none beside an engine"),
    ]:
        with pytest.raises(ValueError, match=message):
            longlive_optimized.generate(story, model=engine, **how)
    with pytest.raises(ValueError, match="memory_limit_gib must be the engine's"):
        longlive_optimized.generate(CIRCLE, model=engine, memory_limit_gib=3)
    with pytest.raises(ValueError, match="must have the engine's vae_type"):
        longlive_optimized.stream(CIRCLE, model=engine, vae_type="tae")
    with pytest.raises(ValueError, match="story must have the stream's vae_type, 'wan', got 'tae'"):
        longlive_optimized.generate(CIRCLE, model=engine, vae_type="tae")
    webcam = story.as_dict() | {"unrecorded": [{"block": 0, "what": "video input"}]}
    with pytest.raises(ValueError, match="story cannot be replayed: from block 0 on"):
        longlive_optimized.generate(Story.read(webcam), model=engine)


def test_a_stream_goes_on_and_changes(engine):
    frames = []
    with longlive_optimized.stream(CIRCLE, model=engine, seed=5) as stream:
        assert iter(stream) is stream and stream.prompt == CIRCLE
        for frame in stream:
            frames.append(frame)
            if len(frames) == 5:
                stream.prompt = SQUARE
            if len(frames) == 33:
                break
        assert stream.prompt == SQUARE
        story = stream.story
        stream.send([(CIRCLE, 1.0), (SQUARE, 1.0)], transition_blocks=2)
        assert stream.prompt == ((CIRCLE, 1.0), (SQUARE, 1.0))
        with pytest.raises(ValueError, match="prompt must hold some text"):
            stream.prompt = ""
    assert frames[0].shape == (32, 48, 3) and frames[0].dtype == np.uint8
    wanted = by_hand(engine, CIRCLE, SQUARE, SQUARE, seed=5)
    assert np.array_equal(np.stack(frames), wanted)
    assert np.array_equal(longlive_optimized.generate(story, model=engine).frames, wanted)
    with pytest.raises(RuntimeError, match="this FrameStream is closed"):
        next(stream)
    with pytest.raises(RuntimeError, match="this FrameStream is closed"):
        stream.prompt = CIRCLE
    stream.close()
    assert not engine.closed


def test_a_stream_of_a_model_that_is_loaded_for_it():
    stream = longlive_optimized.stream(CIRCLE, preset="ultra", device="cpu", **SIZE)
    assert next(stream).shape == (32, 48, 3) and stream.pipeline.preset == "ultra"
    engine = stream.pipeline.engine
    stream.close()
    assert engine.closed
    with pytest.raises(ValueError, match="prompt must hold some text"):
        longlive_optimized.stream(" ")
    with pytest.raises(ValueError, match="overlay_colour is no field of ScopeOptimizationConfig"):
        longlive_optimized.stream(CIRCLE, overlay_colour="red")


def ramp(count=8):
    return np.stack([np.full((32, 48, 3), 20 * i + 40, np.uint8) for i in range(count)])


def read(data):
    with av.open(io.BytesIO(data)) as file:
        frames = [*file.decode(video=0)]
    return [frame.time for frame in frames], np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def webp_times(data):
    """Milliseconds of each frame of an animated WebP (its container specification, "ANMF"), and its size."""
    at, times = 12, []
    while at < len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"ANMF":
            times.append(int.from_bytes(data[at + 8 + 12 : at + 8 + 15], "little"))
        if name == b"VP8X":
            width, height = (1 + int.from_bytes(data[at + i : at + i + 3], "little") for i in (12, 15))
        at += 8 + length + length % 2
    return times, (height, width)


@pytest.mark.parametrize("fps", [None, 8, 24])
@pytest.mark.parametrize("form", ["mp4", "gif"])
def test_a_file_has_the_frames(tmp_path, form, fps):
    video = Video(ramp())
    path = video.save(tmp_path / f"a.{form.upper()}", fps=fps, scale=2)
    times, frames = read(path.read_bytes())
    assert frames.shape == (8, 64, 96, 3)
    assert np.abs(frames.mean((1, 2, 3)) - ramp().mean((1, 2, 3))).max() < 4
    assert times == pytest.approx([i / (fps or 16) for i in range(8)], abs=6e-3)


def test_a_webp_has_the_frames(tmp_path):
    data = Video(ramp()).save(str(tmp_path / "a.webp"), fps=10, scale=3).read_bytes()
    times, size = webp_times(data)
    assert size == (96, 144) and times == [100] * 8 and data[8:12] == b"WEBP"


@pytest.mark.parametrize(
    ("path", "how", "message"),
    [
        ("a.avi", {}, r"path must end in .mp4, .gif or .webp, got .*a\.avi"),
        ("a", {}, "path must end in"),
        ("a.mp4", {"fps": 0}, "fps must be a whole number in 1..60, got 0"),
        ("a.mp4", {"fps": 12.5}, "fps must be a whole number"),
        ("a.gif", {"scale": 9}, "scale must be a whole number in 1..8, got 9"),
    ],
)
def test_a_file_that_cannot_be_is_named_and_none_is_left(tmp_path, path, how, message):
    with pytest.raises(ValueError, match=message):
        Video(ramp()).save(tmp_path / path, **how)
    assert not [*tmp_path.iterdir()]


def test_a_notebook_shows_it():
    story = Story.read(
        {"version": 1, "seconds": 0.5, "prompts": [{"block": 0, "prompt": '"><script>alert(1)</script>'}]}
    )
    page = Video(ramp(), story)._repr_html_()
    assert page.startswith("<video ") and page.endswith("</video>") and "<script" not in page
    assert 'width="480"' in page and "&quot;&gt;&lt;script&gt;" in page
    source = re.search(r'src="data:video/mp4;base64,([^"]+)"', page)[1]
    times, frames = read(base64.b64decode(source))
    assert len(times) == 8 and frames.shape[1:] == (256, 384, 3)
    assert "prompts" not in Video(np.zeros((2, 480, 832, 3), np.uint8))._repr_html_()


def test_the_package_itself_stays_light():
    code = (
        "import sys, longlive_optimized; print(*(m for m in ('torch', 'numpy', 'pydantic', 'av') if m in sys.modules))"
    )
    code += "; assert {'generate', 'stream', 'Video', 'Story'} <= {*dir(longlive_optimized)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_config_says_what_a_stream_is_made_with():
    """Nothing holds a prompt back, and no overlay is drawn."""
    with longlive_optimized.stream(CIRCLE, device="cpu", **SIZE) as stream:
        config = stream.pipeline.config
        assert (config.prompt_debounce_ms, config.enable_latency_overlay) == (0, False)
        assert config == ScopeOptimizationConfig.preset_balanced(
            **SIZE, prompt_debounce_ms=0, enable_latency_overlay=False
        )
