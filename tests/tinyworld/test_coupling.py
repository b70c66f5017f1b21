"""The rule by which noise decides on a layout."""

import pytest
import torch

from longlive_optimized.tinyworld import coupling, data, tasks
from longlive_optimized.tinyworld.checkpoint import half, named, save
from longlive_optimized.tinyworld.networks import SIZES, new_vae
from longlive_optimized.tinyworld.render import render, scale_of
from longlive_optimized.tinyworld.stage_flow import FlowStage
from longlive_optimized.tinyworld.world import COLOURS, Scene, Shape

GRIDS = [(8, 12), (4, 6), (4, 4)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("grid", GRIDS)
def test_what_is_written_is_read(grid):
    noise = torch.randn(200, 16, *grid, generator=generator())
    before, layout = noise.clone(), coupling.draw(200, grid, generator(1))
    found = coupling.read(coupling.write(noise, layout))
    assert torch.equal(found.cell, layout.cell) and torch.equal(found.lower, layout.lower)
    assert torch.equal(noise, before)


def test_written_noise_is_white_where_layouts_are_even():
    """The same values but for their places and signs; cells, signs and layouts as likely as of white noise."""
    grid, count = (4, 6), 40000
    noise = torch.randn(count, 16, *grid, generator=generator())
    written = coupling.write(noise, coupling.draw(count, grid, generator(1)))
    assert torch.equal(written.abs().flatten(2).sort(-1).values, noise.abs().flatten(2).sort(-1).values)
    assert torch.equal(written[:, 5:], noise[:, 5:])
    assert written.mean(0).abs().max() < 5 / count**0.5 and (written.var(0) - 1).abs().max() < 0.05
    products = torch.einsum("nx,ny->xy", *(written[:, :5].flatten(1),) * 2) / count
    assert (products - torch.eye(len(products))).abs().max() < 0.05
    for layout in (coupling.read(noise), coupling.read(written)):
        cells = torch.bincount(layout.cell[:, 0] * 6 + layout.cell[:, 1], minlength=24)
        assert (cells / count - 1 / 24).abs().max() < 0.006
        assert (torch.bincount(layout.lower.flatten(), minlength=4) / (2 * count) - 0.25).abs().max() < 0.01


def test_shapes_stand_apart_and_where_the_rule_says():
    layout = coupling.draw(300, (8, 12), generator())
    centres = layout.centres((8, 12))
    size = torch.tensor((64.0, 96.0))
    gap = (centres[:, :, None] - centres[:, None]).abs()
    gap = torch.minimum(gap, size - gap).square().sum(-1).sqrt()
    assert (gap + 1e9 * torch.eye(3)).min() >= scale_of(64, 96).apart
    assert torch.equal(centres[:, 0], 8.0 * layout.cell)
    scene = Scene(tuple(Shape(c, "circle") for c in ("red", "white", "yellow")), "blue", "right")
    frames = render([(scene,)] * 20, centres[:20], 9, 64, 96)
    later = layout.moved(torch.tensor([[0, 1]]), (8, 12)).centres((8, 12))  # a cell in four frames
    for picture, places in ((frames[:, 0], centres), (frames[:, 4], later)):
        for i, shape in enumerate(scene.shapes):
            row, column = places[:20, i].long().unbind(1)
            assert torch.equal(picture[range(20), row, column], torch.tensor([COLOURS[shape.colour]] * 20).byte())


@pytest.mark.parametrize("task", [tasks.beginning(12), tasks.switch(12, 6), tasks.midst(12, "relative", 24)])
def test_noise_decides_where_a_scene_begins(tmp_path, task):
    """In much noise it is of the clip's layout; then another may lie under it; else nothing has changed."""
    vae = new_vae(SIZES["micro"], 0)
    save(tmp_path / "vae.pt", {"step": 1, "done": True, "average": half(named({"vae": vae}))})
    stage = FlowStage(SIZES["micro"], tmp_path, torch.device("cpu"), torch.float32, 0)
    stage.clips = 20
    stage.begin(0)
    clip, rows = stage.bank.draw(task.cut, 64), task.script.rows
    latents = clip.latents[:, [frame for _, frame in task.sources]]
    first = next(i for i, row in enumerate(rows) if row.noisy)
    sigma = torch.zeros(64, len(rows))
    sigma[:, [row.noisy for row in rows]] = torch.where(torch.arange(64) < 32, 0.95, 0.85)[:, None]
    noise = torch.randn_like(latents)
    given = noise.clone()
    under = stage._decide(task, clip, sigma, latents, noise)

    changed = (noise != given).flatten(2).any(2)
    changed[:32, first] = False
    assert not changed.any()  # below 0.9, and in other frames
    found = coupling.read(noise[:32, first])
    if rows[first].frame == 0:
        assert torch.equal(found.cell, clip.layout.cell[:32])
    if rows[first].frame == 0 or task.cut is not None:
        at = (range(32), slice(1, 5), *clip.layout.cell[:32].unbind(1))
        signs = noise[:, first][at] > 0
        assert torch.equal(2 * signs[:, 0::2].long() + signs[:, 1::2].long(), clip.layout.lower[:32])
    else:
        assert torch.equal(noise, given)
    moved = (under != latents).flatten(2).any(2)
    assert not moved[32:].any() and not moved[:, first + 3 :].any()
    if rows[first].frame == 0:
        assert 6 <= moved[:32].any(1).sum() <= 26
    else:
        assert not moved.any()


def test_the_banks_layouts_are_where_the_clips_shapes_stand():
    """Of clips with a cut, where they have come to stand just before it."""
    size = SIZES["tiny"]
    vae = new_vae(size, 0).requires_grad_(False)
    seen = {}
    render_clips = data.clips

    def remember(scenes, centres, latents, cut, *rest):
        frames = render_clips(scenes, centres, latents, cut, *rest)
        if latents > 3:
            seen[cut] = scenes, frames
        return frames

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "clips", remember)
        patch.setattr(data, "LENGTH", 4)
        patch.setattr(data, "CUTS", (3,))
        bank = data.Bank(vae, size, 12, 0, torch.device("cpu"))
    for cut, frame in ((None, 0), (3, 8)):
        scenes, frames = seen[cut]
        centres = bank._groups[cut].layout.centres((8, 12)).long()
        for b, (scene, _) in enumerate(scenes):
            for i, shape in enumerate(scene.shapes):
                pixel = (frames[b, :, frame, centres[b, i, 0], centres[b, i, 1]] + 1) * 127.5
                assert torch.allclose(pixel, torch.tensor(COLOURS[shape.colour]).float(), atol=1)
