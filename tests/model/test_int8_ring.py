"""The ring with keys in int8 beside the ring with keys in float32, fed alike."""

import copy

import pytest
import torch

from longlive_optimized.engine.recache import plan_recache
from longlive_optimized.model import precision
from longlive_optimized.model.config import ModelConfig
from longlive_optimized.model.precision import attention_in_8_bits
from longlive_optimized.model.ring_cache import RingCache
from longlive_optimized.model.transformer import Transformer
from support.networks import ring_of

CONFIG = ModelConfig(
    dim=64, ffn_dim=32, freq_dim=8, in_dim=2, out_dim=2, num_heads=2, num_layers=2, text_len=3, text_dim=4
)
GRID = (2, 4)
TOKENS = 8
NAN = float("nan")


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    net = Transformer(CONFIG)
    for p in net.parameters():
        p.normal_(0, p.shape[-1] ** -0.5)
    for block in net.blocks:
        block.k_gain.add_(1), block.q_gain.add_(1)
    return net


def int8_ring(model, window=12, sink=3, relative=False) -> RingCache:
    """With storage that anything may lie in."""
    ring = ring_of(model, GRID, window, sink, relative, int8=True)
    ring.v.fill_(NAN), ring.k_sink.fill_(NAN), ring._own.fill_(NAN)
    ring.k_int8.k.fill_(127), ring.k_int8.scale.fill_(NAN), ring.k_int8.offset.fill_(NAN)
    return ring


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


class Both:
    """A pass over each of the two rings, of the same latents."""

    def __init__(self, model, *rings: RingCache):
        self.model, self.rings, self.cross = model, rings, model.cross_cache(torch.randn(2, 4))
        self.draw = torch.Generator().manual_seed(1)

    def flows(self, start: int, frames: int, origin: int = 0, t: float = 500.0) -> list[torch.Tensor]:
        x = torch.randn(frames, 2, 4, 8, generator=self.draw)
        for ring in self.rings:
            ring.seek(start, frames, origin)
        modulation = self.model.modulation(torch.tensor([t]))
        return [self.model(x, modulation, ring, self.cross) for ring in self.rings]


@pytest.mark.parametrize("relative", [False, True], ids=["base", "relative"])
@pytest.mark.parametrize("sink", [0, 1, 3, 6])
@pytest.mark.parametrize(("window", "first"), [(7, 3), (9, 4), (12, 3)])
def test_flows_are_close_and_the_first_ones_equal(model, window, first, sink, relative):
    both = Both(model, ring_of(model, GRID, window, sink, relative), int8_ring(model, window, sink, relative))
    p = 0
    for block in range(9):
        for t in (1000.0, 0.0):
            plain, int8 = both.flows(p, first if block == 0 else 3, t=t)
            assert torch.equal(plain, int8) if block == 0 else 0 < error(int8, plain) < 0.003
        p += first if block == 0 else 3
        if block in (1, 6):  # a recache, from nothing and one that keeps the sinks
            plan = plan_recache(p, window, sink, global_sink=True)
            plain, int8 = both.flows(*plan)
            alone = plan.start == plan.origin
            assert torch.equal(plain, int8) if alone else error(int8, plain) < 0.003
    plan = plan_recache(p, window, sink, global_sink=False)
    assert torch.equal(*both.flows(*plan)) and error(*both.flows(p, 3, plan.origin)) < 0.003


@pytest.mark.parametrize("relative", [False, True], ids=["base", "relative"])
def test_one_ring_changes_its_keys_back_and_forth(model, relative):
    plain, changed = (ring_of(model, GRID, 9, relative=relative) for _ in range(2))
    both = Both(model, plain, changed)
    for block in range(16):
        changed.hold(block // 3 % 2 == 1)
        assert changed.keys_read == ("int8" if changed.holds_int8 else "dtype")
        flows = both.flows(3 * block, 3)
        assert torch.equal(*flows) if block < 3 else error(*reversed(flows)) < 0.003
    assert changed.keys(0).shape == plain.keys(0).shape and plain.keys(0) is not plain.keys(1)


def test_keys_stay_where_they_are_and_take_their_mean_for_the_offset(model):
    ring = ring_of(model, GRID, 9)
    Both(model, ring).flows(0, 6)
    ring.k[:, 6:] = NAN  # not valid
    before = ring.k[:, :6].clone()
    ring.hold(True)
    torch.testing.assert_close(ring.k_int8.offset, before.mean((1, 2)))
    for layer in range(2):
        keys = ring.keys(layer)
        step = ring.k_int8.scale[layer].amax()
        assert keys.dtype == torch.float32 and (keys[:6] - before[layer]).abs().amax() < 3 * step
        assert 0 < error(keys[:6], before[layer]) < 0.02
    ring.k.fill_(NAN)
    ring.hold(False)
    assert error(ring.k[:, :6], before) < 0.02
    ring.hold(False)  # is no change
    assert error(ring.k[:, :6], before) < 0.02


def test_any_offset_gives_the_same_attention(model):
    ring = ring_of(model, GRID, 9)
    Both(model, ring).flows(0, 9)
    rings = [copy.deepcopy(ring) for _ in range(2)]
    given = rings[0].k.mean((1, 2)) + torch.randn(2, 2, 32)
    rings[0].hold(True), rings[1].hold(True, given)
    assert torch.equal(rings[1].k_int8.offset, given) and not torch.equal(rings[0].k_int8.offset, given)
    assert error(*Both(model, *rings).flows(9, 3)) < 0.003


def test_keys_that_are_not_finite_leave_the_offset_finite(model):
    ring = ring_of(model, GRID, 9)
    Both(model, ring).flows(0, 9)
    ring.k[0, 2, 1, 0, 5] = NAN
    ring.k[1, 2, 1, 1, 6] = float("inf")
    ring.hold(True)
    assert ring.k_int8.offset.isfinite().all() and ring.k_int8.offset[0, 0, 5] == ring.k_int8.offset[1, 1, 6] == 0
    lost = ~ring.k_int8.scale.isfinite()
    assert lost.nonzero().tolist() == [[0, 0, 2], [1, 1, 2]]  # tokens 16 to 23 of two heads


def test_the_offset_is_that_of_the_last_pass_over_its_own_keys_alone(model):
    ring, plain = int8_ring(model), ring_of(model, GRID)
    both = Both(model, ring, plain)

    def offset() -> torch.Tensor:
        return ring.k_int8.offset.clone()

    both.flows(0, 3)
    first = offset()
    assert torch.equal(first, plain.k[:, :3].mean((1, 2)))
    both.flows(3, 3), both.flows(6, 6), both.flows(12, 3)
    assert torch.equal(offset(), first)
    both.flows(9, 3, 9)
    assert not torch.equal(offset(), first)


def test_storage_is_allocated_when_it_is_first_asked_for_and_stays(model):
    ring, plain = ring_of(model, GRID, int8=True), ring_of(model, GRID)
    assert ring.k is None and plain.k_int8 is None
    ring.reserve(True), plain.reserve(False)
    assert ring.k is None and plain.k_int8 is None
    places = [t.data_ptr() for t in (*ring.k_int8, ring._own)]
    ring.reserve(False)
    assert ring.k.shape == ring.v.shape and ring.k.dtype == ring.v.dtype and ring.holds_int8
    k = ring.k.data_ptr()
    for int8 in (False, True, False):
        ring.hold(int8)
    assert ring.k.data_ptr() == k and [t.data_ptr() for t in (*ring.k_int8, ring._own)] == places
    shapes = [tuple(t.shape) for t in (*ring.k_int8, ring._own)]
    assert shapes == [(2, 12, 8, 2, 32), (2, 2, 12), (2, 2, 32), (12, 8, 2, 32)]
    assert [t.dtype for t in ring.k_int8] == [torch.int8, torch.float32, torch.float32]


@pytest.mark.parametrize("window", range(6, 14))
def test_scales_of_each_head_begin_at_16_bytes(model, window):
    ring = ring_of(model, GRID, window, int8=True)
    layer, head, one = ring.k_int8.scale.stride()
    assert one == 1 and layer % 4 == head % 4 == 0 and window <= ring.k_int8.scale.shape[-1] < window + 4


@pytest.mark.parametrize("relative", [False, True], ids=["base", "relative"])
@pytest.mark.parametrize("window", [6, 7, 9, 15])
def test_another_window_sees_the_same_sinks(model, window, relative):
    """A window in the storage of 12 frames, or in new storage, whatever lies in the other slots."""
    plain, int8 = ring_of(model, GRID, 12, relative=relative), int8_ring(model, relative=relative)
    Both(model, plain, int8).flows(0, 12)
    rings = [ring_of(model, GRID, window, relative=relative), int8_ring(model, window, relative=relative)]
    rings[0].take_sinks(plain), rings[1].take_sinks(int8)
    assert rings[1].holds_int8 and torch.equal(rings[1].k_int8.offset, int8.k_int8.offset)
    if window <= 12:
        int8.resize(window)
        int8.v[:, window:], int8.k_int8.scale[..., window * TOKENS // 8 :] = NAN, NAN
        rings.append(int8)
    both, plan = Both(model, *rings), plan_recache(12 if window <= 12 else 18, window, 3, global_sink=True)
    end = plan.start + plan.frames
    for start, frames in [(plan.start, plan.frames)] + [(p, 3) for p in range(end, end + 12, 3)]:
        wanted, *got = both.flows(start, frames)
        assert error(got[0], wanted) < 0.003 and (len(got) == 1 or torch.equal(*got))


def test_sinks_are_taken_by_a_ring_of_the_other_kind_too(model):
    taken, ring = int8_ring(model, 15), ring_of(model, GRID, 12)
    Both(model, ring).flows(0, 12)
    taken.take_sinks(ring)
    assert not taken.holds_int8 and torch.equal(taken.keys(1)[:3], ring.keys(1)[:3])
    taken.hold(True)
    torch.testing.assert_close(taken.k_int8.offset, ring.k[:, :3].mean((1, 2)))


def test_a_grid_without_whole_runs_is_refused(model):
    with pytest.raises(ValueError, match=r"grid must have a multiple of 8 tokens for int8, got 6$"):
        ring_of(model, (2, 3), int8=True)
    ring = ring_of(model, (2, 3))
    with pytest.raises(ValueError, match=r"got 6$"):
        ring.hold(True)
    assert not ring.holds_int8 and ring.keys_read == "dtype"


def test_what_attention_in_8_bits_wants(monkeypatch):
    wanted = {(128, 1560): True, (128, 24): True, (64, 8): True, (32, 8): True}
    wanted |= dict.fromkeys([(128, 6), (128, 12), (16, 8), (24, 8), (96, 8), (256, 8)], False)
    for fits, expected in wanted.items():
        assert attention_in_8_bits("int8", *fits) == expected and not attention_in_8_bits("bf16", *fits)
    monkeypatch.setattr(precision, "KEPT", {"ffn_out": (0,), "attention": ()})
    assert attention_in_8_bits("int8", 128, 8)
    monkeypatch.setattr(precision, "KEPT", {"attention": (2,)})
    assert not attention_in_8_bits("int8", 128, 8)
