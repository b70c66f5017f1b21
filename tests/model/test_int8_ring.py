"""The ring in 8 bits, keys alone or values of some or all layers too, beside the ring in float32, fed alike."""

import copy

import pytest
import torch

from longlive_optimized.engine.recache import plan_recache
from longlive_optimized.kernels.quantize_values import quantize_values
from longlive_optimized.model import precision
from longlive_optimized.model.config import ModelConfig
from longlive_optimized.model.precision import attention_in_8_bits, values_in_8_bits
from longlive_optimized.model.ring_cache import VALUE_RANGE, Fp8Values, RingCache
from longlive_optimized.model.transformer import Transformer
from support.networks import ring_of
from support.rings import in_8_bits, poison

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


NONE, FIRST, LAST, ALL = (), (True, False), (False, True), (True, True)
BOUND = {NONE: 0.003, FIRST: 0.02, LAST: 0.02, ALL: 0.02}  # what 8 bits may change in a flow


@pytest.fixture(params=[NONE, FIRST, LAST, ALL], ids=["keys", "values-of-first", "values-of-last", "values-too"])
def values8(request) -> tuple[bool, ...]:
    return request.param


def in_e4m3(ring: RingCache) -> list[Fp8Values]:
    """Of the layers that have values so."""
    return [of_layer for of_layer in ring.cache8.values if of_layer is not None]


def stacked(layers: dict[int, torch.Tensor]) -> torch.Tensor:
    return torch.stack([layers[index] for index in sorted(layers)])


def int8_ring(model, values8, window=12, sink=3, relative=False) -> RingCache:
    """With storage that anything may lie in."""
    ring = ring_of(model, GRID, window, sink, relative, int8=True, values8=values8)
    poison(ring)
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
def test_flows_are_close_and_the_first_ones_equal(model, values8, window, first, sink, relative):
    both = Both(model, ring_of(model, GRID, window, sink, relative), int8_ring(model, values8, window, sink, relative))
    p = 0
    for block in range(9):
        for t in (1000.0, 0.0):
            plain, int8 = both.flows(p, first if block == 0 else 3, t=t)
            assert torch.equal(plain, int8) if block == 0 else 0 < error(int8, plain) < BOUND[values8]
        p += first if block == 0 else 3
        if block in (1, 6):  # a recache, from nothing and one that keeps the sinks
            plan = plan_recache(p, window, sink, global_sink=True)
            plain, int8 = both.flows(*plan)
            alone = plan.start == plan.origin
            assert torch.equal(plain, int8) if alone else error(int8, plain) < BOUND[values8]
    plan = plan_recache(p, window, sink, global_sink=False)
    assert torch.equal(*both.flows(*plan)) and error(*both.flows(p, 3, plan.origin)) < BOUND[values8]


@pytest.mark.parametrize("relative", [False, True], ids=["base", "relative"])
def test_one_ring_changes_its_keys_back_and_forth(model, values8, relative):
    plain, changed = (ring_of(model, GRID, 9, relative=relative, values8=each) for each in (NONE, values8))
    both = Both(model, plain, changed)
    for block in range(16):
        changed.hold(block // 3 % 2 == 1)
        assert changed.keys_read == ("int8" if changed.holds_int8 else "dtype")
        flows = both.flows(3 * block, 3)
        assert torch.equal(*flows) if block < 3 else error(*reversed(flows)) < BOUND[values8]
    assert changed.keys(0).shape == plain.keys(0).shape and plain.keys(0) is not plain.keys(1)
    assert changed.values(0).shape == plain.values(0).shape and plain.values(0) is not plain.values(1)


def test_keys_stay_where_they_are_and_take_their_mean_for_the_offset(model):
    ring = ring_of(model, GRID, 9)
    Both(model, ring).flows(0, 6)
    ring.k[:, 6:] = NAN  # not valid
    before = ring.k[:, :6].clone()
    ring.hold(True)
    torch.testing.assert_close(ring.cache8.keys.offset, before.mean((1, 2)))
    for layer in range(2):
        keys = ring.keys(layer)
        step = ring.cache8.keys.scale[layer].amax()
        assert keys.dtype == torch.float32 and (keys[:6] - before[layer]).abs().amax() < 3 * step
        assert 0 < error(keys[:6], before[layer]) < 0.02
    ring.k.fill_(NAN)
    ring.hold(False)
    assert error(ring.k[:, :6], before) < 0.02
    ring.hold(False)  # is no change
    assert error(ring.k[:, :6], before) < 0.02


def test_other_offsets_and_scales_give_the_same_attention(model, values8):
    ring = ring_of(model, GRID, 9, values8=values8)
    Both(model, ring).flows(0, 9)
    rings = [copy.deepcopy(ring) for _ in range(3)]
    rings[0].hold(True)
    given = copy.deepcopy(rings[0].cache8)
    given.keys.offset.add_(torch.randn(2, 2, 32))
    for of_layer in filter(None, given.values):
        of_layer.offset.add_(0.1), of_layer.scale.mul_(1.7)
    rings[1].hold(True, given)
    assert torch.equal(rings[1].cache8.keys.offset, given.keys.offset)
    for mine, theirs in zip(rings[1].cache8.values, given.values, strict=True):
        assert mine is theirs is None or all(map(torch.equal, mine[1:], theirs[1:]))
    assert not torch.equal(rings[0].cache8.keys.offset, given.keys.offset)
    one, other, plain = Both(model, *rings).flows(9, 3)
    assert max(error(one, plain), error(other, plain)) < BOUND[values8] and not torch.equal(one, other)


def test_keys_that_are_not_finite_leave_the_offset_finite(model):
    ring = ring_of(model, GRID, 9)
    Both(model, ring).flows(0, 9)
    ring.k[0, 2, 1, 0, 5] = NAN
    ring.k[1, 2, 1, 1, 6] = float("inf")
    ring.hold(True)
    assert (
        ring.cache8.keys.offset.isfinite().all()
        and ring.cache8.keys.offset[0, 0, 5] == ring.cache8.keys.offset[1, 1, 6] == 0
    )
    lost = ~ring.cache8.keys.scale.isfinite()
    assert lost.nonzero().tolist() == [[0, 0, 2], [1, 1, 2]]  # tokens 16 to 23 of two heads


def test_offset_and_scale_are_those_of_the_last_pass_over_its_own_keys_alone(model):
    ring, plain = int8_ring(model, ALL), ring_of(model, GRID)
    both = Both(model, ring, plain)

    def now() -> list[torch.Tensor]:
        _, scales, offsets = zip(*in_e4m3(ring), strict=True)
        return [ring.cache8.keys.offset.clone(), torch.stack(offsets), torch.stack(scales)]

    both.flows(0, 3)
    first, v = now(), stacked(plain.v)[:, :3]
    assert torch.equal(first[0], plain.k[:, :3].mean((1, 2))) and torch.equal(first[1], v.mean((1, 2)))
    torch.testing.assert_close(first[2], (v - v.mean((1, 2), keepdim=True)).abs().amax((1, 2)) / VALUE_RANGE)
    both.flows(3, 3), both.flows(6, 6), both.flows(12, 3)
    assert all(map(torch.equal, now(), first))
    both.flows(9, 3, 9)
    assert not any(map(torch.equal, now(), first))


def test_values_in_8_bits_are_what_passes_computed(model):
    """Within half a step of e4m3, in whichever half of 16 bytes a frame begins."""
    ring, plain = int8_ring(model, ALL, 9), ring_of(model, GRID, 9)
    both = Both(model, ring, plain)
    for start in (0, 3, 6, 9, 12):
        both.flows(start, 3)
    _, scale, offset = ring.cache8.values[0]
    of_first_layer = plain.v[0] - offset
    off = (ring.values(0) - plain.v[0]).abs()  # the first layer sees the same tokens in both
    assert (off <= of_first_layer.abs() / 16 * 1.001 + 2**-10 * scale).all() and off.amax() > 0


def test_values_of_one_size_or_none_have_a_scale(model):
    ring = ring_of(model, GRID, 9, values8=ALL)
    Both(model, ring).flows(0, 9)
    ring.v[0][:, :, 0, 5] = 3  # as they are, the mean
    ring.v[0][2, 1, 1, 6], ring.v[1][2, 1, 1, 7] = NAN, float("inf")
    ring.hold(True)
    _, scale, offset = map(torch.stack, zip(*in_e4m3(ring), strict=True))
    assert scale[0, 0, 5] == scale[0, 1, 6] == scale[1, 1, 7] == 1 and (scale > 0).all() and scale.isfinite().all()
    assert offset[0, 0, 5] == 3 and offset[0, 1, 6] == offset[1, 1, 7] == 0
    assert (ring.values(0)[..., 0, 5] == 3).all() and ring.values(0)[2, 1, 1, 6].isnan()
    assert [ring.values(layer).isnan().sum() for layer in range(2)] == [1, 1]


@pytest.mark.parametrize(("times", "seen"), [(127, False), (129, True)])
def test_values_128_times_as_large_fit_and_larger_ones_show(model, times, seen):
    ring = ring_of(model, GRID, 9, values8=ALL)
    both = Both(model, ring)
    both.flows(0, 9)
    ring.hold(True)
    v, scale, offset = ring.cache8.values[0]
    values = offset.repeat(3 * TOKENS, 1, 1)  # of the sinks, which stay
    values[5, 1, 3] += VALUE_RANGE * times * scale[1, 3]
    quantize_values(values, offset, scale, v, torch.arange(3))
    assert ring.values(0).isnan().sum() == seen
    assert both.flows(9, 3)[0].isnan().any() == seen


def test_storage_is_allocated_when_it_is_first_asked_for_and_stays(model, values8):
    ring, plain = ring_of(model, GRID, int8=True, values8=values8), ring_of(model, GRID, values8=values8)
    beside = [layer for layer in range(2) if not (values8 and values8[layer])]
    ring.reserve(True), plain.reserve(False)
    assert ring.k is None and [*ring.v] == beside and plain.cache8 is None
    Both(model, ring, plain).flows(0, 3)
    assert ring.k is None and [*ring.v] == beside and plain.cache8 is None

    def places() -> list[int]:
        return [t.data_ptr() for t in (*in_8_bits(ring), ring._own_k, ring._own_v)]

    before, of_values = places(), {layer: v.data_ptr() for layer, v in ring.v.items()}
    ring.reserve(False)
    assert {*ring.v} == {*plain.v} == {0, 1} and ring.holds_int8
    assert ring.k[0].shape == ring.v[0].shape == ring.v[1].shape == plain.v[0].shape
    assert ring.k.dtype == ring.v[0].dtype == ring.v[1].dtype == torch.float32
    in_dtype = ring.k.data_ptr(), {layer: v.data_ptr() for layer, v in ring.v.items()}
    assert of_values.items() <= in_dtype[1].items()
    for int8 in (False, True, False):
        ring.hold(int8)
    assert (ring.k.data_ptr(), {layer: v.data_ptr() for layer, v in ring.v.items()}) == in_dtype
    assert places() == before


def test_storage_in_8_bits(model, values8):
    ring = ring_of(model, GRID, int8=True, values8=values8)
    shapes = [tuple(t.shape) for t in (*ring.cache8.keys, ring._own_k)]
    assert shapes == [(2, 12, 8, 2, 32), (2, 2, 12), (2, 2, 32), (12, 8, 2, 32)]
    assert [t.dtype for t in ring.cache8.keys] == [torch.int8, torch.float32, torch.float32]
    assert [of_layer is not None for of_layer in ring.cache8.values] == [*(values8 or (False, False))]
    for of_layer in in_e4m3(ring):
        assert [tuple(t.shape) for t in of_layer] == [(2, 32, 96), (2, 32), (2, 32)]
        assert of_layer.v.dtype == torch.float8_e4m3fn
    assert len(ring._own_v) == (12 if values8 else 0)


def test_a_ring_in_8_bits_takes_a_quarter_for_each_layer_with_values_in_e4m3(model):
    """Of float32, beside its own scale and offset, and storage that all of them share."""
    nbytes = []
    for values8 in (NONE, FIRST, LAST, ALL):
        ring = ring_of(model, GRID, int8=True, values8=values8)
        tensors = [*ring.v.values(), *(t for of_layer in in_e4m3(ring) for t in of_layer)]
        nbytes.append(sum(t.nbytes for t in tensors))
    none, first, last, both = nbytes
    layer, beside = 4 * 12 * TOKENS * 64, 2 * 4 * 64
    assert none == 2 * layer and both == 2 * (layer // 4 + beside)
    assert first == last == layer + layer // 4 + beside


@pytest.mark.parametrize("values8", [(True,), (False, True, False)])
def test_values_in_8_bits_are_said_of_every_layer(model, values8):
    with pytest.raises(ValueError, match=rf"values8 must have an entry for each of 2 layers, got {len(values8)}$"):
        ring_of(model, GRID, values8=values8)


def test_a_layer_without_values_in_8_bits_has_them_bit_for_bit(model):
    """Of the first layer, which sees the same tokens whatever is in 8 bits."""
    ring, plain = int8_ring(model, LAST), ring_of(model, GRID)
    both = Both(model, ring, plain)
    for start in (0, 3, 6, 9, 12):
        both.flows(start, 3)
        assert torch.equal(ring.values(0)[ring.slots], plain.values(0)[plain.slots])
        assert not torch.equal(ring.values(1)[ring.slots], plain.values(1)[plain.slots])
    before = ring.values(0).clone()
    ring.hold(False)
    assert torch.equal(ring.values(0), before)
    ring.hold(True)
    assert torch.equal(ring.values(0), before)


@pytest.mark.parametrize("window", range(6, 14))
def test_scales_of_each_head_begin_at_16_bytes(model, window):
    ring = ring_of(model, GRID, window, int8=True)
    layer, head, one = ring.cache8.keys.scale.stride()
    places = ring_of(model, GRID, window, int8=True, values8=ALL).cache8.values[0].v.shape[-1]
    assert places % 16 == 0 and window * TOKENS <= places < window * TOKENS + 16
    assert one == 1 and layer % 4 == head % 4 == 0 and window <= ring.cache8.keys.scale.shape[-1] < window + 4


@pytest.mark.parametrize("relative", [False, True], ids=["base", "relative"])
@pytest.mark.parametrize("window", [6, 7, 9, 15])
def test_another_window_sees_the_same_sinks(model, values8, window, relative):
    """A window in the storage of 12 frames, or in new storage, whatever lies in the other slots."""
    plain, int8 = ring_of(model, GRID, 12, relative=relative), int8_ring(model, values8, relative=relative)
    Both(model, plain, int8).flows(0, 12)
    rings = [ring_of(model, GRID, window, relative=relative), int8_ring(model, values8, window, relative=relative)]
    rings[0].take_sinks(plain), rings[1].take_sinks(int8)
    assert rings[1].holds_int8 and torch.equal(rings[1].cache8.keys.offset, int8.cache8.keys.offset)
    for mine, theirs in zip(in_e4m3(rings[1]), in_e4m3(int8), strict=True):
        assert all(map(torch.equal, mine[1:], theirs[1:]))
    if window <= 12:
        int8.resize(window)
        int8.cache8.keys.scale[..., window * TOKENS // 8 :] = NAN
        for of_layer in in_e4m3(int8):
            of_layer.v.view(torch.uint8)[..., -(-window * TOKENS // 16) * 16 :] = 0x7F
        for v in int8.v.values():
            v[window:] = NAN
        rings.append(int8)
    both, plan = Both(model, *rings), plan_recache(12 if window <= 12 else 18, window, 3, global_sink=True)
    end = plan.start + plan.frames
    for start, frames in [(plan.start, plan.frames)] + [(p, 3) for p in range(end, end + 12, 3)]:
        wanted, *got = both.flows(start, frames)
        assert error(got[0], wanted) < BOUND[values8] and (len(got) == 1 or torch.equal(*got))


def test_sinks_are_taken_by_a_ring_of_the_other_kind_too(model, values8):
    taken, ring = int8_ring(model, values8, 15), ring_of(model, GRID, 12, values8=values8)
    Both(model, ring).flows(0, 12)
    taken.take_sinks(ring)
    assert not taken.holds_int8 and torch.equal(taken.keys(1)[:3], ring.keys(1)[:3])
    assert all(torch.equal(taken.values(layer)[:3], ring.values(layer)[:3]) for layer in range(2))
    taken.hold(True)
    torch.testing.assert_close(taken.cache8.keys.offset, ring.k[:, :3].mean((1, 2)))


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


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        (30, range(7, 22)),
        (40, range(10, 29)),
        (12, range(3, 8)),
        (5, range(2, 3)),
        (4, range(1, 2)),
        (3, range(1, 2)),
        (2, range(0)),
        (1, range(0)),
    ],
)
def test_the_middle_layers_have_values_in_8_bits_where_cuda_serves(monkeypatch, layers, wanted):
    monkeypatch.setattr(precision, "VALUES_KEPT", (7, 8))
    monkeypatch.setattr(precision, "forced", lambda: None)
    kinds = [[torch.bfloat16, 128, None], [torch.float32, 128, None], [torch.bfloat16, 64, None]]
    for dtype, head_dim, missing in [*kinds, [torch.bfloat16, 128, "no GPU"]]:
        monkeypatch.setattr(precision.native, "missing", lambda device, missing=missing: missing)
        found = values_in_8_bits(dtype, torch.device("cpu"), head_dim, layers)
        serves = (dtype, head_dim, missing) == (torch.bfloat16, 128, None)
        assert found == tuple(serves and layer in wanted for layer in range(layers))


@pytest.mark.parametrize(("backend", "serves"), [("cuda", True), ("triton", False), ("reference", False)])
def test_values_in_8_bits_want_the_cuda_kernel(monkeypatch, backend, serves):
    monkeypatch.setattr(precision.native, "missing", lambda device: None)
    monkeypatch.setattr(precision, "VALUES_KEPT", (7, 8))
    monkeypatch.setattr(precision, "forced", lambda: backend)
    assert any(values_in_8_bits(torch.bfloat16, torch.device("cpu"), 128, 30)) == serves
