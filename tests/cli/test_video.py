"""Files have the right times to the last frame, and the colours that their tags say."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest

av = pytest.importorskip("av")

from longlive_optimized.cli.video import Mp4Writer  # noqa: E402
from longlive_optimized.h264 import BT601, BT709, colours  # noqa: E402
from longlive_optimized.video_time import TRAINED_FPS  # noqa: E402
from support.mp4 import colour, durations, times  # noqa: E402

COEFFICIENTS = {BT601: (0.299, 0.114), BT709: (0.2126, 0.0722)}  # of red and blue, from the recommendations


def patches(height: int, width: int) -> np.ndarray:
    """Patches of 32 pixels of random colours, RGB uint8 [H, W, 3]."""
    some = np.random.default_rng(0).integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8)
    return some.repeat(32, 0).repeat(32, 1)


def written(path, picture: np.ndarray, count: int, enlarge: int = 1) -> bytes:
    height, width = picture.shape[:2]
    with Mp4Writer(path, height, width, enlarge) as video:
        video.write(np.stack([picture] * count))
    return path.read_bytes()


ENCODE = """if True:
    import sys
    from pathlib import Path
    import numpy as np
    from longlive_optimized.cli.video import Mp4Writer

    pictures = np.random.default_rng(0).integers(0, 256, (24, 8, 12, 3), dtype=np.uint8)
    with Mp4Writer(Path(sys.argv[1]), 128, 192) as video:
        video.write(pictures.repeat(16, 1).repeat(16, 2))
"""


@pytest.mark.parametrize("filled", ["170", "255"])
def test_a_file_does_not_depend_on_what_lies_in_memory(tmp_path, filled):
    """glibc fills what it hands out with the byte of MALLOC_PERTURB_."""
    for name, byte in (("one", "1"), ("other", filled)):
        environment = os.environ | {"MALLOC_PERTURB_": byte}
        subprocess.run([sys.executable, "-P", "-c", ENCODE, tmp_path / f"{name}.mp4"], check=True, env=environment)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "other.mp4").read_bytes()


def recorded(path, picture: np.ndarray, count: int) -> bytes:
    pytest.importorskip("aiortc")
    from longlive_optimized.demo.server.recording import Recorder

    recorder = Recorder(seconds=10)
    recorder.add(np.repeat(picture[None], count, 0))
    return recorder.clip(10).result()


@pytest.mark.parametrize("count", [1, 2, 9, 21])
@pytest.mark.parametrize("make", [written, recorded])
def test_times_to_the_last_frame(make, count, tmp_path):
    mp4 = make(tmp_path / "a.mp4", patches(64, 96), count)
    with av.open(io.BytesIO(mp4)) as video:
        assert [frame.time for frame in video.decode(video=0)] == pytest.approx([i / TRAINED_FPS for i in range(count)])
    assert durations(mp4) == pytest.approx([1 / TRAINED_FPS] * count)
    assert times(mp4) == pytest.approx([i / TRAINED_FPS for i in range(count)])


@pytest.mark.parametrize("make", [written, recorded])
@pytest.mark.parametrize(
    ("size", "tag"), [((64, 96), BT601), ((480, 832), BT601), ((576, 1024), BT601), ((768, 1152), BT709)]
)
def test_colours_are_what_the_tags_say(make, size, tag, tmp_path):
    picture = patches(*size)
    mp4 = make(tmp_path / "a.mp4", picture, 1)
    assert colour(mp4) == (tag, tag, tag, False)
    with av.open(io.BytesIO(mp4)) as video:
        frame = next(video.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (tag, 1)
    red, blue = COEFFICIENTS[tag]
    luma = 16 + 219 / 255 * (picture @ [red, 1 - red - blue, blue])
    height, width = size
    got = frame.to_ndarray()[:height, :width]
    assert np.abs(got[16::32, 16::32] - luma[16::32, 16::32]).max() < 3
    other = COEFFICIENTS[BT601 + BT709 - tag]
    wrong = 16 + 219 / 255 * (picture @ [other[0], 1 - sum(other), other[1]])
    assert np.abs(got[16::32, 16::32] - wrong[16::32, 16::32]).max() > 10


def test_an_enlarged_file_is_hd(tmp_path):
    assert colour(written(tmp_path / "a.mp4", patches(64, 96), 2, enlarge=12))[:3] == (BT709,) * 3


@pytest.mark.parametrize(("size", "tag"), [((720, 1280), BT709), ((576, 1280), BT709), ((592, 336), BT709)])
def test_where_hd_begins(size, tag):
    assert colours(*size) == tag
