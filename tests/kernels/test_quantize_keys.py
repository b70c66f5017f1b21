"""quantize_keys against its formula in float64, and dequantize_keys as its inverse."""

import math

import pytest
import torch

from longlive_optimized.kernels.quantize_keys import dequantize_keys, quantize_keys
from support.graphs import captured
from support.keys import SPARE, check_integers, mixed, runs_of, scales_of, traced_heads
from support.spoiled import other_device, other_order

OP = quantize_keys
UNWRITTEN = -128
NAMES = ("k", "k_offset", "k_ring", "k_scale", "slots")


def inputs(dtype, device, tokens=16, heads=2, head_dim=128, ring=7, slots=(4, 0, 5)) -> dict:
    """Random keys of tokens of quite different size; the ring holds what is never written: -128 and NaN."""
    torch.manual_seed(tokens * 100 + heads)
    size = 10.0 ** torch.randint(-4, 5, (len(slots), tokens, 1, 1))
    args = (
        (size * torch.randn(len(slots), tokens, heads, head_dim)).to(device, dtype),
        torch.randn(heads, head_dim, device=device),
        torch.full((ring, tokens, heads, head_dim), UNWRITTEN, dtype=torch.int8, device=device),
        torch.full((heads, ring * tokens // 8 + SPARE), torch.nan, device=device),
        torch.tensor(slots, dtype=torch.int64, device=device),
    )
    return dict(zip(NAMES, args, strict=True))


def check(args: dict) -> None:
    slots, scale = args["slots"], scales_of(args["k_scale"], args["k_ring"])
    want = mixed(args["k"].double() - args["k_offset"].double())
    check_integers(runs_of(args["k_ring"][slots]), scale[slots], runs_of(want))
    others = [i for i in range(len(args["k_ring"])) if i not in slots.tolist()]
    assert (args["k_ring"][others] == UNWRITTEN).all() and scale[others].isnan().all()


CASES = {
    "plain": {},
    "one-run": {"tokens": 8, "heads": 1, "slots": (2,)},
    "odd-runs": {"tokens": 24, "heads": 3},
    "twelve-heads": {"heads": 12, "tokens": 40},
    "whole-ring": {"ring": 3, "slots": (2, 0, 1)},
    "no-frames": {"slots": ()},
    "no-tokens": {"tokens": 0},
}
REAL = {"tokens": 1560, "heads": 12, "ring": 12, "slots": tuple(range(12))}
SHAPES = [*(pytest.param(c, id=n) for n, c in CASES.items()), pytest.param(REAL, id="real", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_float64(run, device, shape, dtype):
    args = inputs(dtype, device, **shape)
    run(*args.values())
    check(args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_small_heads(device, dtype):
    """By whatever takes them."""
    args = inputs(dtype, device, head_dim=24, heads=3)
    OP(*args.values())
    check(args)


def test_keys_at_the_offset_are_zero(run, device):
    """A run of them has the scale 0, one of them alone its run's."""
    args = inputs(torch.float32, device, tokens=24)
    args["k"][0, 8:16] = args["k"][0, 1] = args["k_offset"]
    run(*args.values())
    keys, scale = args["k_ring"][4], scales_of(args["k_scale"], args["k_ring"])[4]
    assert (keys[8:16] == 0).all() and (keys[1] == 0).all()
    assert (scale[1] == 0).all() and (scale[[0, 2]] > 0).all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_finite_shows_in_its_runs_scale_alone(run, device, bad, dtype):
    args = inputs(dtype, device, tokens=24)
    run(*args.values())
    k_ring, k_scale = args["k_ring"].clone(), args["k_scale"].clone()
    args["k"][1, 13, 1, 77] = bad
    run(*args.values())
    scale = scales_of(args["k_scale"], args["k_ring"])
    assert not scale[0, 1, 1].isfinite()
    scale[0, 1, 1] = scales_of(k_scale, args["k_ring"])[0, 1, 1]
    args["k_ring"][0, 8:16, 1] = k_ring[0, 8:16, 1]
    assert torch.equal(args["k_ring"], k_ring)
    torch.testing.assert_close(args["k_scale"], k_scale, rtol=0, atol=0, equal_nan=True)


def test_the_largest_of_a_run_is_127_and_minus_128_does_not_occur(run, device):
    args = inputs(torch.bfloat16, device, tokens=40, heads=12)
    run(*args.values())
    runs = runs_of(args["k_ring"][args["slots"]]).int()
    assert (runs.abs().amax(-1) == 127).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("head_dim", [128, 24])
def test_dequantize_keys_is_the_inverse(device, head_dim, dtype):
    """A key is off by half a scale a mixed channel at most, and by the result's own rounding."""
    args = inputs(torch.float32, device, head_dim=head_dim, ring=3)
    args["slots"] = torch.tensor([2, 0, 1], device=device)
    OP(*args.values())
    got = dequantize_keys(args["k_ring"], args["k_scale"], args["k_offset"], dtype)
    assert got.dtype == dtype and got.shape == args["k_ring"].shape
    want = args["k"].double()[[1, 2, 0]]
    scale = scales_of(args["k_scale"], args["k_ring"]).repeat_interleave(8, dim=1).double()  # [R, S, H]
    off = mixed(got.double() - want)
    rounding = torch.finfo(dtype).eps * want.norm(dim=-1) if dtype == torch.bfloat16 else 1e-5 * want.norm(dim=-1)
    assert (off.abs().amax(-1) <= 0.5001 * scale + rounding + 1e-5).all()


def test_dequantized_keys_are_quantised_to_the_same_integers(device):
    """Each run's largest value is 127, so that its scale comes back."""
    args = inputs(torch.float32, device, ring=3, slots=(0, 1, 2))
    OP(*args.values())
    again = {name: t.clone() for name, t in args.items()}
    again["k"] = dequantize_keys(args["k_ring"], args["k_scale"], args["k_offset"], torch.float64)
    again["k_ring"].fill_(UNWRITTEN)
    again["k_scale"].fill_(torch.nan)
    OP(*again.values())
    assert torch.equal(again["k_ring"], args["k_ring"])
    torch.testing.assert_close(again["k_scale"], args["k_scale"], rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("k_ring", lambda t: t[0], r"k_ring must be \[any, any, any, any\]"),
        ("k_ring", lambda t: t.float(), r"k_ring must be torch\.int8"),
        ("k_ring", lambda t: t[:, :15].contiguous(), "k_ring must have a multiple of 8 tokens a frame, got 15"),
        ("k_scale", lambda t: t[:, 1 + SPARE :].contiguous(), "k_scale must have at least .* scales a head"),
        ("k_scale", lambda t: t.double(), r"k_scale must be torch\.float32"),
        ("k_offset", lambda t: t[:1], r"k_offset must be \[2, 128\]"),
        ("k_offset", lambda t: t.bfloat16(), r"k_offset must be torch\.float32"),
    ],
)
def test_dequantize_keys_names_bad_arguments(name, change, message):
    args = inputs(torch.float32, "cpu")
    args[name] = change(args[name])
    with pytest.raises(ValueError, match=message):
        dequantize_keys(args["k_ring"], args["k_scale"], args["k_offset"], torch.float32)


BAD = {
    "k": [lambda t: t[0], lambda t: t.half(), lambda t: t.char(), other_order, lambda t: torch.cat([t] * 3)],
    "k_offset": [lambda t: t[:-1], lambda t: t.flatten(), lambda t: t.bfloat16(), other_order, other_device],
    "k_ring": [lambda t: t[..., :-1].contiguous(), lambda t: t[0], lambda t: t.float(), other_order, other_device],
    "k_scale": [lambda t: t[:, : -1 - SPARE].contiguous(), lambda t: t.flatten(), lambda t: t.double(), other_order],
    "slots": [lambda t: t.int(), lambda t: t[None], lambda t: t[:2], other_device],
}


@pytest.mark.parametrize(
    ("name", "spoil"), [pytest.param(n, f, id=f"{n}{i}") for n, all_of in BAD.items() for i, f in enumerate(all_of)]
)
def test_bad_input_is_named_and_nothing_written(backend, device, name, spoil):
    args = inputs(torch.float32, device)
    args[name] = spoil(args[name])
    if name == "k" and len(args["k"]) > 7:
        args["slots"] = torch.arange(len(args["k"]), device=device)
    with pytest.raises((ValueError, RuntimeError), match=rf"\b{name} must\b"):
        OP.impls[backend][0](*args.values())
    assert name == "k_ring" or (args["k_ring"] == UNWRITTEN).all()
    assert name == "k_scale" or args["k_scale"].isnan().all()


def test_frames_of_no_whole_runs_are_refused(backend, device):
    args = inputs(torch.float32, device, tokens=12)
    with pytest.raises((ValueError, RuntimeError), match="k_ring must have a multiple of 8 tokens a frame, got 12"):
        OP.impls[backend][0](*args.values())


def test_registered_properly(device):
    args = inputs(torch.float32, device, head_dim=traced_heads(device))
    args["k_scale"].zero_()  # opcheck compares, and NaN is not equal to itself
    torch.library.opcheck(OP.torch_op, tuple(args.values()))


@pytest.mark.gpu
def test_replays_in_a_cuda_graph_with_slots_advanced_in_place(run, device):
    args = inputs(torch.bfloat16, device, tokens=64, heads=12)
    graph, _ = captured(run, *args.values())
    for slots in ((1, 2, 3), (6, 0, 4)):
        args["k_ring"].fill_(UNWRITTEN)
        args["k_scale"].fill_(torch.nan)
        args["slots"].copy_(torch.tensor(slots))
        args["k"].normal_()
        graph.replay()
        check(args)
