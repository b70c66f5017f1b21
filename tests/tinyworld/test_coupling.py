"""The rule by which noise decides on a layout."""

from random import Random

import pytest
import torch

from longlive_optimized.tinyworld import coupling, data, stage_flow, tasks
from longlive_optimized.tinyworld.networks import SIZES, new_vae
from longlive_optimized.tinyworld.render import render, scale_of
from longlive_optimized.tinyworld.world import COLOURS, MOTIONS, Scene, Shape
from longlive_optimized.video_time import pixel_of


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(64, 96), (32, 48), (32, 32)])
def test_what_is_written_is_read(size):
    noise = torch.randn(200, 3, 16, size[0] // 8, size[1] // 8, generator=generator())
    before, marks = noise.clone(), coupling.draw(200, size, generator(1))
    assert torch.equal(coupling.read(coupling.write(noise, marks)), marks)
    assert torch.equal(noise, before)
    patch = noise[0, marks[0, 0], 0, 2 * marks[0, 1] :, 2 * marks[0, 2] :][:2, :2]
    patch += 10
    assert torch.equal(coupling.read(noise)[0], marks[0])


def test_written_noise_is_white_where_layouts_are_even():
    """The same values in other places; marks as likely as of white noise."""
    size, count = (32, 48), 40000
    noise = torch.randn(count, 3, 2, 4, 6, generator=generator())
    written = coupling.write(noise, coupling.draw(count, size, generator(1)))
    assert torch.equal(written[:, :, 0].flatten(1).sort(1).values, noise[:, :, 0].flatten(1).sort(1).values)
    assert torch.equal(written[:, :, 1:], noise[:, :, 1:])
    assert written.mean(0).abs().max() < 5 / count**0.5 and (written.var(0) - 1).abs().max() < 0.05
    values = written[:, :, 0].flatten(1)
    assert (values.T @ values / count - torch.eye(values.shape[1])).abs().max() < 0.05
    for marks in (coupling.read(noise), coupling.read(written)):
        share = torch.bincount(marks[:, 0] * 6 + marks[:, 1] * 3 + marks[:, 2], minlength=18) / count
        assert (share - 1 / 18).abs().max() < 0.008


def test_negative_marks_leave_the_noise():
    noise = torch.randn(3, 3, 16, 4, 6, generator=generator())
    marks = torch.tensor([[-1, -1, -1], [2, 1, 0], [-1, -1, -1]])
    written = coupling.write(noise, marks)
    assert torch.equal(written[::2], noise[::2]) and torch.equal(coupling.read(written)[1], marks[1])


SHAPES = tuple(Shape(c, "circle") for c in ("red", "white", "yellow"))


def scenes(count):
    dice = Random(0)
    return [Scene(SHAPES, "blue", dice.choice(list(MOTIONS))) for _ in range(count)]


@pytest.mark.parametrize("size", SIZES["tiny"].frames)
@pytest.mark.parametrize("begins", [True, False])
def test_shapes_stand_apart_and_the_first_where_and_when_the_mark_says(size, begins):
    """A stream begins with a latent frame of one pixel frame; in what follows each has four."""
    marks = coupling.draw(20, size, generator())
    centres = coupling.centres(marks, scenes(20), size, begins)
    gap = (centres[:, :, None] - centres[:, None]).abs()
    gap = torch.minimum(gap, torch.tensor(size) - gap).square().sum(-1).sqrt()
    assert (gap + 1e9 * torch.eye(3)).min() >= scale_of(*size).apart
    late = 0 if begins else 3 * coupling.velocities(scenes(20), size)[:, None]
    assert torch.equal((centres + late) % 8, torch.zeros_like(centres))  # on cells, at the end of a latent frame
    frames = render([(scene,) for scene in scenes(20)], centres, 12, *size)
    for frame, (latent, row, column) in zip(frames, marks, strict=True):
        for shape, (down, right) in zip(SHAPES, coupling._OTHERS, strict=True):
            at = (16 * row + 8 + down) % size[0], (16 * column + 8 + right) % size[1]
            shown = frame[4 * latent + (0 if begins else 3), *at]
            assert torch.equal(shown, torch.tensor(COLOURS[shape.colour]).byte())


TASKS = [tasks.opening(), tasks.beginning(12), tasks.midst(12, "base", 24)]
TASKS += [tasks.switch(12, 6), tasks.switch(12, 15, 1)]


@pytest.mark.parametrize("task", TASKS)
def test_noise_decides_where_a_scene_begins(task):
    """In much noise, over another stream's latents, it is of the clip's layout unless that goes on."""
    count, rows = 2000, len(task.script.rows)
    latents, marks = 3 * torch.randn(count, rows, 4, 4, 6), coupling.draw(count, (32, 48), generator())
    on = torch.arange(count) % 4 == 0
    marks[on] = -1
    sigma = torch.where(torch.arange(count) < count // 2, 0.95, 0.85)[:, None].expand(-1, rows)
    clip = data.Clips(latents, torch.empty(0), torch.empty(0), marks)
    x = stage_flow._in_noise(task, clip, sigma, latents)
    s = sigma[:, :, None, None, None]
    noise = (x - (1 - s) * latents) / s
    many, first = count // 2, task.decided
    if first is None:
        assert (noise.std() - 1).abs() < 0.01
        return
    begun = slice(first, first + 3)
    found = (coupling.read(x[:, begun]) == marks).all(1)
    assert found[:many][~on[:many]].all() and found[many:].float().mean() < 0.2 and not found[on].any()
    assert (noise[many:].std() - 1).abs() < 0.01 and (noise[on].std() - 1).abs() < 0.01
    below = torch.roll(latents, 1, 0)[:many, begun, 1:]
    others = ((x[:many, begun, 1:] - 0.05 * below) / 0.95)[~on[:many]]
    assert (others.std() - 1).abs() < 0.01 and noise[:many, begun, 1:][~on[:many]].std() > 1.01
    rest = [row for row in range(rows) if not first <= row < first + 3]
    assert not rest or (noise[:, rest].std() - 1).abs() < 0.01


def test_a_past_before_a_change_is_estranged_and_one_that_goes_on_is_not():
    task, count = tasks.switch(12, 9, 1), 3000
    frames = torch.arange(15.0)[None, :, None, None, None] + 100 * torch.arange(count)[:, None, None, None, None]
    clip = data.Clips(frames, torch.empty(0), torch.empty(0), torch.zeros(count, 3, dtype=torch.long))
    clip.marks[::2] = -1
    past = frames[:, [frame for _, frame in task.sources]]
    seen = stage_flow._estranged(task, clip, past)
    same = (seen == past).flatten(1)
    assert same[::2].all() and same[:, 9:].all()  # what goes on, and what is denoised
    changes, before = slice(1, None, 2), seen[1::2, :9, 0, 0, 0]
    stream, frame = before.div(100, rounding_mode="floor"), before.remainder(100)
    whole = frame == frame.round()
    own = torch.arange(count)[changes, None]
    other, asked = whole & (stream == (own - 1) % count), whole & (stream == own) & (frame >= 9)
    for share in (other.any(1), asked.any(1)):
        assert 0.03 < share.float().mean() < 0.1
    assert not other[:, 6:].any() and not asked[:, 6:].any()  # the block before the change is never another scene
    faded = ~same[changes, :9].view(-1, 9) & ~other & ~asked
    assert 0.15 < faded.all(1).float().mean() < 0.25 and (faded.all(1) | ~faded.any(1)).all()


def test_few_scenes_of_the_bank_have_one_shape_and_none_was_held_out(monkeypatch):
    monkeypatch.setattr(data, "_LOOSE", 0)
    dice = Random(1)
    scenes = [data._say(dice).scene for _ in range(3000)]
    counts = [sum(len(scene.shapes) == n for scene in scenes) / len(scenes) for n in (1, 2, 3)]
    assert counts == pytest.approx([1 / 7, 3 / 7, 3 / 7], abs=0.03)
    assert not any(scene.held_out for scene in scenes)


def test_the_banks_marks_are_where_the_clips_shapes_stand(monkeypatch):
    size, seen = (96, 96), []
    render_clips = data.clips

    def remember(scenes, centres, latents, cut, *rest):
        frames = render_clips(scenes, centres, latents, cut, *rest)
        seen.append((scenes, latents, cut, frames))
        return frames

    monkeypatch.setattr(data, "clips", remember)
    monkeypatch.setattr(data, "LENGTH", 4)
    monkeypatch.setattr(data, "CUTS", (3,))
    monkeypatch.setattr(data.Bank, "_encode", lambda self, x: x.new_zeros(len(x), x.shape[2] // 4 + 1, 16, 1, 1))
    bank = data.Bank(new_vae(SIZES["micro"], 0), size, 72, 0, torch.device("cpu"))
    assert [(latents, cut) for _, latents, cut, _ in dict.fromkeys(map(lambda s: (0, *s[1:3], 0), seen))] == [
        (3, None), (4, None), (9, 3)
    ]  # fmt: skip
    again = 0
    for group in (bank._openings, *bank._groups.values()):
        made = [each for each in seen if each[1] == group.latents.shape[1]]
        frames, pairs = torch.cat([each[3] for each in made]), [pair for each in made for pair in each[0]]
        cut = made[0][2]
        for video, (before, scene), (latent, row, column) in zip(frames, pairs, group.marks.tolist(), strict=True):
            if latent < 0:
                again += 1
                steps = video.diff(dim=1).abs().amax((0, 2, 3))
                assert before == scene and cut == 3 and (steps[8] - steps[7]).abs() < 0.02  # no jump
            elif scene.shapes[0].form != "ring":
                at = 4 * latent if cut is None else pixel_of(cut) + 4 * latent + 3
                pixel = (video[:, at, 16 * row + 8, 16 * column + 8] + 1) * 127.5
                assert torch.allclose(pixel, torch.tensor(COLOURS[scene.shapes[0].colour]).float(), atol=1)
    assert 1 <= again <= 12
    assert bank.draw_openings(50).latents.dtype == torch.float32
