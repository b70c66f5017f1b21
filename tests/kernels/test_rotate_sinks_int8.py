"""rotate_sinks_int8: what rotate_sinks writes, as integers and scales."""

import pytest
import torch

from longlive_optimized.kernels.rotate_sinks import rotate_sinks, rotate_sinks_int8
from support.graphs import captured
from support.keys import SPARE, check_integers, mixed, runs_of, scales_of, traced_heads, turns

OP = rotate_sinks_int8
HEAD_DIM, TIME_PAIRS, UNWRITTEN = 128, 22, -128
NAMES = ("k_sink", "rope_time", "rope_space", "k_offset", "k_ring", "k_scale")


def case(dtype, device, layers=2, sinks=3, tokens=8, heads=3, slots=8, head_dim=HEAD_DIM) -> dict:
    """The rings hold what is never written: -128 and NaN."""
    torch.manual_seed(0)
    time_pairs = head_dim // 2 - 2 * (head_dim // 6)
    args = (
        torch.randn(layers, sinks, tokens, heads, head_dim).to(device, dtype),
        turns(sinks, time_pairs, dtype=dtype, device=device),
        turns(tokens, head_dim // 2 - time_pairs, dtype=dtype, device=device),
        torch.randn(layers, heads, head_dim, device=device),
        torch.full((layers, slots, tokens, heads, head_dim), UNWRITTEN, dtype=torch.int8, device=device),
        torch.full((layers, heads, slots * tokens // 8 + SPARE), torch.nan, device=device),
    )
    return dict(zip(NAMES, args, strict=True))


def truth(args: dict) -> torch.Tensor:
    """Keys to be quantised, in float64: by the operator whose keys are plain."""
    plain = torch.zeros(args["k_ring"].shape, dtype=torch.float64, device=args["k_ring"].device)
    rotate_sinks.reference(*(args[name].double() for name in NAMES[:3]), plain)
    return mixed(plain[:, : args["k_sink"].shape[1]] - args["k_offset"].double()[:, None, None])


def check(args: dict) -> None:
    want = truth(args)
    sinks, scale = want.shape[1], scales_of(args["k_scale"], args["k_ring"])
    assert (args["k_ring"][:, sinks:] == UNWRITTEN).all() and scale[:, sinks:].isnan().all()
    check_integers(runs_of(args["k_ring"][:, :sinks]), scale[:, :sinks], runs_of(want))


SHAPES = [{}, {"sinks": 1}, {"heads": 12, "tokens": 24}, {"layers": 1, "tokens": 40}]
SHAPES += [pytest.param({"heads": 12, "tokens": 1560}, marks=pytest.mark.gpu)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantises_the_rotated_sinks_and_touches_nothing_else(run, device, dtype, shape):
    args = case(dtype, device, **shape)
    run(*args.values())
    check(args)


def test_no_sinks_write_nothing(run, device):
    args = case(torch.float32, device)
    args |= {"k_sink": args["k_sink"][:, :0].contiguous(), "rope_time": args["rope_time"][:0]}
    run(*args.values())
    assert (args["k_ring"] == UNWRITTEN).all() and args["k_scale"].isnan().all()


def test_keys_at_the_offset_are_zero(run, device):
    """A run of them has the scale 0, one of them alone its run's."""
    args = case(torch.float32, device, tokens=24)
    args["k_sink"][:, :, 8:16] = 0
    args["k_sink"][:, :, 2] = 0
    args["k_offset"][:, 1] = 0
    run(*args.values())
    keys, scale = args["k_ring"][:, :3, :, 1], scales_of(args["k_scale"], args["k_ring"])[:, :3, :, 1]
    assert (keys[:, :, 8:16] == 0).all() and (keys[:, :, 2] == 0).all()
    assert (scale[:, :, 1] == 0).all() and (scale[:, :, [0, 2]] > 0).all()


def test_tokens_of_a_run_may_differ_in_size(run, device):
    args = case(torch.float32, device, tokens=16)
    args["k_sink"] *= 10.0 ** torch.arange(-8, 8, device=device)[:, None, None]
    run(*args.values())
    check(args)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter
def test_a_token_that_is_not_finite_shows_in_its_run_alone(run, device):
    args = case(torch.float32, device, tokens=24)
    run(*args.values())
    before = {name: args[name].clone() for name in ("k_ring", "k_scale")}
    args["k_sink"][1, 2, 9, 0, 5] = torch.nan
    run(*args.values())
    spoiled = scales_of(args["k_scale"], args["k_ring"])[1, 2, 1]
    assert spoiled[0].isnan()
    spoiled[0] = scales_of(before["k_scale"], args["k_ring"])[1, 2, 1, 0]
    args["k_ring"][1, 2, 8:16, 0] = before["k_ring"][1, 2, 8:16, 0]
    assert torch.equal(args["k_ring"], before["k_ring"])
    torch.testing.assert_close(args["k_scale"], before["k_scale"], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("k_sink", lambda t: t.half(), "k_sink must be bfloat16, float32 or float64"),
        ("k_sink", lambda t: t[0], r"k_sink must be \[any, any, any, any, any\]"),
        ("k_ring", lambda t: t[:, :2].contiguous(), "k_ring must have at least k_sink's 3 slots"),
        ("k_ring", lambda t: t.bfloat16(), r"k_ring must be (torch\.int8|Char)"),
        ("k_scale", lambda t: t[..., :7].contiguous(), "k_scale must have at least 8 scales a head, got 7"),
        ("k_scale", lambda t: t.double(), "k_scale must be"),
        ("k_offset", lambda t: t[:, :2].contiguous(), r"k_offset must be \[2, 3, 128\]"),
        ("k_offset", lambda t: t.bfloat16(), "k_offset must be"),
        ("rope_time", lambda t: t[:2], "rope_time must be"),
        ("rope_space", lambda t: t[:, 1:].contiguous(), "rope_space must be"),
    ],
)
def test_bad_arguments(run, device, name, change, message):
    args = case(torch.float32, device)
    args[name] = change(args[name])
    with pytest.raises((ValueError, RuntimeError), match=message):
        run(*args.values())


def test_frames_of_no_whole_runs_are_refused(backend, device):
    args = case(torch.float32, device, tokens=20)
    with pytest.raises((ValueError, RuntimeError), match="k_ring must have a multiple of 8 tokens a frame, got 20"):
        OP.impls[backend][0](*args.values())


def test_registered_properly(device):
    args = case(torch.float32, device, head_dim=traced_heads(device))
    args["k_scale"].zero_()  # opcheck compares, and NaN is not equal to itself
    torch.library.opcheck(OP.torch_op, tuple(args.values()))


@pytest.mark.gpu
def test_replays_in_a_cuda_graph_with_rotations_advanced_in_place(run, device):
    args = case(torch.bfloat16, device, tokens=64, heads=12)
    graph, _ = captured(run, *args.values())
    for _ in range(2):
        args["k_ring"].fill_(UNWRITTEN)
        args["k_scale"].fill_(torch.nan)
        args["rope_time"].copy_(turns(3, TIME_PAIRS, dtype=torch.bfloat16, device=device))
        args["k_sink"].normal_()
        graph.replay()
        check(args)
