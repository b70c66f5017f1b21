"""rotate_sinks_int8: what rotate_sinks writes, as integers and scales."""

import pytest
import torch

from longlive_optimized.kernels.rotate_sinks import rotate_sinks, rotate_sinks_int8
from support.keys import check_integers, mixed, turns

OP = rotate_sinks_int8
HEAD_DIM, TIME_PAIRS, UNWRITTEN = 128, 22, -128
NAMES = ("k_sink", "rope_time", "rope_space", "k_offset", "k_ring", "k_scale")


def case(dtype, device, layers=2, sinks=3, tokens=5, heads=3, slots=8) -> dict:
    """The rings hold what is never written: -128 and NaN."""
    torch.manual_seed(0)
    args = (
        torch.randn(layers, sinks, tokens, heads, HEAD_DIM).to(device, dtype),
        turns(sinks, TIME_PAIRS, dtype=dtype, device=device),
        turns(tokens, HEAD_DIM // 2 - TIME_PAIRS, dtype=dtype, device=device),
        torch.randn(layers, heads, HEAD_DIM, device=device),
        torch.full((layers, slots, tokens, heads, HEAD_DIM), UNWRITTEN, dtype=torch.int8, device=device),
        torch.full((layers, heads, slots * tokens), torch.nan, device=device),
    )
    return dict(zip(NAMES, args, strict=True))


def truth(args: dict) -> torch.Tensor:
    """Keys to be quantised, in float64: by the operator whose keys are plain."""
    plain = torch.zeros(args["k_ring"].shape, dtype=torch.float64, device=args["k_ring"].device)
    rotate_sinks.reference(*(args[name].double() for name in NAMES[:3]), plain)
    return mixed(plain[:, : args["k_sink"].shape[1]] - args["k_offset"].double()[:, None, None])


def check(args: dict) -> None:
    want = truth(args)
    layers, sinks, tokens, heads, _ = want.shape
    assert (args["k_ring"][:, sinks:] == UNWRITTEN).all() and args["k_scale"][..., sinks * tokens :].isnan().all()
    scale = args["k_scale"][..., : sinks * tokens].view(layers, heads, sinks, tokens).permute(0, 2, 3, 1)
    check_integers(args["k_ring"][:, :sinks], scale, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [{}, {"sinks": 1, "tokens": 1}, {"heads": 12, "tokens": 7}, {"layers": 1}], ids=str)
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
    args = case(torch.float32, device)
    args["k_sink"][:, :, 2] = 0
    args["k_offset"][:, 1] = 0
    run(*args.values())
    assert (args["k_ring"][:, :3, 2, 1] == 0).all() and (args["k_scale"].view(2, 3, 8, 5)[:, 1, :3, 2] == 0).all()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("k_sink", lambda t: t.half(), "k_sink must be bfloat16, float32 or float64"),
        ("k_sink", lambda t: t[0], r"k_sink must be \[any, any, any, any, any\]"),
        ("k_ring", lambda t: t[:, :2].contiguous(), "k_ring must have at least k_sink's 3 slots"),
        ("k_ring", lambda t: t.bfloat16(), r"k_ring must be (torch\.int8|Char)"),
        ("k_scale", lambda t: t[..., :-1].contiguous(), r"k_scale must be \[2, 3, 40\]"),
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


def test_registered_properly(device):
    args = case(torch.float32, device)
    args["k_scale"].zero_()  # opcheck compares, and NaN is not equal to itself
    torch.library.opcheck(OP.torch_op, tuple(args.values()))
