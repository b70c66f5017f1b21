"""Pictures between frames: when they are due, and what they show."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlive_optimized.demo.interpolation import Tweens, blend

GREY = np.zeros((2, 4, 3), np.uint8)


def video(intervals: list[float], fps: float, scenes: list[int] | None = None, late: dict[int, float] | None = None):
    """The pictures of a video whose frames are as grey as their number, one after the other, each so long."""
    tweens, due, shown = Tweens(), 10.0, []
    for number, interval in enumerate(intervals):
        due += (late or {}).get(number, 0.0)
        scene = scenes[number] if scenes else 0
        shown.append((due, interval, tweens.next(GREY + number, scene, due, interval, fps)))
        due += interval
    return shown


def grey(tween) -> float:
    """What a picture shows, exactly."""
    return (1 - tween.weight) * float(tween.before[0, 0, 0]) + tween.weight * float(tween.after[0, 0, 0])


@given(st.floats(4, 64), st.integers(24, 60), st.integers(2, 60))
def test_pictures_are_evenly_timed_and_one_frame_late(rate, fps, count):
    """What is shown at a time is the frame number that was due one interval before, at every rate of both."""
    tweens = [tween for _, _, some in video([1 / rate] * count, fps) for tween in some]
    gaps = [b.at - a.at for a, b in itertools.pairwise(tweens)]
    assert gaps == pytest.approx([1 / fps] * len(gaps), abs=2e-6)
    assert len(tweens) == pytest.approx(count / rate * fps, abs=1.001)
    for tween in tweens:
        assert 0 <= tween.weight <= 1
        assert grey(tween) == pytest.approx(max(0.0, (tween.at - 10) * rate - 1), abs=1e-4 * count)


@given(st.lists(st.floats(1 / 64, 1.0), min_size=2, max_size=20), st.integers(24, 60))
def test_each_picture_is_between_its_two_frames(intervals, fps):
    for number, (due, interval, some) in enumerate(video(intervals, fps)):
        for tween in some:
            assert due - 1e-6 <= tween.at < due + interval
            assert {int(tween.before[0, 0, 0]), int(tween.after[0, 0, 0])} <= {max(0, number - 1), number}


def test_a_late_frame_moves_the_times_and_nothing_is_made_up_for():
    shown = video([1 / 16] * 6, 48, late={3: 0.5})
    times = [tween.at for _, _, some in shown for tween in some]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert max(gaps) == pytest.approx(0.5 + 1 / 48) and sorted(gaps)[:-1] == pytest.approx([1 / 48] * (len(gaps) - 1))
    assert shown[3][2][0].at == shown[3][0] and shown[3][2][0].weight == 0


def test_nothing_is_blended_across_a_cut():
    """The new scene's first frame is shown at once, and rests until its second is there."""
    shown = video([1 / 16] * 8, 60, scenes=[1, 1, 1, 1, 2, 2, 2, 2])
    for number, (_, _, some) in enumerate(shown):
        for tween in some:
            pair = {int(tween.before[0, 0, 0]), int(tween.after[0, 0, 0])}
            assert pair == ({number} if number in (0, 4) else {number - 1, number})
    assert [grey(tween) for tween in shown[4][2]] == [4.0] * len(shown[4][2])


def test_without_interpolation_a_frame_is_a_picture_at_its_time():
    tweens = Tweens()
    (only,) = tweens.next(GREY + 7, 0, 3.0, 0.1, None)
    assert only.at == 3.0 and only.picture() is only.after and only.after[0, 0, 0] == 7
    some = tweens.next(GREY + 9, 0, 3.1, 0.1, 30)  # it goes on from there
    assert grey(some[0]) == 7 and some[0].at == 3.1


@given(st.integers(0, 256), st.integers(0, 255), st.integers(0, 255))
def test_a_blend_is_right_to_half_a_grey_level(share, one, two):
    before, after = np.full((3, 5), one, np.uint8), np.full((3, 5), two, np.uint8)
    mixed = blend(before, after, share / 256)
    exact = one + (two - one) * share / 256
    assert mixed.dtype == np.uint8 and np.abs(mixed - exact).max() <= 0.5
    assert (before == one).all() and (after == two).all()


def test_the_ends_are_the_frames_themselves():
    before, after = np.full((3, 5), 1, np.uint8), np.full((3, 5), 255, np.uint8)
    assert blend(before, after, 0.0) is before and blend(before, after, 1.0) is after
