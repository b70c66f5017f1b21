"""Scripts, and the forward over them, against the engine's passes over the ring in float64."""

import pytest
import torch

from longlive_optimized.engine.graphs import GraphCache, GraphSwitch
from longlive_optimized.engine.passes import Passes
from longlive_optimized.engine.recache import plan_recache
from longlive_optimized.engine.sampler import make_schedule
from longlive_optimized.model.config import ModelConfig
from longlive_optimized.model.ring_cache import RingCache
from longlive_optimized.model.transformer import Transformer
from longlive_optimized.tinyworld.forward import forward
from longlive_optimized.tinyworld.sample import Streams
from longlive_optimized.tinyworld.script import Script

CONFIG = ModelConfig(
    dim=64, ffn_dim=48, freq_dim=16, in_dim=4, out_dim=4, num_heads=2, num_layers=3, text_len=6, text_dim=20
)
LATENT = (4, 4, 6)
BLOCKS = 8
WAYS = [(6, "relative", 2), (6, "base", 5), (9, "relative", 1), (9, "base", 3), (12, "relative", 4)]
WAYS += [(12, "relative", 6), (12, "base", 2), (12, "base", 99)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Transformer(CONFIG, dtype=torch.float64)
    for weight in model.parameters():
        weight.data.normal_(0, 0.15)
    return model


def random(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ring(model, window, positions):
    relative = positions == "relative"
    grid = LATENT[1] // 2, LATENT[2] // 2
    return RingCache(CONFIG, grid, window=window, sink=3, relative=relative, dtype=torch.float64, device="cpu")


def seen_frames(script, index):
    """Frame and kind of the rows that a pass sees, in order."""
    rows = script.rows
    return [(rows[row].frame, rows[row].noisy) for row, _ in script.passes[index].keys]


@pytest.mark.parametrize(
    ("block", "past"),
    [
        (0, []),
        (1, [0, 1, 2]),
        (3, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (4, [0, 1, 2, 6, 7, 8, 9, 10, 11]),
        (8, [0, 1, 2, 18, 19, 20, 21, 22, 23]),
    ],
)
def test_windows_are_the_published_ones(block, past):
    """docs/model.md 3.3."""
    script = Script()
    for start in range(0, 3 * block, 3):
        script.clean(start)
    script.noisy(3 * block)
    own = [3 * block, 3 * block + 1, 3 * block + 2]
    assert seen_frames(script, -1) == [(f, False) for f in past] + [(f, True) for f in own]
    positions = [position for _, position in script.passes[-1].keys]
    last = positions[-1]
    assert [p - last for p in positions] == [slot - len(positions) + 1 for slot in range(len(positions))]


def test_a_recache_under_a_new_prompt():
    """docs/model.md 5.1, sinks kept: old sinks and the rest anew; up to a window's length all anew."""
    script = Script()
    for start in range(0, 18, 3):
        script.clean(start, 0)
    script.recache(18, 1)
    assert [script.rows[row].frame for row, _ in script.passes[-1].keys] == [0, 1, 2, *range(9, 18)]
    assert [script.rows[row].prompt for row, _ in script.passes[-1].keys] == [0] * 3 + [1] * 9
    early = Script()
    for start in range(0, 12, 3):
        early.clean(start, 0)
    early.recache(12, 1)
    assert [early.rows[row].prompt for row in early.held.values()] == [1] * 12


@pytest.mark.parametrize(("window", "positions", "switch"), WAYS)
def test_equals_the_ring(model, window, positions, switch):
    """Every denoising and context pass of a stream with a switch of prompts, each stream of the batch by itself."""
    script, compared = Script(window, positions=positions), []
    for block in range(BLOCKS):
        if block == switch:
            script.recache(3 * block, 1)
        compared += range(len(script.rows), len(script.rows) + 6)
        script.noisy(3 * block, int(block >= switch))
        script.clean(3 * block, int(block >= switch))
    latents, prompts = random(2, len(script.rows), *LATENT), random(2, 2, 6, 20, seed=2)
    times = torch.zeros(2, len(script.rows), dtype=torch.float64)
    for step in script.passes:
        if script.rows[step.rows[0]].noisy:
            times[:, step.rows] = 1000 * torch.rand(2, 1, dtype=torch.float64)
    flow = forward(model, latents, times, prompts, script).flow[:, compared]
    for b in range(2):
        wanted = ring_flows(model, ring(model, window, positions), latents[b], times[b], prompts[b], switch)
        torch.testing.assert_close(flow[b], wanted, rtol=0, atol=1e-9)
    assert flow.std() > 0.3


@torch.no_grad()
def ring_flows(model, ring, latents, times, prompts, switch):
    rows, flows = iter(range(len(latents))), []
    cross = model.cross_cache(prompts[0])

    def run(count, store_only=False):
        taken = [next(rows) for _ in range(count)]
        modulation = model.modulation(times[taken[0]][None])
        return model(latents[taken], modulation, ring, cross, store_only=store_only)

    for block in range(BLOCKS):
        if block == switch:
            cross = model.cross_cache(prompts[1])
            plan = plan_recache(3 * block, ring.window, 3, True)
            ring.seek(*plan)
            run(plan.frames, store_only=True)
        for _ in ("denoise", "clean"):
            ring.seek(3 * block, 3)
            flows.append(run(3))
    return torch.cat(flows)


@pytest.mark.parametrize(("window", "positions", "switch"), WAYS)
def test_streams_equal_the_engine_s_passes(model, window, positions, switch):
    """Block after block with memory, through four steps, context pass and recache."""
    schedule = make_schedule((1000, 750, 500, 250), "longlive")
    prompts, noise = random(2, 2, 6, 20), random(BLOCKS, 4, 2, 3, *LATENT, seed=3)
    streams, made = Streams(model, prompts[:, 0], window, positions), []
    for block in range(BLOCKS):
        if block == switch:
            streams.switch(prompts[:, 1])
        made.append(streams.denoise(noise[block], schedule))
        streams.keep(made[-1])
    for b in range(2):
        wanted = engine_latents(model, ring(model, window, positions), prompts[b], noise[:, :, b], schedule, switch)
        torch.testing.assert_close(torch.cat([block[b] for block in made]), wanted, rtol=0, atol=1e-9)


@torch.no_grad()
def engine_latents(model, ring, prompts, noise, schedule, switch):
    passes = Passes(model, ring, torch.zeros(LATENT, dtype=torch.float64), GraphCache(GraphSwitch(model.device)))
    passes.set_prompt(prompts[0])
    made = torch.empty(0, *LATENT, dtype=torch.float64)
    for block in range(BLOCKS):
        if block == switch:
            passes.set_prompt(prompts[1])
            plan = plan_recache(3 * block, ring.window, 3, True)
            ring.seek(*plan)
            passes.context(made[-plan.frames :])
        inputs = passes.inputs(3, len(schedule))
        inputs.draw(iter(noise[block]))
        inputs.set_schedule(tuple(schedule))
        made = torch.cat((made, passes.denoise(3 * block, inputs)))
        passes.context(made[-3:])
    return made
