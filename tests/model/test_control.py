"""The control branch against an independent restatement, and what it is to the network."""

import dataclasses

import pytest
import torch

from longlive_optimized.model.config import ModelConfig
from longlive_optimized.model.control import ControlBranch, PassControl, context_channels, control_shapes
from longlive_optimized.model.precision import policy_of
from longlive_optimized.model.transformer import Transformer
from support.control import Restated
from support.networks import VECTOR_CONFIG, VECTOR_GRID, ring_of, stored

CONFIG = dataclasses.replace(VECTOR_CONFIG, num_layers=5)
SHAPE = (3, CONFIG.in_dim, 2 * VECTOR_GRID[0], 2 * VECTOR_GRID[1])
WIDE = ModelConfig(dim=64, ffn_dim=128, freq_dim=16, num_heads=2, num_layers=4, text_len=8, text_dim=20)


def filled(network, seed):
    generator = torch.Generator().manual_seed(seed)
    for key, slot in network.checkpoint_slots().items():
        gain = "norm" in key and key.endswith("weight")
        std = 0.2 if gain or len(slot.shape) < 2 else slot.shape[1:].numel() ** -0.5
        slot.write(torch.randn(slot.shape, generator=generator, dtype=torch.float64) * std + gain)
    return network


class Pair:
    """A network and its branch, with a prompt, for one block at a time."""

    def __init__(self, dtype=torch.float64, config=CONFIG, grid=VECTOR_GRID, seed=0):
        self.model = filled(Transformer(config, dtype=dtype), seed)
        self.branch = filled(ControlBranch(config, dtype=dtype), seed + 1)
        self.generator = torch.Generator().manual_seed(seed + 2)
        self.config, self.grid, self.dtype = config, grid, dtype
        self.embedding = self.draw(5, config.text_dim)
        self.cross = self.model.cross_cache(self.embedding)
        self.control = PassControl(self.branch, grid, most=4)
        self.control.set_prompt(self.model.text(self.embedding))
        self.ring = ring_of(self.model, grid)

    def draw(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def latents(self, frames=3):
        return self.draw(frames, self.config.in_dim, 2 * self.grid[0], 2 * self.grid[1])

    def context(self, frames=3):
        return self.draw(frames, context_channels(self.config), 2 * self.grid[0], 2 * self.grid[1])

    def flow(self, latents, timestep=500.0, start=0, controlled=True, policy=(), **rest):
        self.ring.seek(start, len(latents))
        modulation = self.model.modulation(torch.tensor([timestep], dtype=torch.float64))
        hints = self.control.hints if controlled else None
        return self.model(latents, modulation, self.ring, self.cross, policy, hints=hints, **rest)

    def hints(self, latents, timestep=500.0, policy=()):
        from longlive_optimized.model.transformer import patchify

        x = self.model.patch(patchify(latents))
        time = self.model.modulation(torch.tensor([timestep], dtype=torch.float64)).time
        return [*self.control.hints(x, time, policy)]

    def restated(self):
        return Restated(stored(self.model), stored(self.branch), self.config.num_heads, self.config.num_layers)


def close(got, wanted, bound=1e-9):
    assert (got - wanted).abs().max() <= bound * wanted.abs().max()


@pytest.mark.parametrize(("frames", "given"), [(3, 3), (3, 1), (3, 4), (4, 4), (4, 3), (1, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_hints_are_those_of_the_restatement(frames, given, dtype):
    """A context shorter than the pass is filled up with zeros before ``before_proj``, a longer one is cut."""
    pair = Pair(dtype)
    latents, context = pair.latents(frames), pair.context(given)
    pair.control.set_context(context, 1.0, frames)
    hints = pair.hints(latents)
    flow, wanted = pair.restated().forward(latents, 500.0, pair.embedding, CONFIG.text_len, context)
    bound = 1e-11 if dtype == torch.float64 else 1e-5
    assert [hint is not None for hint in hints[:5]] == [True, False, True, False, True]
    for hint, restated in zip(hints[::2], wanted, strict=True):
        close(hint.tokens, restated, bound)
    close(pair.flow(latents), flow, bound)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.0])
def test_the_scale_is_read_anew_in_each_pass(scale):
    pair = Pair()
    latents, context = pair.latents(), pair.context()
    without = pair.flow(latents, controlled=False)
    pair.control.set_context(context, scale, 3)
    flow, _ = pair.restated().forward(latents, 500.0, pair.embedding, CONFIG.text_len, context, scale)
    close(pair.flow(latents), flow, 1e-7)  # the scale is a float32
    assert torch.equal(pair.flow(latents), without) == (scale == 0)


def test_without_hints_nothing_changes():
    """Neither the flow nor what a context pass leaves in the ring, whatever the buffers hold."""
    pair, other = Pair(), Pair()
    pair.control.set_context(pair.context() * torch.nan, 1.0, 3)
    latents = pair.latents()
    for each in (pair, other):
        assert each.flow(latents, 0.0, controlled=False, store_only=True) is None
    assert torch.equal(pair.ring.k, other.ring.k)
    assert torch.equal(pair.flow(latents, controlled=False), other.flow(latents, controlled=False))


def test_hints_do_not_depend_on_where_the_block_stands():
    """But keys and values of the layers above the first hint contain them."""
    pair = Pair()
    latents, context = pair.latents(), pair.context()
    pair.control.set_context(context, 1.0, 3)
    hints = pair.hints(latents)
    for start in range(0, 18, 3):
        pair.flow(pair.latents(), 0.0, start, controlled=False, store_only=True)
    for one, other in zip(hints, pair.hints(latents), strict=True):
        assert one is None or torch.equal(one.tokens, other.tokens)
    keys = []
    for controlled in (True, False):
        pair.flow(latents, start=18, controlled=controlled)
        keys.append([pair.ring.k[layer].clone() for layer in range(CONFIG.num_layers)])
    same = [torch.equal(*each) for each in zip(*keys, strict=True)]
    assert same == [True, False, False, False, False]


def test_each_prompt_has_hints_of_its_own():
    pair = Pair()
    latents = pair.latents()
    pair.control.set_context(pair.context(), 1.0, 3)
    before = pair.hints(latents)[0].tokens
    pair.control.set_prompt(pair.model.text(pair.draw(2, CONFIG.text_dim)))
    between = pair.hints(latents)[0].tokens
    pair.control.set_prompt(pair.model.text(pair.embedding))
    assert torch.equal(before, pair.hints(latents)[0].tokens) and not torch.allclose(before, between)


def test_hints_are_computed_when_they_are_asked_for(monkeypatch):
    """One hint's memory at a time."""
    pair, made = Pair(), []
    pair.control.set_context(pair.context(), 1.0, 3)
    for n, after in enumerate(pair.branch.after):
        monkeypatch.setattr(after, "forward", lambda c, n=n, f=after.forward: made.append(n) or f(c))
    x = pair.draw(3 * 24, CONFIG.dim)
    hints = pair.control.hints(x, pair.model.modulation(torch.tensor([1.0], dtype=torch.float64)).time, ())
    seen = []
    for _ in range(5):
        next(hints)
        seen.append(len(made))
    assert seen == [1, 1, 2, 2, 3]


def test_layers_of_the_branch_run_in_8_bits_as_those_beside_them():
    pair = Pair(torch.float32, WIDE, (2, 4))
    latents, context = pair.latents(), pair.context()
    pair.control.set_context(context, 1.0, 3)
    assert not pair.branch.holds_int8
    plain = pair.hints(latents)
    pair.model.hold_int8()
    pair.branch.hold_int8()
    assert pair.branch.holds_int8 and sum(1 for _ in pair.branch.int8_linears()) == 2 * 6
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(plain[::2], pair.hints(latents)[::2], strict=True))
    of_second = policy_of("int8", 4)
    for policy, differs in ((of_second, [True, True]), ((of_second[0],), [True, True])):
        got = pair.hints(latents, policy=policy)[::2]
        errors = [((a.tokens - b.tokens).norm() / b.tokens.norm()).item() for a, b in zip(got, plain[::2], strict=True)]
        assert [error > 0 for error in errors] == differs and max(errors) < 0.05
    alone = ControlBranch(WIDE, int8_only=True)
    for key, slot in alone.checkpoint_slots().items():
        slot.write(stored(pair.branch)[key])
    control = PassControl(alone, (2, 4), 4)
    control.set_prompt(pair.model.text(pair.embedding))
    control.set_context(context, 1.0, 3)
    beside, pair.control = pair.hints(latents, policy=of_second), control
    for one, other in zip(beside[::2], pair.hints(latents, policy=of_second)[::2], strict=True):
        assert torch.equal(one.tokens, other.tokens)


def test_the_published_module_has_the_published_size():
    shapes = control_shapes(ModelConfig())
    assert sum(shape.numel() for shape in shapes.values()) == 734_975_232 and len(shapes) == 2 + 15 * 29 + 2
    assert shapes["vace_patch_embedding.weight"] == (1536, 96, 1, 2, 2)
    assert shapes["vace_blocks.0.before_proj.weight"] == shapes["vace_blocks.14.after_proj.weight"] == (1536, 1536)
    assert "vace_blocks.1.before_proj.weight" not in shapes and "vace_blocks.15.modulation" not in shapes


def test_a_network_of_odd_widths_is_refused_in_8_bits():
    config = dataclasses.replace(WIDE, dim=48)
    with pytest.raises(ValueError, match="low_memory must be false"):
        ControlBranch(config, int8_only=True)
    with pytest.raises(ValueError, match="precision must be bf16"):
        ControlBranch(config).hold_int8()


def test_a_hint_is_added_with_one_rounding():
    pair = Pair(torch.bfloat16, WIDE, (2, 4))
    x, hint = pair.draw(24, 64), pair.draw(24, 64)
    wanted = (x.double() + hint.double() * torch.tensor(0.7).double()).to(torch.bfloat16)
    assert (x.addcmul_(hint, torch.tensor([0.7])) - wanted).abs().max() <= 2**-7 * wanted.abs().max()
    assert ((x - wanted) != 0).float().mean() < 0.01
