"""What is downloaded is what was shown last."""

import io
import threading

import numpy as np
import pytest

av = pytest.importorskip("av")
pytest.importorskip("aiortc")

from longlive_optimized.demo.server.recording import LAG, Recorder  # noqa: E402
from support.mp4 import durations  # noqa: E402


def picture(i: int) -> np.ndarray:
    return np.full((32, 48, 3), i, np.uint8)


def decode(mp4: bytes) -> tuple[list[float], list[int]]:
    """Times and grey levels of an mp4's frames."""
    with av.open(io.BytesIO(mp4)) as video:
        frames = list(video.decode(video=0))
    return [frame.time for frame in frames], [round(frame.to_ndarray(format="rgb24").mean()) for frame in frames]


def record(recorder: Recorder, count: int, fps: float = 25) -> None:
    for i in range(count):
        recorder._thread.submit(recorder._add, picture(i), 1 / fps).result()


def test_the_last_seconds_in_order():
    recorder = Recorder(seconds=4)
    record(recorder, 200)
    times, levels = decode(recorder.mp4(2).result())
    assert np.abs(np.array(levels) - np.arange(150, 200)).max() <= 2
    assert times == pytest.approx([i / 25 for i in range(50)], abs=1e-4)


def test_no_more_is_kept_than_asked_for():
    recorder = Recorder(seconds=4)
    record(recorder, 250)
    times, levels = decode(recorder.mp4(600).result())
    assert 100 <= len(times) <= 125 and abs(levels[-1] - 249) <= 2
    assert sum(seconds for seconds, _ in recorder._done) <= 5.1


def test_a_download_does_not_end_the_recording():
    recorder = Recorder(seconds=10)
    record(recorder, 30)
    assert len(decode(recorder.mp4(10).result())[0]) == 30
    record(recorder, 30)
    assert len(decode(recorder.mp4(10).result())[0]) == 60


def test_changing_rates_are_kept():
    recorder = Recorder(seconds=10)
    record(recorder, 20, fps=40)
    record(recorder, 20, fps=10)
    times, _ = decode(recorder.mp4(10).result())
    assert np.diff(times) == pytest.approx([1 / 40] * 20 + [1 / 10] * 19, abs=1e-4)


def test_nothing_yet():
    assert Recorder(seconds=10).mp4(10).result() == b""


def test_a_lagging_encoder_skips_frames_and_holds_nobody_up():
    recorder, go_on = Recorder(seconds=10), threading.Event()
    recorder._thread.submit(go_on.wait, 20)
    for i in range(LAG + 20):
        recorder.add(picture(i), 0.04)
    assert recorder.skipped == 20
    go_on.set()
    assert len(decode(recorder.mp4(10).result())[0]) == LAG
    recorder.add(picture(9), 0.04)
    times, _ = decode(recorder.mp4(10).result())
    assert times[-2:] == pytest.approx([(LAG - 1) * 0.04, (LAG + 20) * 0.04], abs=1e-4)


@pytest.mark.parametrize("fps", [16, 25, 29.97, 40])
def test_times_to_the_last_frame(fps):
    """By two readers: PyAV, and the file's own table of durations."""
    recorder = Recorder(seconds=10)
    record(recorder, 70, fps)
    mp4 = recorder.mp4(10).result()
    times, _ = decode(mp4)
    assert times == pytest.approx([i / fps for i in range(70)], abs=1e-4)
    assert durations(mp4) == pytest.approx([1 / fps] * 70, abs=1e-4) and sum(durations(mp4)) == pytest.approx(70 / fps)


def test_pictures_of_another_size_begin_it_anew():
    recorder = Recorder(seconds=10)
    record(recorder, 40)
    for i in range(5):
        recorder._thread.submit(recorder._add, np.full((48, 32, 3), 100 + i, np.uint8), 1 / 25).result()
    data = recorder.mp4(10).result()
    with av.open(io.BytesIO(data)) as video:
        assert [(frame.height, frame.width) for frame in video.decode(video=0)] == [(48, 32)] * 5
