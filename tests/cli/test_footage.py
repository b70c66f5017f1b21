"""Files of video as pictures at the model's rate, against times worked out by hand; pictures against their pixels."""

import io
import itertools
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av")

from longlive_optimized.footage import Footage, cover, decode_picture, read_picture  # noqa: E402
from longlive_optimized.video_time import TRAINED_FPS  # noqa: E402
from support.footage import encoded, lossless, numbers, ramp, random_picture  # noqa: E402


@pytest.mark.parametrize("rate", [1, 8, 10, 16, 24, 30, 50, Fraction(30000, 1001)])
@pytest.mark.parametrize("suffix", ["mkv", "mov"])  # times in milliseconds, and exact ones
def test_each_instant_shows_the_frame_of_then(tmp_path, rate, suffix):
    count = max(2, int(2 * rate))
    footage = Footage(lossless(tmp_path / f"a.{suffix}", ramp(count), rate), 32, 48)
    length = round(count / rate * TRAINED_FPS)
    assert footage.length == length and not footage.still
    rounded = Fraction(2, 1000)  # seconds that a container's times may be off
    wanted = [min(int((Fraction(k, TRAINED_FPS) + rounded) * rate), count - 1) for k in range(length)]
    assert numbers(footage.frames(0, length)) == wanted


def test_frames_that_come_unevenly(tmp_path):
    path = lossless(tmp_path / "a.mkv", ramp(4), times=[0, 100, 500, 600])
    footage = Footage(path, 32, 48)  # the last one lasts as long as most do
    assert footage.length == round(0.7 * TRAINED_FPS)
    wanted = [sum(t <= 1e3 * k / TRAINED_FPS for t in (0, 100, 500, 600)) - 1 for k in range(footage.length)]
    assert numbers(footage.frames(0, footage.length)) == wanted


def test_behind_the_end_it_begins_again_and_windows_may_overlap(tmp_path):
    footage = Footage(lossless(tmp_path / "a.mkv", ramp(5)), 32, 48)
    endless = [*itertools.islice(itertools.cycle(range(5)), 60)]
    assert numbers(footage.frames(0, 13)) == endless[:13]
    assert numbers(footage.frames(9, 12)) == endless[9:21]
    assert numbers(footage.frames(9, 12)) == endless[9:21]
    assert numbers(footage.frames(40, 7)) == endless[40:47]


def test_a_still_picture_stays(tmp_path):
    picture = random_picture(32, 48)
    footage = Footage(lossless(tmp_path / "a.png", [picture]), 32, 48)
    assert footage.still and footage.length == 1
    assert all(np.array_equal(shown, picture) for shown in footage.frames(3, 14))


@pytest.mark.parametrize(("size", "crop"), [((64, 48), np.s_[16:48, :]), ((32, 96), np.s_[:, 24:72])])
def test_what_protrudes_is_cut_off_on_both_sides(size, crop):
    picture = random_picture(*size)
    assert np.array_equal(cover(av.VideoFrame.from_ndarray(picture, format="rgb24"), 32, 48), picture[crop])


def test_scaled_down_it_is_the_mean_and_up_it_is_smooth():
    small = np.random.default_rng(1).integers(60, 196, (32, 48, 3), dtype=np.uint8)
    large = av.VideoFrame.from_ndarray(small.repeat(4, 0).repeat(4, 1), format="rgb24")
    assert np.abs(cover(large, 32, 48).astype(int) - small).max() <= 2
    slope = np.tile(np.arange(0, 240, 5, dtype=np.uint8)[None, :, None], (32, 1, 3))
    wide = cover(av.VideoFrame.from_ndarray(slope, format="rgb24"), 64, 96).astype(int)
    assert np.abs(np.diff(wide[:, 8:-8], axis=1)).max() <= 4


def test_a_strip_is_refused():
    with pytest.raises(ValueError, match="1 to 8, got 800x16"):
        cover(av.VideoFrame.from_ndarray(np.zeros((16, 800, 3), np.uint8), format="rgb24"), 32, 48)


def turned(path, clockwise):
    """The mp4 with the note that it is to be shown turned by so many quarters."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][clockwise]
    matrix = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    data[at : at + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in matrix)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("clockwise", range(4))
def test_a_phones_videos_stand_upright(tmp_path, clockwise):
    picture = random_picture(64, 96)
    path = lossless(tmp_path / "a.mp4", [picture] * 2, codec="libx264rgb", pix_fmt="rgb24")
    upright = np.rot90(picture, -clockwise)
    path = turned(path, clockwise)
    assert np.abs(read_picture(path).astype(int) - upright).mean() < 8
    height, width = upright.shape[:2]
    shown = Footage(path, height, width).frames(0, 1)[0]
    assert shown.shape == upright.shape and np.abs(shown.astype(int) - upright).mean() < 8


def test_pictures_from_bytes(tmp_path):
    picture = random_picture(64, 96)
    data = encoded(picture, "png", "rgb24")
    assert np.array_equal(cover(decode_picture(data, 10_000), 64, 96), picture)
    lossy = encoded(picture, "mjpeg", "yuvj444p")
    assert np.abs(cover(decode_picture(lossy, 10_000), 64, 96).astype(int) - picture).mean() < 12
    with pytest.raises(ValueError, match="damaged, or has more than 5000 pixels"):
        decode_picture(data, 5000)
    with pytest.raises(ValueError, match="damaged"):
        decode_picture(data[:100], 10_000)
    for other in (b"", b"GIF89a" + data, b"RIFF0000WAVE", io.BytesIO(b"x" * 100).read()):
        with pytest.raises(ValueError, match="PNG, JPEG or WebP"):
            decode_picture(other, 10_000)


def test_what_is_transparent_is_white(tmp_path):
    picture = np.dstack([random_picture(64, 96), np.zeros((64, 96), np.uint8)])
    picture[32:, :, 3], picture[:32, 48:, 3] = 255, 128
    data = encoded(picture, "png", "rgba")
    (tmp_path / "a.png").write_bytes(data)
    read = read_picture(tmp_path / "a.png").astype(int)
    assert (read[:32, :48] == 255).all() and np.array_equal(read[32:], picture[32:, :, :3])
    half = 255 + (picture[:32, 48:, :3].astype(int) - 255) * 128 / 255
    assert np.abs(read[:32, 48:] - half).max() <= 1
    assert np.array_equal(cover(decode_picture(data, 10_000), 64, 96), read)
    assert np.array_equal(Footage(tmp_path / "a.png", 64, 96).frames(0, 1)[0], read)


def test_what_is_no_video_is_named(tmp_path):
    text, prose, sound = tmp_path / "a.mp4", tmp_path / "a.txt", tmp_path / "a.wav"
    for path in (text, prose):
        path.write_text("no video" * 100)
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    for path, error, words in [
        (text, ValueError, "is no picture or video that FFmpeg reads"),
        (prose, ValueError, "holds no video"),
        (sound, ValueError, "holds no video"),
        (tmp_path, OSError, "cannot be read: Is a directory"),
        (tmp_path / "none.mp4", OSError, "cannot be read: No such file"),
    ]:
        for read in (read_picture, lambda path: Footage(path, 32, 48)):
            with pytest.raises(error, match=f"{path}.*{words}"):
                read(path)


def test_a_file_that_ends_early_gives_what_it_has_again_and_again(tmp_path):
    whole = lossless(tmp_path / "a.mkv", [random_picture(32, 48, i) for i in range(20)])
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    footage = Footage(whole, 32, 48)
    assert 5 < footage.length < 15
    assert len(footage.frames(0, 40)) == 40
