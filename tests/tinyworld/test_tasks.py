"""What the flow stage trains on."""

from random import Random

import pytest

from longlive_optimized.tinyworld.data import CUTS, LENGTH
from longlive_optimized.tinyworld.tasks import NOW, PAST, SINKS, beginning, draw_task, midst, opening, switch
from longlive_optimized.video_time import pixel_of


def rows_seen(task, step):
    return [(task.script.rows[row], task.sources[row]) for row, _ in step.keys]


def test_pixels_of_latents():
    assert [pixel_of(latent) for latent in range(5)] == [0, 1, 5, 9, 13]


def test_all_kinds_come_up_and_stay_within_their_clips():
    random, kinds, tasks, openings = Random(0), set(), set(), 0
    for _ in range(600):
        task = draw_task(random)
        tasks.add(task)
        openings += task.opening
        assert len(task.sources) == len(task.script.rows)
        assert all(0 <= frame < LENGTH and which in (0, 1) for which, frame in task.sources)
        kinds.add((task.script.window, task.cut, task.script.relative))
        noisy = [row.noisy for row in task.script.rows]
        assert any(noisy) and all(noisy) == task.opening
        assert task.begins == (task.script.rows[0].frame == 0 and noisy[0])
        assert {row.prompt for row in task.script.rows if row.noisy} == {NOW}
    assert {window for window, _, _ in kinds} == {12, 9}
    assert {cut for _, cut, _ in kinds} == {None, *CUTS}
    assert {relative for _, _, relative in kinds} == {True, False}
    assert len(tasks) < 50  # each is made once
    assert 240 < openings < 360


def test_an_opening_is_one_block_from_noise():
    task = opening()
    assert task.opening and task.begins and not beginning(12).opening and beginning(12).begins
    assert task.sources == [(0, 0), (0, 1), (0, 2)] and [row.noisy for row in task.script.rows] == [True] * 3


@pytest.mark.parametrize("window", [12, 9, 6])
def test_the_past_is_shown_as_it_was_and_the_present_under_its_own_prompt(window):
    task = beginning(window)
    for step in task.script.passes:
        for row, (which, frame) in rows_seen(task, step):
            assert which == 0 and frame == row.frame and row.prompt == NOW


@pytest.mark.parametrize("positions", ["relative", "base"])
def test_a_stream_s_midst(positions):
    task = midst(12, positions, 39)
    denoised = [step for step in task.script.passes if task.script.rows[step.rows[0]].noisy]
    assert len(denoised) == 6
    for step in denoised:
        seen = rows_seen(task, step)
        assert len(seen) == 12 and [row.prompt for row, _ in seen[:3]] == [SINKS] * 3
        assert [source for _, source in seen[:3]] == [(1, 0), (1, 1), (1, 2)]
        frames = [frame for _, (which, frame) in seen[3:] if which == 0]
        assert frames == list(range(frames[0], frames[0] + 9)) and frames[0] >= 3
        at = [position for _, position in step.keys]
        assert at[3] - at[2] == 1 if positions == "relative" else at[:3] == [0, 1, 2] and at[3] > 20


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("window", [12, 9, 6])
def test_a_switch(window, cut):
    task = switch(window, cut)
    denoised = [step for step in task.script.passes if task.script.rows[step.rows[0]].noisy]
    assert [task.script.rows[step.rows[0]].frame for step in denoised] == [cut, cut + 3, cut + 6, cut + 9]
    first = rows_seen(task, denoised[0])
    old = [row.prompt for row, _ in first if row.frame < 3]
    assert old == [SINKS if cut > window else NOW] * 3
    assert {row.prompt for row, _ in first if 3 <= row.frame < cut} <= {NOW}
    assert max(frame for _, frame in task.sources) == cut + 11 < LENGTH
    assert {row.prompt for row in task.script.rows if row.frame < cut} <= {PAST, SINKS, NOW}
