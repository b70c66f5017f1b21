"""When frames are shown and blocks begin, played through without clocks."""

import asyncio
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlive_optimized.demo.server.broadcast import RATE_WINDOW, Broadcast, Rate
from longlive_optimized.demo.server.pacing import SLACK, FrameClock, Pace, retry_delay
from longlive_optimized.video_time import BLOCK_PIXEL_FRAMES as BLOCK


def play(durations, fps: float) -> dict:
    """A worker whose blocks take so long, and a frame clock, against each other. Times are seconds."""
    pace, clock = Pace(), FrameClock()
    now, waiting, shown, begun, most, ends = 0.0, 0, [], [], 0, None
    due, durations = 0.0, list(durations)
    while durations or ends is not None:
        may_begin = durations and ends is None and pace.is_time(waiting, fps)
        events = {"begin": now if may_begin else math.inf, "end": math.inf if ends is None else ends}
        events["show"] = max(due, now) if waiting else math.inf
        event = min(events, key=events.get)
        now = events[event]
        if event == "begin":
            begun.append((now, waiting))
            started, ends = now, now + durations.pop(0)
        elif event == "end":
            pace.block_took(now - started, BLOCK)
            waiting, ends = waiting + BLOCK, None
            most = max(most, waiting)
        else:
            shown.append(clock.next(now, pace.interval(fps)))
            waiting, due = waiting - 1, shown[-1] + pace.interval(fps)
    return {
        "shown": shown,
        "begun": begun,
        "most": most,
        "gaps": [b - a for a, b in itertools.pairwise(shown)],
    }


@given(st.floats(0.001, 1.2), st.sampled_from([20, 25, 30, 40]), st.randoms(use_true_random=False))
def test_an_engine_with_a_little_jitter_is_shown_evenly(block, fps, dice):
    """Whether faster or slower than the target: once a few blocks are measured, no gap is much longer than the rest."""
    video = play([block * dice.uniform(0.98, 1.02) for _ in range(30)], fps)
    interval = max(1 / fps, SLACK * block / BLOCK)
    assert max(video["gaps"][10 * BLOCK :]) < 1.15 * interval
    assert min(video["gaps"]) > 0.9 / fps


@given(st.lists(st.floats(0.001, 2.0), min_size=1, max_size=40), st.sampled_from([20, 25, 40]))
def test_never_more_than_a_block_waits_when_one_begins(durations, fps):
    video = play(durations, fps)
    assert all(waiting <= BLOCK for _, waiting in video["begun"]) and video["most"] <= 2 * BLOCK
    assert all(gap >= 1 / fps - 1e-9 for gap in video["gaps"])
    assert len(video["shown"]) > BLOCK * (len(durations) - 3)  # nothing hangs


def test_a_fast_engine_waits_and_so_knows_the_newest_prompt():
    begun = [at for at, _ in play([0.05] * 10, fps=25)["begun"]]
    between = [b - a for a, b in itertools.pairwise(begun)]
    assert between[3:] == pytest.approx([BLOCK / 25] * 6)
    waiting = [w for _, w in play([0.05] * 10, fps=25)["begun"]][3:]
    assert all(1 <= w <= 4 for w in waiting)  # begun at the last moment: what was made earlier is nearly all shown


def test_an_engine_slower_than_the_target_begins_at_once():
    begun = [at for at, _ in play([1.0] * 6, fps=25)["begun"]]
    assert begun[-1] == pytest.approx(5.0, abs=0.5)


def play_beside(denoise: float, decode: float, fps: float, blocks: int = 40) -> dict:
    """As ``play``, where a block begins as soon as the transformer is through with the one before, but no more than
    one is being decoded then."""
    pace, clock = Pace(), FrameClock()
    now, waiting, shown, begun, ends, latest = 0.0, 0, [], [], [], 0.0
    due, free_at = 0.0, 0.0
    while len(begun) < blocks or ends:
        coming = BLOCK * len(ends)
        may_begin = len(begun) < blocks and len(ends) < 2 and pace.is_time(waiting, fps, coming)
        events = {"begin": max(now, free_at) if may_begin else math.inf, "end": ends[0][1] if ends else math.inf}
        events["show"] = max(due, now) if waiting else math.inf
        event = min(events, key=events.get)
        now = events[event]
        if event == "begin":
            begun.append(now)
            free_at = now + denoise
            ends.append((now, max(free_at, ends[-1][1] if ends else 0.0) + decode))
        elif event == "end":
            started, _ = ends.pop(0)
            halves = denoise, now - max(started + denoise, latest)
            pace.block_took(sum(halves), BLOCK, max(halves))
            latest, waiting = now, waiting + BLOCK
        else:
            shown.append(clock.next(now, pace.interval(fps)))
            waiting, due = waiting - 1, shown[-1] + pace.interval(fps)
    return {"shown": shown, "gaps": [b - a for a, b in itertools.pairwise(shown)]}


@pytest.mark.parametrize(("denoise", "decode"), [(0.235, 0.065), (0.1, 0.1), (0.06, 0.2)])
def test_blocks_side_by_side_are_shown_as_fast_as_the_slower_half(denoise, decode):
    video = play_beside(denoise, decode, fps=1000)
    steady = video["gaps"][20 * BLOCK :]
    assert max(steady) < 1.2 * SLACK * max(denoise, decode) / BLOCK
    slow = play_beside(denoise, decode, fps=25)
    assert max(slow["gaps"][10 * BLOCK :]) < 1.01 / 25


def test_a_stall_moves_what_follows_and_a_small_delay_does_not():
    clock = FrameClock()
    assert clock.next(10.0, 0.04) == 10.0
    assert clock.next(10.03, 0.04) == pytest.approx(10.04)
    assert clock.next(10.045, 0.04) == pytest.approx(10.08)  # 5 ms late: not passed on
    assert clock.next(12.0, 0.04) == 12.0
    assert clock.next(12.01, 0.04) == pytest.approx(12.04)  # no rush to make up for it


class NoFrames:
    """A feed that has none."""

    paused = False

    def take(self):
        return None


@pytest.mark.parametrize("turns", range(5))
def test_a_clock_ends_when_it_is_told_to_as_frames_come(turns):
    """So many turns of the event loop later."""

    async def cancelled() -> bool:
        broadcast = Broadcast(NoFrames(), None, None)
        clock = asyncio.create_task(broadcast.run())
        for _ in range(3):
            await asyncio.sleep(0)
        broadcast.wake()
        for _ in range(turns):
            await asyncio.sleep(0)
        clock.cancel()
        ended, _ = await asyncio.wait({clock}, timeout=5)
        clock.cancel()
        return bool(ended)

    assert asyncio.run(cancelled())


@given(st.floats(2, 120), st.integers(2, 400), st.floats(0, 1e6))
def test_a_rate_is_true_from_the_second_picture_on(fps, count, start):
    rate = Rate()
    for i in range(count):
        rate.note(start + i / fps)
        assert i == 0 or rate.at(start + i / fps) == pytest.approx(fps, abs=1 / RATE_WINDOW + 1e-3 * fps)


def test_a_rate_falls_in_a_silence_and_is_taken_anew_after_it():
    rate = Rate()
    assert rate.at(5) == 0
    for i in range(33):
        rate.note(5 + i / 16)
    assert rate.at(8) == pytest.approx(16 / RATE_WINDOW, abs=1 / RATE_WINDOW) and rate.at(9.01) == 0
    rate.note(60)
    assert rate.at(60) == rate.at(61) == 0  # one alone tells none
    rate.note(61.25)
    rate.note(61.5)
    assert rate.at(61.5) == pytest.approx(2 / 1.5)
    assert rate.at(63) == 1  # of the last two seconds


def test_tries_become_rare_and_never_end():
    """A night of failures, too, which are more than a float's powers of two."""
    assert [retry_delay(failures, 0.5, 30.0) for failures in (1, 2, 3, 7, 10_000)] == [0.5, 1.0, 2.0, 30.0, 30.0]
