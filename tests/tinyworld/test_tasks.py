"""What the flow stage trains on."""

from random import Random

import pytest
import torch
from tinyworld.test_forward import CONFIG, LATENT, random

from longlive_optimized.model.transformer import Transformer
from longlive_optimized.tinyworld.data import AFTER, CUTS, LENGTH
from longlive_optimized.tinyworld.forward import forward
from longlive_optimized.tinyworld.script import Script
from longlive_optimized.tinyworld.tasks import NOW, SINKS, beginning, draw_task, midst, opening, switch
from longlive_optimized.video_time import pixel_of

PAST = 2  # the prompt of what came before, where it is shown


def rows_seen(task, step):
    return [(task.script.rows[row], task.sources[row]) for row, _ in step.keys]


def test_pixels_of_latents():
    assert [pixel_of(latent) for latent in range(5)] == [0, 1, 5, 9, 13]


def test_all_kinds_come_up_and_stay_within_their_clips():
    dice, kinds, tasks, blocks = Random(0), set(), set(), []
    for _ in range(600):
        task = draw_task(dice)
        tasks.add(task)
        last = LENGTH if task.cut is None else task.cut + AFTER
        assert len(task.sources) == len(task.script.rows)
        assert all(0 <= frame < last and which in (0, 1) for which, frame in task.sources)
        kinds.add((task.script.window, task.cut, task.script.relative))
        noisy = [row.noisy for row in task.script.rows]
        assert any(noisy) and all(noisy) == task.opening
        assert task.decided == (noisy.index(True) if task.cut is not None or noisy[0] else None)
        assert {row.prompt for row in task.script.rows if row.noisy} == {NOW}
        blocks.append(sum(noisy) // 3 if task.cut is not None else "opening" if task.opening else "stream")
    assert {window for window, _, _ in kinds} == {12, 9}
    assert {cut for _, cut, _ in kinds} == {None, *CUTS}
    assert {relative for _, _, relative in kinds} == {True, False}
    assert len(tasks) < 50  # each is made once
    assert {kind: blocks.count(kind) > 50 for kind in blocks} == dict.fromkeys(("opening", "stream", 1, 2), True)


def test_plain_tasks_are_for_streams_of_which_nothing_else_is_said():
    tasks = {draw_task(Random(i), plain=True) for i in range(300)}
    assert {(task.script.window, task.script.relative) for task in tasks} == {(12, True)} and len(tasks) == 13


def test_an_opening_is_one_block_from_noise():
    task = opening()
    assert task.opening and task.decided == 0 == beginning(12).decided and not beginning(12).opening
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


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("window", [12, 9, 6])
def test_a_switch(window, cut, blocks):
    task = switch(window, cut, blocks)
    rows = task.script.rows
    denoised = [step for step in task.script.passes if rows[step.rows[0]].noisy]
    assert [rows[step.rows[0]].frame for step in denoised] == [cut, cut + 3][:blocks]
    assert task.decided == denoised[0].rows[0] and not task.opening
    first = rows_seen(task, denoised[0])
    assert [row.prompt for row, _ in first if row.frame < 3] == [SINKS if cut > window else NOW] * 3
    assert {row.prompt for row, _ in first if 3 <= row.frame < cut} <= {NOW}
    assert {which for row, (which, _) in first if row.frame < 3} == {int(cut > window)}
    assert all(frame == row.frame for row, (_, frame) in first)
    assert max(frame for _, frame in task.sources) == cut + 3 * blocks - 1 < cut + AFTER


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("window", [12, 9, 6])
def test_passes_that_nothing_sees_are_missed_by_nobody(window, cut):
    """The flow of the blocks after a switch, in float64, is that of a stream of which no pass is left out."""
    torch.manual_seed(0)
    model = Transformer(CONFIG, dtype=torch.float64)
    for weight in model.parameters():
        weight.data.normal_(0, 0.15)
    whole = Script(window)
    for start in range(0, cut, 3):
        whole.clean(start, SINKS if start == 0 and cut > window else PAST)
    whole.recache(cut, NOW)
    for start in (cut, cut + 3):
        whole.noisy(start, NOW)
        whole.clean(start, NOW)
    latents, prompts = random(2, 2, cut + AFTER, *LATENT), random(2, 3, 6, 20, seed=2)  # [noisy, streams, frames, ...]

    def flow(script):
        x = torch.stack([latents[int(row.noisy), :, row.frame] for row in script.rows], 1)
        times = torch.tensor([[700.0 * row.noisy for row in script.rows]] * 2, dtype=torch.float64)
        noisy = [i for i, row in enumerate(script.rows) if row.noisy]
        return forward(model, x, times, prompts, script).flow[:, noisy]

    short = switch(window, cut).script
    assert len(short.rows) < len(whole.rows)
    torch.testing.assert_close(flow(short), flow(whole), rtol=0, atol=1e-12)


def test_what_is_seen_as_clean_and_denoised_can_be_guessed():
    assert beginning(12).guessed and midst(12, "relative", 24).guessed and switch(12, 6).guessed
    assert not opening().guessed and not switch(12, 6, 1).guessed
