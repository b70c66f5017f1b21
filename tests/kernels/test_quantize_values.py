"""quantize_values against e4m3's own table of numbers, and dequantize_values as its inverse."""

import math

import pytest
import torch

from longlive_optimized.kernels.quantize_values import ORDER, dequantize_values, quantize_values
from support.graphs import captured
from support.spoiled import other_device, other_order

OP = quantize_values
UNWRITTEN = 0x55
NAMES = ("v", "v_offset", "v_scale", "v_ring", "slots")


def inputs(dtype, device, tokens=16, heads=1, head_dim=128, ring=7, slots=(4, 0, 5), room=0) -> dict:
    """Random values of quite different size, up to 2^9 scales: the last third of rows, as in a QKV product."""
    torch.manual_seed(tokens * 100 + heads)
    rows = torch.randn(len(slots) * tokens, 3, heads, head_dim)
    rows *= 2.0 ** torch.randint(-9, 9, rows.shape)
    width = math.ceil(ring * tokens / 16) * 16 + room
    v_ring = torch.full((heads, head_dim, width), UNWRITTEN, dtype=torch.uint8, device=device)
    args = (
        rows.to(device, dtype)[:, 2],
        torch.randn(heads, head_dim, device=device),
        2.0 ** (2 * torch.randn(heads, head_dim, device=device)),
        v_ring.view(torch.float8_e4m3fn),
        torch.tensor(slots, dtype=torch.int64, device=device),
    )
    return dict(zip(NAMES, args, strict=True))


def numbers() -> torch.Tensor:
    """What each of the bytes 0 to 0x7e stands for, in order of size."""
    return torch.tensor([n / 8 * 2**-6 if n < 8 else (1 + n % 8 / 8) * 2 ** (n // 8 - 7) for n in range(0x7F)]).double()


def nearest(x: torch.Tensor) -> torch.Tensor:
    """The bytes of the numbers nearest to x, float32; of two the even one."""
    size, table = x.abs().double().cpu(), numbers()
    below = (torch.searchsorted(table, size, right=True) - 1).clamp(max=0x7E)
    above = (below + 1).clamp(max=0x7E)
    down, up = size - table[below], table[above] - size
    byte = torch.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    byte = torch.where(x.cpu().signbit(), byte | 0x80, byte)
    return torch.where(size <= 448, byte, 0x7F).to(x.device, torch.uint8)  # NaN is not <= 448


def in_order(v_ring: torch.Tensor) -> torch.Tensor:
    """The bytes of a ring [H, hd, P], tokens in order: [P, H, hd]."""
    groups = v_ring.view(torch.uint8).unflatten(2, (-1, 16))
    plain = torch.empty_like(groups)
    plain[..., list(ORDER)] = groups
    return plain.flatten(2).permute(2, 0, 1)


def check(args: dict) -> None:
    x = (args["v"].float() - args["v_offset"]) * (1 / args["v_scale"])
    frames = args["slots"].tolist()
    want = torch.full_like(in_order(args["v_ring"]), UNWRITTEN)
    for slot, frame in zip(frames, nearest(x).chunk(len(frames)), strict=True):
        want[slot * len(frame) : (slot + 1) * len(frame)] = frame
    assert torch.equal(in_order(args["v_ring"]), want)


CASES = {
    "plain": {},
    "half-a-group": {"tokens": 8, "slots": (2,)},
    "both-halves": {"tokens": 8, "slots": (3, 2, 5)},
    "odd-halves": {"tokens": 24, "slots": (0, 1, 2, 5)},
    "long-frames": {"tokens": 200, "slots": (1, 3), "heads": 2},
    "several-heads": {"tokens": 40, "heads": 3},
    "whole-ring": {"tokens": 24, "ring": 3, "slots": (2, 0, 1)},
    "room": {"room": 48, "slots": (6, 3)},
    "no-tokens": {"tokens": 0},
}
REAL = {"tokens": 1560, "heads": 12, "ring": 12, "slots": (11, 3, 4)}
SHAPES = [*(pytest.param(c, id=n) for n, c in CASES.items()), pytest.param(REAL, id="real", marks=pytest.mark.gpu)]


def test_the_table_is_e4m3():
    assert torch.equal(numbers(), torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_value_becomes_the_nearest(run, device, shape, dtype):
    args = inputs(dtype, device, **shape)
    run(*args.values())
    check(args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_small_heads(device, dtype):
    """By whatever takes them."""
    args = inputs(dtype, device, head_dim=24, heads=3)
    OP(*args.values())
    check(args)


def test_rows_need_no_stride(run, device):
    args = inputs(torch.bfloat16, device)
    args["v"] = args["v"].contiguous()
    run(*args.values())
    check(args)


def test_every_number_and_what_lies_half_way(run, device):
    """Ties go to even bytes, 448 is the last number, and its like of 16 binades below zero."""
    table = numbers().float()
    half = (table[1:] + table[:-1]) / 2
    around = torch.cat((table, half, half.nextafter(half * 2), half.nextafter(half * 0), torch.tensor([0.0, 2**-11])))
    around = torch.cat((around, -around))
    args = inputs(torch.float32, device, tokens=16, heads=1, ring=1, slots=(0,))
    args["v_offset"].zero_(), args["v_scale"].fill_(1)
    for part in around.split(16 * 128):
        args["v"] = torch.nn.functional.pad(part, (0, 16 * 128 - len(part))).view(16, 1, 128).to(device)
        run(*args.values())
        check(args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_too_large_or_not_finite_is_nan_and_nothing_else(run, device, dtype):
    args = inputs(dtype, device, tokens=24)
    args["v"].clamp_(-100, 100), args["v_offset"].zero_(), args["v_scale"].fill_(1)
    run(*args.values())
    before = in_order(args["v_ring"])
    spoiled = {7: math.nan, 8: math.inf, 9: -math.inf, 30: 450.0, 31: -450.0, 71: 1e38}
    for token, bad in spoiled.items():
        args["v"][token, 0, token] = bad
    run(*args.values())
    after = in_order(args["v_ring"])
    for token in spoiled:
        at = args["slots"][token // 24] * 24 + token % 24
        assert after[at, 0, token] == 0x7F
        after[at, 0, token] = before[at, 0, token]
    assert torch.equal(after, before)
    args["v"].fill_(448), run(*args.values())
    assert (in_order(args["v_ring"])[args["slots"][0] * 24] == 0x7E).all()


def test_a_scale_of_zero_gives_nan(run, device):
    args = inputs(torch.float32, device)
    args["v_scale"][0, 3] = 0
    args["v"][:, 0, 3] = args["v_offset"][0, 3]
    run(*args.values())
    of_token = in_order(args["v_ring"])[4 * 16]
    assert of_token[0, 3] == 0x7F and (of_token == 0x7F).sum() < 128 / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("head_dim", [128, 24])
def test_dequantize_values_is_the_inverse(device, head_dim, dtype):
    """A value is off by a 16th of itself, without the offset, or half a step of e4m3's smallest at most."""
    args = inputs(torch.float32, device, head_dim=head_dim, heads=2, ring=3, slots=(2, 0, 1), tokens=8)
    args["v"].mul_(0.01)
    OP(*args.values())
    got = dequantize_values(args["v_ring"], args["v_scale"], args["v_offset"], 3, 8, dtype)
    assert got.dtype == dtype and got.shape == (3, 8, 2, head_dim)
    want, offset, scale = (t.double() for t in (args["v"], args["v_offset"], args["v_scale"]))
    want = want.unflatten(0, (3, 8))[[1, 2, 0]]
    rounding = (2**-8 if dtype == torch.bfloat16 else 1e-6) * (want.abs() + offset.abs())
    off = ((want - offset).abs() / 16).maximum(2**-10 * scale) * 1.0001 + rounding
    fits = (want - offset).abs() <= 440 * scale
    assert fits.double().mean() > 0.9 and ((got.double() - want).abs() <= off)[fits].all()
    first = dequantize_values(args["v_ring"], args["v_scale"], args["v_offset"], 2, 8, dtype)
    torch.testing.assert_close(first, got[:2], rtol=0, atol=0, equal_nan=True)


def test_dequantized_values_are_quantised_to_the_same_bytes(device):
    args = inputs(torch.float32, device, ring=3, slots=(0, 1, 2))
    args["v_offset"].zero_(), args["v_scale"].fill_(0.25)
    OP(*args.values())
    again = {name: t.clone() for name, t in args.items()}
    again["v"] = dequantize_values(*(args[name] for name in ("v_ring", "v_scale", "v_offset")), 3, 16, torch.float64)
    again["v"] = again["v"].flatten(0, 1).contiguous()
    again["v_ring"].view(torch.uint8).fill_(UNWRITTEN)
    OP(*again.values())
    values = (in_order(each["v_ring"]).view(torch.float8_e4m3fn).float() for each in (again, args))
    torch.testing.assert_close(*values, rtol=0, atol=0, equal_nan=True)  # -0 is 0 where it comes back


BAD_RINGS = [
    ("v_ring", lambda t: t[0], r"v_ring must be \[any, any, any\]"),
    ("v_ring", lambda t: t.float(), r"v_ring must be torch\.float8_e4m3fn"),
    ("v_ring", lambda t: t[..., :24].contiguous(), "v_ring must have a multiple of 16 tokens, at least 8, got 24"),
    ("v_scale", lambda t: t[:, 1:].contiguous(), r"v_scale must be \[1, 128\]"),
    ("v_scale", lambda t: t.double(), r"v_scale must be torch\.float32"),
    ("v_offset", lambda t: t[0], r"v_offset must be \[1, 128\]"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD_RINGS)
def test_dequantize_values_names_bad_arguments(name, change, message):
    args = inputs(torch.float32, "cpu")
    args[name] = change(args[name])
    with pytest.raises(ValueError, match=message):
        dequantize_values(args["v_ring"], args["v_scale"], args["v_offset"], 1, 8, torch.float32)


def test_dequantize_values_wants_no_more_than_there_is():
    args = inputs(torch.float32, "cpu")
    with pytest.raises(ValueError, match="v_ring must have a multiple of 16 tokens, at least 128, got 112"):
        dequantize_values(args["v_ring"], args["v_scale"], args["v_offset"], 8, 16, torch.float32)


BAD = {
    "v": [lambda t: t[0], lambda t: t.half(), lambda t: t.char(), other_order, lambda t: t[:-8], lambda t: t[..., ::2]],
    "v_offset": [lambda t: t[:, :-1], lambda t: t.flatten(), lambda t: t.bfloat16(), other_device],
    "v_scale": [lambda t: t[:, :-1], lambda t: t.flatten(), lambda t: t.bfloat16(), other_device],
    "v_ring": [lambda t: t[0], lambda t: t.float(), lambda t: t[..., :-8].contiguous(), other_order, other_device],
    "slots": [lambda t: t.int(), lambda t: t[None], other_device],
}


@pytest.mark.parametrize(
    ("name", "spoil"), [pytest.param(n, f, id=f"{n}{i}") for n, all_of in BAD.items() for i, f in enumerate(all_of)]
)
def test_bad_input_is_named_and_nothing_written(backend, device, name, spoil):
    args = inputs(torch.float32, device)
    args[name] = spoil(args[name])
    with pytest.raises((ValueError, RuntimeError), match=rf"\b{name} must\b"):
        OP.impls[backend][0](*args.values())
    assert name == "v_ring" or (in_order(args["v_ring"]) == UNWRITTEN).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 12}, "v must have a multiple of 8 tokens for each of slots' 3 frames, got 36"),
        ({"slots": ()}, "v must have a multiple of 8 tokens for each of slots' 0 frames, got 0"),
        ({"ring": 2}, "v_ring must have a multiple of 16 tokens, at least 48, got 32"),
    ],
)
def test_frames_that_do_not_fit_are_refused(backend, device, changes, message):
    args = inputs(torch.float32, device, **changes)
    with pytest.raises((ValueError, RuntimeError), match=message):
        OP.impls[backend][0](*args.values())


def test_registered_properly(device):
    args = inputs(torch.float32, device)
    rest = ("test_autograd_registration", "test_faketensor")  # the others compare e4m3, which torch does not
    torch.library.opcheck(OP.torch_op, tuple(args.values()), test_utils=rest)
    assert "Tensor(a3!) v_ring" in str(OP.torch_op._schema)


@pytest.mark.gpu
def test_replays_in_a_cuda_graph_with_slots_advanced_in_place(run, device):
    args = inputs(torch.bfloat16, device, tokens=72, heads=12)
    graph, _ = captured(run, *args.values())
    for slots in ((1, 2, 3), (6, 0, 4)):
        args["v_ring"].view(torch.uint8).fill_(UNWRITTEN)
        args["slots"].copy_(torch.tensor(slots))
        args["v"].normal_()
        graph.replay()
        check(args)
