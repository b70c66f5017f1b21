"""The table of what runs in 8 bits, and a network that follows it."""

import pytest
import torch

from longlive_optimized.model import precision
from longlive_optimized.model.config import ModelConfig
from longlive_optimized.model.linear import Linear, Quantized
from longlive_optimized.model.precision import PLAIN, Parts, parts_at, policy_of
from longlive_optimized.model.transformer import Transformer
from support.networks import ring_of, vector_network

CONFIG = ModelConfig(
    dim=64, ffn_dim=96, freq_dim=16, in_dim=4, out_dim=4, num_heads=2, num_layers=3, text_len=8, text_dim=20
)
GRID = (4, 6)


@pytest.fixture
def kept(monkeypatch):
    """Set exceptions of the table."""

    def keep(**layers):
        monkeypatch.setattr(precision, "KEPT", layers)
        policy_of.cache_clear()

    yield keep
    policy_of.cache_clear()


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    for p in model.parameters():
        p.normal_(0, p.shape[-1] ** -0.5)
    model.hold_int8()
    return model


def flow(model: Transformer, policy, blocks: int = 2) -> torch.Tensor:
    """Of the second block, over the keys of both."""
    generator = torch.Generator().manual_seed(1)
    ring, cross = ring_of(model, GRID), model.cross_cache(torch.randn(5, 20, generator=generator))
    for block in range(blocks):
        ring.seek(3 * block, 3)
        x = torch.randn(3, 4, 8, 12, generator=generator)
        out = model(x, model.modulation(torch.tensor([500.0])), ring, cross, policy)
    return out


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


def test_exceptions_are_counted_from_either_end(kept):
    assert policy_of("bf16", 7) == PLAIN and parts_at(PLAIN, 3) == Parts()
    kept()
    assert policy_of("int8", 7) == (Parts(*[True] * 6),) * 7
    kept(ffn_out=(0, 1, -3, -2, -1), cross_q=(4,))
    policy = policy_of("int8", 7)
    assert [parts.ffn_out for parts in policy] == [False, False, True, True, False, False, False]
    assert [parts.cross_q for parts in policy] == [True] * 4 + [False] + [True] * 2
    assert all(parts.qkv and parts.out and parts.cross_out and parts.ffn_in for parts in policy)
    assert parts_at(policy, 4) == policy[4] and parts_at(policy, 7) == Parts()  # the head
    assert [parts.cross_q for parts in policy_of("int8", 3)] == [True] * 3  # a smaller network has no layer 4
    kept(**dict.fromkeys(Parts._fields, (0, 1)))
    assert policy_of("int8", 2) == PLAIN != policy_of("int8", 3)


def test_every_part_of_the_table_runs_and_is_the_only_one(model, monkeypatch):
    """Each part by itself takes its own int8 product, in the layers that the table names and in no other."""
    plain, ran = flow(model, PLAIN), []
    names = {id(getattr(block, name)): (i, name) for i, block in enumerate(model.blocks) for name in Parts._fields}
    for method in ("forward", "gelu"):
        before = getattr(Linear, method)

        def watch(linear, x, *rest, before=before):
            if isinstance(x, Quantized):
                ran.append(names[id(linear)])
            return before(linear, x, *rest)

        monkeypatch.setattr(Linear, method, watch)
    for part in Parts._fields:
        ran.clear()
        policy = (Parts(), Parts(**{part: True}), Parts())
        assert 0 < error(flow(model, policy), plain) < 0.05
        assert {*ran} == {(1, part)}
    ran.clear()
    assert 0 < error(flow(model, policy_of("int8", 3)), plain) < 0.1
    assert {*ran} == {*names.values()}


def test_parts_that_are_kept_hold_no_copies(kept):
    kept(ffn_out=(0, -1))
    model = Transformer(CONFIG)
    for p in model.parameters():
        p.normal_()
    model.hold_int8()
    held = [block.ffn_out.int8_weight is not None for block in model.blocks]
    assert held == [False, True, False] and model.holds_int8
    assert flow(model, policy_of("int8", 3)).isfinite().all()


def test_a_context_pass_writes_quantised_keys(model):
    ring, cross = ring_of(model, GRID), model.cross_cache(torch.randn(5, 20))
    x, modulation = torch.randn(3, 4, 8, 12), model.modulation(torch.tensor([0.0]))
    keys = []
    for policy in (PLAIN, policy_of("int8", 3)):
        ring.seek(0, 3)
        assert model(x, modulation, ring, cross, policy, store_only=True) is None
        keys.append(ring.k.clone())
    assert 0 < error(keys[1], keys[0]) < 0.1


def alone(model: Transformer) -> Transformer:
    """The same network with its weights in 8 bits alone."""
    other = Transformer(CONFIG, int8_only=True)
    slots = other.checkpoint_slots()
    for key, slot in model.checkpoint_slots().items():
        slots[key].write(slot.read())
    return other


def test_weights_in_8_bits_alone_give_what_the_copies_give(model):
    other = alone(model)
    policy = policy_of("int8", 3)
    assert other.holds_int8 and torch.equal(flow(other, policy), flow(model, policy))
    assert 0 < error(flow(other, PLAIN), flow(model, PLAIN)) < 0.03
    assert other.checkpoint_slots().keys() == model.checkpoint_slots().keys()
    before = [t.clone() for t in other.buffers()]
    other.hold_int8(), other.weights_changed()
    assert all(map(torch.equal, before, other.buffers()))


def test_parts_that_are_kept_have_their_weights_alone(kept):
    kept(ffn_out=(0, -1), cross_q=(1,))
    model = Transformer(CONFIG, int8_only=True)
    held = [[name for name in Parts._fields if getattr(block, name).weight is not None] for block in model.blocks]
    assert held == [["ffn_out"], ["cross_q"], ["ffn_out"]] and model.holds_int8
    assert all(
        (getattr(block, n).int8_weight is None) == (n in h)
        for block, h in zip(model.blocks, held, strict=True)
        for n in Parts._fields
    )


def test_what_a_weight_takes():
    """A byte for each element of the products, and a scale a row; the rest as ever."""
    model, other = Transformer(CONFIG, device="meta"), Transformer(CONFIG, device="meta", int8_only=True)
    products = [getattr(block, name).weight for block in model.blocks for name in Parts._fields]
    saved = sum(3 * weight.numel() - 4 * len(weight) for weight in products)
    nbytes = [sum(t.nbytes for t in (*m.parameters(), *m.buffers())) for m in (model, other)]
    assert nbytes[0] - nbytes[1] == saved


def test_a_network_of_other_widths_cannot_hold_8_bits_alone():
    with pytest.raises(
        ValueError, match=r"low_memory must be false: int8 wants multiples of 32, the model has dim 48$"
    ):
        Transformer(vector_network().config, int8_only=True)


def test_a_network_of_other_widths_is_refused():
    model = vector_network()
    with pytest.raises(ValueError, match=r"precision must be bf16: int8 wants multiples of 32, the model has dim 48$"):
        model.hold_int8()
    assert not model.holds_int8 and not [*model.buffers()]
