"""The rule by which noise decides on a layout."""

from random import Random

import pytest
import torch

from longlive_optimized.tinyworld import coupling, data, stage_flow, tasks
from longlive_optimized.tinyworld.networks import SIZES, new_vae
from longlive_optimized.tinyworld.render import render, scale_of
from longlive_optimized.tinyworld.world import COLOURS, MOTIONS, Scene, Shape

SIZE = 64, 96


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


def test_shapes_stand_apart_and_the_first_where_and_when_the_mark_says():
    marks, random = coupling.draw(100, SIZE, generator()), Random(0)
    shapes = tuple(Shape(c, "circle") for c in ("red", "white", "yellow"))
    scenes = [Scene(shapes, "blue", random.choice(list(MOTIONS))) for _ in marks]
    centres = coupling.centres(marks, scenes, SIZE)
    gap = (centres[:, :, None] - centres[:, None]).abs()
    gap = torch.minimum(gap, torch.tensor(SIZE) - gap).square().sum(-1).sqrt()
    assert (gap + 1e9 * torch.eye(3)).min() >= scale_of(*SIZE).apart
    assert torch.equal(centres % 8, torch.zeros_like(centres))  # on cells
    frames = render([(scene,) for scene in scenes], centres, 9, *SIZE)
    for frame, (latent, row, column) in zip(frames, marks, strict=True):
        for i, shape in enumerate(shapes):
            at = (16 * row + 8 + 32 * (i % 2)) % 64, (16 * column + 8 + 32 * i) % 96
            assert torch.equal(frame[4 * latent, *at], torch.tensor(COLOURS[shape.colour]).byte())


TASKS = [tasks.opening(), tasks.beginning(12), tasks.switch(12, 6), tasks.midst(12, "base", 24)]


@pytest.mark.parametrize("task", TASKS)
def test_noise_decides_where_a_stream_begins(task):
    """In much noise, of another stream's latents, it is of the clip's layout; else noise is noise."""
    count, rows = 2000, len(task.script.rows)
    latents, marks = 3 * torch.randn(count, rows, 4, 4, 6), coupling.draw(count, (32, 48), generator())
    sigma = torch.where(torch.arange(count) < count // 2, 0.95, 0.85)[:, None].expand(-1, rows)
    clip = data.Clips(latents, torch.empty(0), torch.empty(0), marks)
    x = stage_flow._in_noise(task, clip, sigma, latents)
    s = sigma[:, :, None, None, None]
    noise = (x - (1 - s) * latents) / s
    many, begun = count // 2, slice(0, 3)
    found = coupling.read(x[:, begun]) == marks
    assert found[:many].all() == task.begins and not found[many:].all()
    assert (noise[many:].std() - 1).abs() < 0.01
    if task.begins:
        below = torch.roll(latents, 1, 0)[:many, begun, 1:]
        others = (x[:many, begun, 1:] - 0.05 * below) / 0.95
        assert (others.std() - 1).abs() < 0.01 and noise[:many, begun, 1:].std() > 1.01
        if not task.opening:
            assert (noise[:many, 3:].std() - 1).abs() < 0.01
    else:
        assert (noise.std() - 1).abs() < 0.01


def test_the_banks_marks_are_where_the_clips_shapes_stand(monkeypatch):
    size, seen = SIZES["tiny"], []
    render_clips = data.clips

    def remember(scenes, centres, latents, cut, *rest):
        frames = render_clips(scenes, centres, latents, cut, *rest)
        seen.append((scenes, latents, cut, frames))
        return frames

    monkeypatch.setattr(data, "clips", remember)
    monkeypatch.setattr(data, "LENGTH", 4)
    monkeypatch.setattr(data, "CUTS", (3,))
    bank = data.Bank(new_vae(size, 0).requires_grad_(False), size, 6, 0, torch.device("cpu"))
    assert [(len(scenes), latents, cut) for scenes, latents, cut, _ in seen] == [(18, 3, None), (3, 4, None), (3, 4, 3)]
    for group, (scenes, latents, _, frames) in zip((bank._openings, *bank._groups.values()), seen, strict=True):
        assert group.latents.shape == (len(scenes), latents, 16, 8, 12)
        for b, ((scene, _), (latent, row, column)) in enumerate(zip(scenes, group.marks, strict=True)):
            pixel = (frames[b, :, 4 * latent, 16 * row + 8, 16 * column + 8] + 1) * 127.5
            assert torch.allclose(pixel, torch.tensor(COLOURS[scene.shapes[0].colour]).float(), atol=1)
    clips = bank.draw_openings(50)
    assert clips.latents.shape == (50, 3, 16, 8, 12) and clips.latents.dtype == torch.float32
