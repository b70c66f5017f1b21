"""A control branch in training: the engine's hints, and clips whose shapes are where the silhouettes are."""

import pytest
import torch
from tinyworld.test_forward import CONFIG, LATENT, random

from longlive_optimized import LongLiveEngine, OptimizationConfig
from longlive_optimized.model.control import ControlBranch, PassControl, context_channels
from longlive_optimized.model.ring_cache import RingCache
from longlive_optimized.model.transformer import Transformer
from longlive_optimized.tinyworld import forward as training
from longlive_optimized.tinyworld.control import main, measure, new_branch, opening, outlines, starts, stream
from longlive_optimized.tinyworld.render import GRID, NATIVE, layouts, render
from longlive_optimized.tinyworld.score import centre_of, shown
from longlive_optimized.tinyworld.world import Scene, Shape
from longlive_optimized.weights.locate import CONTROL_FILE
from longlive_optimized.weights.random_checkpoint import make_checkpoint


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    made = [kind(CONFIG, dtype=torch.float64) for kind in (Transformer, ControlBranch)]
    for network in made:
        for weight in network.parameters():
            weight.data.normal_(0, 0.15)
    return made


@torch.no_grad()
@pytest.mark.parametrize("script", [opening(), stream()], ids=["opening", "stream"])
def test_hints_are_the_engines(networks, script):
    """In denoising passes alone, block by block, whatever came before; each stream of the batch by itself."""
    model, branch = networks
    rows, blocks = len(script.rows), sum(script.rows[step.rows[0]].noisy for step in script.passes)
    latents, prompts = random(2, rows, *LATENT), random(2, 1, 6, 20, seed=2)
    contexts = random(2, blocks, 3, context_channels(CONFIG), *LATENT[1:], seed=3)
    times = torch.zeros(2, rows, dtype=torch.float64)
    for step in script.passes:
        times[:, step.rows] = 700.0 * script.rows[step.rows[0]].noisy
    flow = training.forward(model, latents, times, prompts, script, control=training.Control(branch, contexts)).flow
    grid = LATENT[1] // 2, LATENT[2] // 2
    for b in range(2):
        ring = RingCache(CONFIG, grid, window=12, sink=3, relative=True, dtype=torch.float64, device="cpu")
        control, cross, block = PassControl(branch, grid, 3), model.cross_cache(prompts[b, 0]), 0
        control.set_prompt(model.text(prompts[b, 0]))
        for step in script.passes:
            first = script.rows[step.rows[0]]
            ring.seek(first.frame, 3)
            hints = None
            if first.noisy:
                control.set_context(contexts[b, block], 1.0, 3)
                hints, block = control.hints, block + 1
            wanted = model(
                latents[b, list(step.rows)], model.modulation(times[b, step.rows[0]][None]), ring, cross, hints=hints
            )
            torch.testing.assert_close(flow[b, list(step.rows)], wanted, rtol=0, atol=1e-9)


def test_a_new_branch_changes_nothing(networks):
    model = networks[0].float()
    branch = new_branch(model)
    latents, prompts = random(2, 3, *LATENT).float(), random(2, 1, 6, 20).float()
    contexts, times = random(2, 1, 3, context_channels(CONFIG), *LATENT[1:]).float(), torch.full((2, 3), 500.0)
    flows = [
        training.forward(model, latents, times, prompts, opening(), control=control).flow
        for control in (None, training.Control(branch, contexts))
    ]
    assert torch.equal(*flows)
    flows[1].square().mean().backward()
    assert all(linear.weight.grad.abs().max() > 0 for linear in branch.after)
    networks[0].double()


def test_a_silhouette_is_where_the_shapes_are():
    scene = Scene((Shape("red", "square"),), "blue", "right")
    centres = layouts(1, *NATIVE, torch.Generator().manual_seed(0))
    video = render([(scene,)], centres, 21, *NATIVE)[0]
    outline = outlines(scene, centres, 2)
    assert [len(frames) for frames in outline] == [9, 12]
    grey = torch.cat(outline)
    assert grey.unique().min() == 0 and (grey[..., 0] == grey[..., 2]).all()
    wanted, got = grey[..., 0] > 95, shown(video)
    assert ((wanted & got).sum() / (wanted | got).sum()).item() > 0.8
    for a, b in zip(wanted, got, strict=True):
        assert sum(abs(p - q) for p, q in zip(centre_of(a.float()), centre_of(b.float()), strict=True)) < 1


def test_clips_start_beside_the_grid_as_often_as_asked():
    """All shapes of a clip by the same: they stay as far apart as the world wants them, around the edges too."""

    def drawn(off_grid: float) -> torch.Tensor:
        return starts(400, off_grid, torch.Generator().manual_seed(0))

    on = layouts(400, *NATIVE, torch.Generator().manual_seed(0))
    assert torch.equal(drawn(0.0), on)
    by = drawn(1.0) - on
    assert (by == by[:, :1]).all() and set(by.unique().tolist()) == set(range(GRID))
    assert len({tuple(pair) for pair in by[:, 0].tolist()}) == GRID * GRID  # with this seed
    moved = (drawn(0.5) != on).flatten(1).any(1).float().mean()
    assert 0.4 < moved < 0.58  # one of 64 moves by nothing
    assert torch.equal(drawn(0.5), drawn(0.5))


def test_a_few_steps_leave_a_module_that_the_engine_takes(tmp_path, capsys):
    folder = make_checkpoint(tmp_path / "model", "tiny")
    short = "--steps", "2", "--clips", "2", "--batch", "1", "--device", "cpu", "--off-grid", "1"
    main([str(folder), "--model", str(folder), *short])
    said = capsys.readouterr().out
    assert "step 1: loss" in said and CONTROL_FILE.name in said
    engine = LongLiveEngine(folder, OptimizationConfig(height=NATIVE[0], width=NATIVE[1], control=True), "cpu")
    trained = {name: slot.read() for name, slot in engine.control.checkpoint_slots().items()}
    begun = {name: slot.read() for name, slot in new_branch(engine.model).checkpoint_slots().items()}
    assert trained.keys() == begun.keys() and all(weight.isfinite().all() for weight in trained.values())
    assert any(weight.abs().max() > 0 for name, weight in trained.items() if "after_proj.weight" in name)


@pytest.mark.parametrize("share", ["-0.1", "1.1", "much", "nan"])
def test_a_share_that_is_none_is_refused(share, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--off-grid", share])
    assert "--off-grid" in capsys.readouterr().err


class Obedient:
    """An engine that shows the scene where the silhouette is, or ``off`` pixels beside it."""

    def __init__(self, off):
        self.off = off

    def open_stream(self, seed):
        return None

    def generate_block(self, request, stream):
        assert request.control.scale == 1
        shape = request.control.frames.roll(self.off, 2)[..., :1] > 95
        return torch.where(shape, torch.tensor([40, 200, 70]), torch.tensor([25, 60, 120])).to(torch.uint8)


def test_following_is_measured():
    exact, off = (measure(Obedient(pixels), 12, blocks=2) for pixels in (0, 5))
    assert exact["overlap"] > 0.8 and exact["pixels"] < 0.7
    assert off["overlap"] < 0.7 and abs(off["pixels"] - 5) < 0.7
    assert {"overlap", "pixels"} < exact.keys()


def test_silhouettes_stand_off_the_grid_if_asked():
    """Down and to the right, by so many pixels; it is those that are measured against."""
    seen = [], []
    for off, frames in zip((0, 4), seen, strict=True):
        watched = Obedient(0)
        make = watched.generate_block

        def noted(request, stream, make=make, frames=frames):
            frames.append(request.control.frames)
            return make(request, stream)

        watched.generate_block = noted
        assert measure(watched, 2, blocks=2, off=off)["overlap"] > 0.8
    for at, moved in zip(*seen, strict=True):
        assert torch.equal(at.roll((4, 4), (1, 2)), moved)
