"""What is downloaded is what the engine made last, whatever was shown of it."""

import io
import threading

import numpy as np
import pytest

av = pytest.importorskip("av")
pytest.importorskip("aiortc")

from longlive_optimized import clip as clip_module  # noqa: E402
from longlive_optimized.clip import Clip, Shot, enlarged  # noqa: E402
from longlive_optimized.demo.server import recording  # noqa: E402
from longlive_optimized.demo.server.recording import MOST_CLIPS, Recorder  # noqa: E402
from support.moving import gif_delays, webp_delays  # noqa: E402
from support.mp4 import durations, times  # noqa: E402

SMALL, LARGE = (32, 48), (192, 256)


def frames(first: int, count: int, size=SMALL) -> np.ndarray:
    """Frames as grey as their number, with a coloured corner of four pixels."""
    made = np.repeat(np.arange(first, first + count, dtype=np.uint8), 3 * size[0] * size[1]).reshape(count, *size, 3)
    made[:, :2, :2] = (200, 30, 10)
    return made


def record(recorder: Recorder, count: int, size=SMALL) -> None:
    """Blocks as an engine makes them, each awaited, so that none is skipped."""
    first = recorder._count
    for at in range(first, first + count, 12):
        recorder.add(frames(at, min(12, first + count - at), size))
        recorder._thread.submit(int).result()


def decode(data: bytes) -> tuple[list[float], list[np.ndarray]]:
    """Times and pictures of a file."""
    with av.open(io.BytesIO(data)) as video:
        shown = list(video.decode(video=0))
    return [frame.time for frame in shown], [frame.to_ndarray(format="rgb24") for frame in shown]


def levels(pictures: list[np.ndarray]) -> np.ndarray:
    return np.array([round(picture[4:, 4:].mean()) for picture in pictures])


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_last_seconds_in_order_at_the_models_rate(size):
    recorder = Recorder(seconds=8)
    record(recorder, 200, size)
    mp4 = recorder.clip(4).result()
    at, pictures = decode(mp4)
    assert len(pictures) in range(64, 80)
    assert np.abs(levels(pictures) - np.arange(200 - len(pictures), 200)).max() <= 2
    assert at == pytest.approx([i / 16 for i in range(len(at))], abs=1e-4)
    assert durations(mp4) == pytest.approx([1 / 16] * len(at), abs=1e-4)


def test_no_more_is_kept_than_asked_for():
    recorder = Recorder(seconds=4)
    record(recorder, 250)
    _, pictures = decode(recorder.clip(600).result())
    assert 64 <= len(pictures) < 80 and abs(levels(pictures)[-1] - 249) <= 2
    assert recorder._done[-1].end - recorder._done[0].first < 80


def test_what_is_kept_is_bounded_in_bytes_too(monkeypatch):
    recorder = Recorder(seconds=600)
    record(recorder, 64)
    monkeypatch.setattr(recording, "MOST_KEPT", 3 * max(len(kept.data) for kept in recorder._done))
    record(recorder, 160)
    assert sum(len(kept.data) for kept in recorder._done) <= recording.MOST_KEPT
    _, pictures = decode(recorder.clip(600).result())
    assert 16 < len(pictures) <= 64 and abs(levels(pictures)[-1] - 223) <= 2


def test_a_download_does_not_end_the_recording():
    recorder = Recorder(seconds=10)
    record(recorder, 30)
    assert len(decode(recorder.clip(10).result())[1]) == 30
    record(recorder, 30)
    assert len(decode(recorder.clip(10).result())[1]) == 60


def test_nothing_yet():
    for form in ("mp4", "gif", "webp"):
        assert Recorder(seconds=10).clip(10, form, 2).result() == b""


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_lagging_encoder_skips_frames_and_holds_nobody_up(size, monkeypatch):
    """The picture before stands for them, so that the world keeps its time."""
    monkeypatch.setattr(recording, "MOST_WAITING", 4 * frames(0, 12, size).nbytes)
    recorder, go_on = Recorder(seconds=60), threading.Event()
    waits = recorder._thread.submit(go_on.wait, 20)
    for at in range(0, 72, 12):
        recorder.add(frames(at, 12, size))
    assert recorder.skipped == 24 and not waits.done()
    go_on.set()
    recorder._thread.submit(int).result()
    record(recorder, 12, size)
    mp4 = recorder.clip(60).result()
    wanted = [i / 16 for i in (*range(48), *range(72, 84))]
    assert decode(mp4)[0] == pytest.approx(wanted, abs=1e-4) and times(mp4) == pytest.approx(wanted, abs=1e-4)
    assert sum(durations(mp4)) == pytest.approx(84 / 16, abs=1e-4)
    for form, read in (("gif", gif_delays), ("webp", webp_delays)):
        delays, _ = read(recorder.clip(60, form).result())
        assert sum(delays) == pytest.approx(84 / 16, abs=0.03) and max(delays) >= 24.9 / 16


def test_frames_that_cannot_be_encoded_do_not_end_the_recording(caplog):
    recorder = Recorder(seconds=10)
    recorder.add(np.zeros((12, 33, 47, 4), np.uint8))
    record(recorder, 12)
    assert "could not be recorded" in caplog.text
    assert len(decode(recorder.clip(10).result())[1]) == 12


@pytest.mark.parametrize("scale", [1, 3, 8])
def test_small_pictures_are_kept_exactly_and_enlarged_pixel_by_pixel(scale):
    """In WebP bit for bit; in GIF in 256 colours; in mp4 as H.264 has them."""
    noise = np.random.default_rng(0).integers(0, 256, (24, *SMALL, 3), dtype=np.uint8)
    recorder = Recorder(seconds=10)
    recorder.add(noise)
    delays, endless = webp_delays(data := recorder.clip(10, "webp", scale).result())
    pictures = decode_webp(data)
    assert np.array_equal(pictures, [enlarged(picture, scale) for picture in noise])
    assert endless and delays == pytest.approx([1 / 16] * 24, abs=0.0006) and sum(delays) == 1.5
    _, pictures = decode(recorder.clip(10, "mp4", scale).result())
    assert pictures[0].shape == (scale * 32, scale * 48, 3) and len(pictures) == 24


def decode_webp(data: bytes) -> list[np.ndarray]:
    """FFmpeg's own reader of WebP knows single pictures alone: each part is made one, and put over those before."""
    pictures, at = [], 12
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"ANMF":
            whole = b"WEBP" + data[at + 24 : at + 8 + size]
            x, y, width, height = (int.from_bytes(data[at + i : at + i + 3], "little") for i in (8, 11, 14, 17))
            _, (part,) = decode(b"RIFF" + len(whole).to_bytes(4, "little") + whole)
            picture = pictures[-1].copy() if pictures else part
            picture[2 * y : 2 * y + height + 1, 2 * x : 2 * x + width + 1] = part
            pictures.append(picture)
        at += 8 + size + size % 2
    return pictures


def test_a_gif_has_the_pictures_and_their_times():
    recorder = Recorder(seconds=10)
    record(recorder, 40)
    data = recorder.clip(10, "gif", 2).result()
    delays, endless = gif_delays(data)
    assert endless and len(delays) == 40 and {*delays} <= {0.06, 0.07} and sum(delays) == pytest.approx(2.5, abs=0.006)
    _, pictures = decode(data)
    assert pictures[0].shape == (64, 96, 3) and np.abs(levels(pictures) - np.arange(40)).max() <= 4
    corner = np.array([picture[:4, :4].reshape(-1, 3).mean(0) for picture in pictures])
    assert np.abs(corner - (200, 30, 10)).max() < 12


def test_large_pictures_in_every_form():
    recorder = Recorder(seconds=10)
    record(recorder, 20, LARGE)
    for form, scale in (("mp4", 2), ("gif", 1), ("webp", 1)):
        data = recorder.clip(10, form, scale).result()
        if form != "webp":
            _, pictures = decode(data)
            assert pictures[0].shape == (scale * 192, scale * 256, 3) and len(pictures) == 20, form
            assert np.abs(levels(pictures) - np.arange(20)).max() <= 4, form
        else:
            assert sum(webp_delays(data)[0]) == 1.25


def test_a_clip_is_the_same_file_each_time():
    """Whatever is being encoded beside it."""
    shots = [Shot(picture, i) for i, picture in enumerate(frames(0, 30, LARGE))]
    made = []
    for _ in range(2):
        for form in ("mp4", "gif", "webp"):
            out = io.BytesIO()
            Clip(lambda: iter(shots), *LARGE, 30, form, 2).write(out)
            made.append(out.getvalue())
    assert made[:3] == made[3:]


def test_what_would_be_too_large_is_named():
    recorder = Recorder(seconds=60)
    record(recorder, 250, LARGE)
    with pytest.raises(ValueError, match=r"seconds: gif of 1536x2048 may have at most 2.62, and 15"):
        recorder.clip(15, "gif", 8).result()
    with pytest.raises(ValueError, match="scale: 8 makes pictures of 7680x13312, and here at most 2 is possible"):
        Clip(lambda: [], 960, 1664, 10, "mp4", 8)
    assert clip_module.MOST_SCALE == 8


def test_so_many_clips_may_wait():
    recorder, go_on = Recorder(seconds=10), threading.Event()
    recorder._thread.submit(go_on.wait, 20)
    due = []
    while not recorder.busy:
        due.append(recorder.clip(1))
    assert len(due) == MOST_CLIPS
    go_on.set()
    assert [one.result() for one in due] == [b""] * MOST_CLIPS and not recorder.busy


def test_what_is_closed_takes_no_more_and_leaves_no_thread():
    recorder = Recorder(seconds=10)
    record(recorder, 24)
    recorder.clip(1, "webp").result()
    threads = recorder._thread._threads | recorder._clips._threads
    recorder.close()
    recorder.add(frames(24, 12))
    for thread in threads:
        thread.join(10)
    assert len(threads) == 2 and not any(thread.is_alive() for thread in threads)


def test_pictures_of_another_size_begin_it_anew():
    recorder = Recorder(seconds=10)
    record(recorder, 40)
    record(recorder, 5, LARGE)
    assert [picture.shape[:2] for picture in decode(recorder.clip(10).result())[1]] == [LARGE] * 5
