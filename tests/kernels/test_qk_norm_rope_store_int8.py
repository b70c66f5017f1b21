"""qk_norm_rope_store_int8: what qk_norm_rope_store makes of queries and keys, as integers and scales."""

import math

import pytest
import torch

from longlive_optimized.kernels.qk_norm_rope_store import qk_norm_rope_store, qk_norm_rope_store_int8
from support.emulated import run_on_a_cpu
from support.keys import SLOTS, SPARE, check_integers, mixed, runs_of, scales_of, traced_heads, turns
from support.spoiled import other_device, other_order

OP = qk_norm_rope_store_int8
EPS, UNWRITTEN = 1e-6, -128
PLAIN = ("qkv", "q_gain", "k_gain", "rope_time", "rope_space")
NAMES = (*PLAIN, "k_offset", "k_ring", "k_scale", "v_ring", "k_sink", "slots")


def inputs(dtype, device, tokens=8, heads=2, head_dim=128, ring=12, sinks=3, slots=(3, 4, 5)) -> dict:
    """Random tokens; the rings hold what is never written: -128 and NaN."""
    torch.manual_seed(tokens * 100 + heads)
    size, frames, pairs = heads * head_dim, len(slots), head_dim // 2
    time_pairs = pairs - 2 * (pairs // 3)

    def poison(*shape, of=dtype, value=torch.nan):
        return torch.full(shape, value, dtype=of, device=device)

    args = (
        (3 * torch.randn(frames * tokens, 3 * size, dtype=torch.float64)).to(device, dtype),
        torch.randn(size, dtype=torch.float64).to(device, dtype),
        torch.randn(size, dtype=torch.float64).to(device, dtype),
        turns(frames, time_pairs, dtype=dtype, device=device),
        turns(tokens, pairs - time_pairs, dtype=dtype, device=device),
        torch.randn(heads, head_dim, device=device),
        poison(ring, tokens, heads, head_dim, of=torch.int8, value=UNWRITTEN),
        poison(heads, ring * tokens // 8 + SPARE, of=torch.float32),
        poison(ring, tokens, heads, head_dim),
        poison(sinks, tokens, heads, head_dim),
        torch.tensor(slots, device=device),
    )
    return dict(zip(NAMES, args, strict=True))


def plain_arguments(args: dict, dtype: torch.dtype) -> dict:
    """Those of qk_norm_rope_store, whose keys are not quantised, in ``dtype``."""
    rings = {name: torch.zeros(args[name].shape, dtype=dtype, device=args[name].device) for name in NAMES[6:10:2]}
    table = torch.promote_types(dtype, torch.float32)
    cast = {name: args[name].to(table if "rope" in name else dtype) for name in PLAIN}
    k_sink = args["k_sink"].to(dtype, copy=True)
    return cast | {"k_ring": rings["k_ring"], "v_ring": rings["v_ring"], "k_sink": k_sink, "slots": args["slots"]}


def check_all(args: dict, q: torch.Tensor, q_scale: torch.Tensor) -> None:
    plain = plain_arguments(args, torch.float64)
    want_q = qk_norm_rope_store.reference(*plain.values(), EPS)
    ring, _, heads, _ = args["k_ring"].shape
    assert q.dtype == torch.int8 and q.shape == want_q.shape and q_scale.shape == (heads, len(q))
    check_integers(q, q_scale.T, mixed(want_q))
    slots = args["slots"]
    scale = scales_of(args["k_scale"], args["k_ring"])
    keys = mixed(plain["k_ring"][slots] - args["k_offset"].double())
    check_integers(runs_of(args["k_ring"][slots]), scale[slots], runs_of(keys))
    others = [i for i in range(ring) if i not in slots.tolist()]
    assert (args["k_ring"][others] == UNWRITTEN).all()
    assert scale[others].isnan().all() and args["v_ring"][others].isnan().all()


CASES = SLOTS | {
    "one-head": {"heads": 1},
    "odd-runs": {"tokens": 24},
    "twelve-heads": {"tokens": 16, "heads": 12},
    "three-heads": {"heads": 3},
}
REAL = {"tokens": 1560, "heads": 12, "slots": (11, 3, 4)}
SHAPES = [*(pytest.param(c, id=n) for n, c in CASES.items()), pytest.param(REAL, id="real", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_float64(run, device, shape, dtype):
    args = inputs(dtype, device, **shape)
    check_all(args, *run(*args.values(), EPS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("slots", [(3, 4, 5), (2, 7, 0)])
def test_values_and_sinks_are_those_of_the_plain_operator(run, backend, device, dtype, slots):
    """They do not pass through integers."""
    args = inputs(dtype, device, slots=slots)
    plain = plain_arguments(args, dtype)
    run(*args.values(), EPS)
    qk_norm_rope_store.impls[backend][0](*plain.values(), EPS)
    at = args["slots"]
    assert torch.equal(args["v_ring"][at], plain["v_ring"][at])
    rounding = {"rtol": 2**-7 if dtype == torch.bfloat16 else 1e-6, "atol": 1e-6}  # sums of squares in another order
    torch.testing.assert_close(args["k_sink"], plain["k_sink"], equal_nan=True, **rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_a_ring_of_values_all_else_is_the_same(run, device, dtype):
    args, without = (inputs(dtype, device, tokens=24, slots=(2, 7, 0)) for _ in range(2))
    without["v_ring"] = None
    for got, wanted in zip(run(*without.values(), EPS), run(*args.values(), EPS), strict=True):
        assert torch.equal(got, wanted)
    for name in ("k_ring", "k_scale", "k_sink"):
        torch.testing.assert_close(without[name], args[name], rtol=0, atol=0, equal_nan=True)


def test_small_heads(device):
    """By whatever takes them."""
    args = inputs(torch.float32, device, head_dim=24, heads=3)
    check_all(args, *OP(*args.values(), EPS))


def test_reference_in_float64():
    args = inputs(torch.float64, "cpu", head_dim=24, slots=(1, 9))
    check_all(args, *OP.reference(*args.values(), EPS))


def test_zeros_have_scale_zero(run, device):
    """A run of keys of zeros, too; a key of zeros alone has its run's scale."""
    args = inputs(torch.float32, device, tokens=16)
    args["k_offset"].zero_()
    args["qkv"][3] = 0
    args["qkv"][8:16] = 0
    args["q_gain"][:128] = 0
    q, q_scale = run(*args.values(), EPS)
    zeros = [3, *range(8, 16)]
    assert (q[zeros] == 0).all() and (q_scale[:, zeros] == 0).all()
    assert (q[:, 0] == 0).all() and (q_scale[0] == 0).all() and (q_scale[1, 16:] > 0).all()
    assert (args["k_ring"][3, zeros] == 0).all()
    scale = scales_of(args["k_scale"], args["k_ring"])[3:6]
    assert (scale[0, 1] == 0).all() and (scale[0, 0] > 0).all() and (scale[1:] > 0).all()


def test_tokens_of_a_run_may_differ_in_size(run, device):
    """The norm makes them alike, but for a large eps."""
    args = inputs(torch.float32, device, tokens=16)
    args["qkv"] *= 10.0 ** torch.arange(-4, 4, device=device).repeat(6)[:, None]
    args["k_offset"].zero_()
    q, q_scale = run(*args.values(), 1e4)
    plain = plain_arguments(args, torch.float64)
    want_q = qk_norm_rope_store.reference(*plain.values(), 1e4)
    check_integers(q, q_scale.T, mixed(want_q))
    scale = scales_of(args["k_scale"], args["k_ring"])[args["slots"]]
    check_integers(runs_of(args["k_ring"][args["slots"]]), scale, runs_of(mixed(plain["k_ring"][args["slots"]])))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_token_that_is_not_finite_shows_in_its_scales_alone(run, device, bad):
    """Its query's, and those of the run that its key is in."""
    args = inputs(torch.bfloat16, device, tokens=24)
    q, q_scale = run(*args.values(), EPS)
    k_ring, k_scale = args["k_ring"].clone(), args["k_scale"].clone()
    args["qkv"][24 + 10] = bad
    spoiled, spoiled_scale = run(*args.values(), EPS)
    others = [i for i in range(72) if i != 34]
    assert torch.equal(spoiled[others], q[others]) and torch.equal(spoiled_scale[:, others], q_scale[:, others])
    assert not spoiled_scale[:, 34].isfinite().any()
    at = 4 * 3 + 1  # slot 4, its second run
    assert not args["k_scale"][:, at].isfinite().any()
    written = [i for i in range(3 * 3, 6 * 3) if i != at]
    assert torch.equal(args["k_scale"][:, written], k_scale[:, written])
    runs, before = (ring.view(12 * 3, -1) for ring in (args["k_ring"], k_ring))
    assert torch.equal(runs[written], before[written])


def test_the_largest_is_127_and_minus_128_does_not_occur(run, device):
    args = inputs(torch.bfloat16, device, tokens=40, heads=12)
    q, _ = run(*args.values(), EPS)
    assert (q.int().abs().amax(-1) == 127).all()
    assert (runs_of(args["k_ring"][args["slots"]]).int().abs().amax(-1) == 127).all()


def test_frames_of_no_whole_runs_are_refused(backend, device):
    args = inputs(torch.float32, device, tokens=12)
    with pytest.raises((ValueError, RuntimeError), match="k_ring must have a multiple of 8 tokens a frame, got 12"):
        OP.impls[backend][0](*args.values(), EPS)
    assert all(args[name].isnan().all() for name in ("k_scale", "v_ring", "k_sink"))


BAD = {
    "qkv": [lambda t: t[:, :-6].contiguous(), lambda t: t[:-1], lambda t: t.half(), other_order],
    "q_gain": [lambda t: t[:-1], lambda t: t.double()],
    "k_gain": [lambda t: t[:-1], other_device],
    "rope_time": [lambda t: t[:-1], lambda t: t.double()],
    "rope_space": [lambda t: t[:, :-1].contiguous(), lambda t: t[:-1]],
    "k_offset": [lambda t: t[:-1], lambda t: t.flatten(), lambda t: t.bfloat16(), other_order, other_device],
    "k_ring": [lambda t: t[..., :-1].contiguous(), lambda t: t[0], lambda t: t.float(), other_order],
    "k_scale": [lambda t: t[:, : -1 - SPARE].contiguous(), lambda t: t.flatten(), lambda t: t.double(), other_order],
    "v_ring": [lambda t: t[:-1], lambda t: t[0], lambda t: t.double(), other_order],
    "k_sink": [lambda t: t[:, :-1].contiguous(), lambda t: t[0], lambda t: t.double(), other_order, other_device],
    "slots": [lambda t: t.int(), lambda t: t[None], lambda t: t[:0], other_device],
}


@pytest.mark.parametrize(
    ("name", "spoil"), [pytest.param(n, f, id=f"{n}{i}") for n, all_of in BAD.items() for i, f in enumerate(all_of)]
)
def test_bad_input_is_named_and_nothing_written(backend, device, name, spoil):
    args = inputs(torch.float32, device)
    args[name] = spoil(args[name])
    with pytest.raises((ValueError, RuntimeError), match=rf"\b{name} must\b"):
        OP.impls[backend][0](*args.values(), EPS)
    assert all(args[n].isnan().all() for n in ("k_scale", "v_ring", "k_sink") if n != name)


def test_registered_properly(device):
    args = inputs(torch.float32, device, slots=(0, 5), head_dim=traced_heads(device))
    for name in ("k_scale", "v_ring", "k_sink"):  # opcheck compares them, and NaN is not equal to itself
        args[name] = torch.zeros_like(args[name])
    torch.library.opcheck(OP.torch_op, (*args.values(), EPS))
    torch.library.opcheck(OP.torch_op, (*(args | {"v_ring": None}).values(), EPS))


def test_the_cuda_source_on_a_cpu(tmp_path):
    """How a warp mixes, quantises and stores heads."""
    run_on_a_cpu(tmp_path, "heads.cpp")


@pytest.mark.gpu
def test_replays_in_a_cuda_graph_with_slots_advanced_in_place(run, device):
    args = inputs(torch.bfloat16, device, tokens=64, heads=12, slots=(11, 3, 4))
    run(*args.values(), EPS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        q, q_scale = run(*args.values(), EPS)
    for slots in ((5, 6, 7), (11, 3, 4), (1, 2, 3)):
        args["k_ring"].fill_(UNWRITTEN)
        for name in ("k_scale", "v_ring", "k_sink"):
            args[name].fill_(torch.nan)
        args["slots"].copy_(torch.tensor(slots))
        args["qkv"].normal_()
        graph.replay()
        check_all(args, q, q_scale)
