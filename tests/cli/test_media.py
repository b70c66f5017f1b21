"""Files of pictures and video against their pixels and times, and what is no such file."""

import base64
import io
import zlib
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av")

from longlive_optimized.media import (  # noqa: E402
    cover,
    decode_picture,
    read_picture,
    read_upright,
    read_video,
    video_seconds,
)
from support.clips import encoded, lossless, numbers, ramp, random_picture  # noqa: E402


def first(path, size=None):
    return next(read_video(path, size)).picture


def test_a_picture_and_a_video_are_read_bit_for_bit(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path = lossless(tmp_path / "a.png", [noise])
    assert all(np.array_equal(picture, noise) for picture in (read_picture(path), read_upright(path), first(path)))
    assert video_seconds(path) is None
    video = lossless(tmp_path / "a.mkv", ramp(10), rate=10)
    shown = [*read_video(video)]
    assert numbers(frame.picture for frame in shown) == [*range(10)]
    assert [round(frame.second, 2) for frame in shown] == [round(0.1 * n, 2) for n in range(10)]
    assert video_seconds(video) == pytest.approx(1.0, abs=0.01) and numbers([read_picture(video)]) == [0]


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
    assert read_picture(path).shape == picture.shape
    for shown in (read_upright(path), first(path), first(path, upright.shape[:2])):
        assert shown.shape == upright.shape and np.abs(shown.astype(int) - upright).mean() < 8


def test_a_matrix_of_zeros_turns_nothing(tmp_path):
    picture = random_picture(32, 48)
    path = lossless(tmp_path / "a.mp4", [picture] * 2, codec="libx264rgb", pix_fmt="rgb24")
    data = path.read_bytes()
    at = data.index(b"tkhd") + 44
    path.write_bytes(data[:at] + bytes(36) + data[at + 36 :])
    assert read_upright(path).shape == first(path).shape == picture.shape


def anamorphic(path, picture, aspect):
    """An mp4 of one picture whose pixels are ``aspect`` times as wide as high."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=16, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "rgb24"
        stream.codec_context.sample_aspect_ratio = aspect
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("aspect", "lying"), [(Fraction(2), (64, 192)), (Fraction(1, 2), (64, 48))])
def test_pixels_that_are_no_squares_become_squares(tmp_path, aspect, lying):
    """As in DV and HDV, whose pictures are broader or narrower than their numbers of pixels."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, 48:] = 255
    path = anamorphic(tmp_path / "a.mp4", picture, aspect)
    wanted = np.zeros((*lying, 3), int)
    wanted[:, lying[1] // 2 :] = 255
    assert read_picture(path).shape == picture.shape  # as scope reads it
    for shown in (first(path), first(path, lying)):
        assert shown.shape == wanted.shape and np.abs(shown - wanted).mean() < 4
    middle = lying[1] // 2
    cut = first(path, (64, 32))  # what protrudes on both sides is cut off
    assert np.abs(cut - wanted[:, middle - 16 : middle + 16]).mean() < 12
    with pytest.raises(ValueError, match="1 to 8, got 960x64"):
        first(anamorphic(tmp_path / "b.mp4", picture, Fraction(10)), lying)


# 128x64 in two tiles of 64x64, written by libheif
TILED = (
    "eNpdkb9PwlAQx+/1Fe2AQgImRJGocdA4EQbZaJTFRP8CF2p/yCUtvJTGwIYadydnB2d1djNxMHE2/g+6OAkDpt5rCyovvd69z3177/UO"
    "AIpO0BNNG02g5aFTlrGHhgPABp4dGBCv1abl+kkMAs0AplYWLUNCBn3Qye+j2zYZBXUdOFGW6MZeAyUOlKUJK5AyZpUJy5EdILacaCfz"
    "C7SxlaTWsY8W/IFMlm2emOX/kP/CeYGBN7nKAIUvyL+gMNvk89gRdnJ0n0z+Spc+3WVcyi6jROkTRt/DIUCGN6hKQWdpFoZSwKWCy6f0"
    "oOgGJbd2GJvKXK+cpq7e9zZvW8piWpPoWb40/Yj0s3X26N+vyXNzZtv1W6bbJTwHM/2p6+mJZQV2MWqOplE1WEfhjcdGnefsgoOinnE1"
    "BTx2NHb0bWc8OQu946hxStTfihdPMr/B7tTCqFf9CL/Oax398EYNqsQzMV9+q4WvT9vFxg8nQWCd"
)


def test_a_picture_in_tiles_is_refused(tmp_path):
    """FFmpeg's library gives the tiles, each as a stream, and PyAV not how they lie."""
    path = tmp_path / "a.heic"
    path.write_bytes(zlib.decompress(base64.b64decode(TILED)))
    for read in (read_picture, read_upright, first, video_seconds):
        with pytest.raises(ValueError, match=r"a\.heic holds a picture in tiles, .* save it as JPEG or PNG"):
            read(path)


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
    read = read_upright(tmp_path / "a.png").astype(int)
    assert (read[:32, :48] == 255).all() and np.array_equal(read[32:], picture[32:, :, :3])
    half = 255 + (picture[:32, 48:, :3].astype(int) - 255) * 128 / 255
    assert np.abs(read[:32, 48:] - half).max() <= 1
    assert np.array_equal(cover(decode_picture(data, 10_000), 64, 96), read)
    assert np.array_equal(first(tmp_path / "a.png", (64, 96)), read)
    assert np.array_equal(read_picture(tmp_path / "a.png"), picture[..., :3])  # as scope reads it


@pytest.mark.parametrize("width", [2, 18, 34, 40, 66, 340])
def test_lossy_webp_with_transparency_is_whole(tmp_path, width):
    """Up to the last column, at widths of which FFmpeg leaves columns unwritten on its straight way to RGBA."""
    picture = np.full((32, width, 4), (200, 60, 30, 255), np.uint8)
    picture[:8, :, 3] = 0
    (tmp_path / "a.webp").write_bytes(encoded(picture, "libwebp", "yuva420p"))
    for read in (read_upright(tmp_path / "a.webp"), first(tmp_path / "a.webp")):
        assert (read[:7] == 255).all() and np.abs(read[10:].astype(int) - (200, 60, 30)).max() < 16


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
        (text, ValueError, "{} cannot be read as a picture or video"),
        (prose, ValueError, "{} holds no picture"),
        (sound, ValueError, "{} holds no picture"),
        (tmp_path, FileNotFoundError, "there is no file {}"),
        (tmp_path / "none.mp4", FileNotFoundError, "there is no file {}"),
    ]:
        for read in (read_picture, read_upright, first, video_seconds):
            with pytest.raises(error, match=words.format(path)):
                read(path)


def test_a_file_that_ends_early_gives_what_it_has(tmp_path):
    whole = lossless(tmp_path / "a.mkv", [random_picture(32, 48, i) for i in range(20)])
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    assert 5 < 16 * video_seconds(whole) < 15 and 5 < len([*read_video(whole)]) < 15
