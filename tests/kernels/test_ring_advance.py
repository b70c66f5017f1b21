"""ring_advance against whole numbers and sines in arbitrary precision."""

import math
from decimal import Decimal, localcontext

import pytest
import torch

from longlive_optimized.kernels.ring_advance import ring_advance
from longlive_optimized.model import rope
from support.spoiled import other_device

OP = ring_advance
PAIRS = 22
NAMES = ("start", "freqs", "slots", "rope_time", "sink_time", "window", "sink", "origin")
STARTS = [0, 1, 3, 9, 10, 11, 12, 13, 27, 1020, 1_000_000, 100_000_000]


def inputs(start, device, frames=3, window=12, sink=3, origin=0, table=torch.float32, sink_frames=None, pairs=PAIRS):
    """The outputs lie between sentinels, so that a stray write shows."""
    sinks = sink if sink_frames is None else sink_frames

    def poison(n):
        return torch.full((n + 2, pairs, 2), torch.nan, dtype=table, device=device)[1:-1]

    return {
        "start": torch.tensor([start], device=device),
        "freqs": rope.frequencies(pairs, device),
        "slots": torch.full((frames + 2,), -7, device=device)[1:-1],
        "rope_time": poison(frames),
        "sink_time": poison(sinks),
        "window": torch.tensor([window], device=device),
        "sink": sink,
        "origin": origin,
    }


def exact_turn(position: int, freq: float) -> tuple[float, float]:
    """cos and sin of the float64 angle, its whole turns taken off in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        turn = 2 * Decimal("3.14159265358979323846264338327950288419716939937510582097494")
        angle = Decimal(float(position) * freq) % turn
        near = min((Decimal(k) * turn / 8 for k in range(9)), key=lambda a: abs(a - angle))
        rest, eighth = float(angle - near), round(near / turn * 8)
    # Near a zero the rest alone gives the value: no digits are lost to the angle's size.
    c, s = math.cos(rest), math.sin(rest)
    half = math.sqrt(0.5)
    bc, bs = [(1, 0), (half, half), (0, 1), (-half, half), (-1, 0), (-half, -half), (0, -1), (half, -half), (1, 0)][
        eighth
    ]
    return c * bc - s * bs, s * bc + c * bs


def exact_table(positions: list[int], freqs: torch.Tensor) -> torch.Tensor:
    rows = [[exact_turn(p, f) for f in freqs.tolist()] for p in positions]
    return torch.tensor(rows, dtype=torch.float64).view(len(positions), len(freqs), 2)


def check(args: dict) -> None:
    """Slots in whole numbers; rotations to one unit in the last place of their dtype; the sentinels as before."""
    start, frames, window, sink, origin = (args[n] for n in ("start", "slots", "window", "sink", "origin"))
    start, window = int(start), int(window)
    positions = [start + f for f in range(len(frames))]
    slots = [p - origin if p - origin < sink else sink + (p - sink) % (window - sink) for p in positions]
    assert args["slots"].tolist() == slots
    assert all(0 <= slot < window for slot in slots) and len(set(slots)) == len(slots)
    end = positions[-1] + 1
    first = end - min(end - origin, window)
    sinks = [first + i for i in range(len(args["sink_time"]))]
    for name, where in {"rope_time": positions, "sink_time": sinks}.items():
        got, want = args[name].cpu().double(), exact_table(where, args["freqs"].cpu())
        ulp = 2.0**-23 if args[name].dtype == torch.float32 else 2.0**-52
        torch.testing.assert_close(got, want, rtol=ulp, atol=4e-15)
    assert args["slots"]._base[[0, -1]].tolist() == [-7, -7]
    assert all(args[name]._base[[0, -1]].isnan().all() for name in ("rope_time", "sink_time"))


@pytest.mark.parametrize("start", STARTS)
def test_matches_whole_numbers_and_exact_sines(run, device, start):
    args = inputs(start, device)
    run(*args.values())
    check(args)


CASES = {
    "one-frame": {"frames": 1},
    "two-groups": {"frames": 6, "window": 15},
    "recache": {"frames": 9, "start": 18},
    "whole-window": {"frames": 12},
    "new-sinks": {"frames": 12, "start": 6, "origin": 6},
    "soon-after-new-sinks": {"start": 9, "origin": 6},
    "long-after-new-sinks": {"start": 18, "origin": 6},
    "odd-window": {"window": 8, "start": 40},
    "no-sinks": {"sink": 0, "start": 25},
    "sinks-not-rotated": {"sink_frames": 0, "start": 25},
    "one-slot-beside-the-sinks": {"window": 4, "frames": 1, "start": 9},
    "many-pairs": {"pairs": 300},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_windows_sinks_and_origins(run, device, case):
    args = inputs(**{"start": 0, "device": device} | case)
    run(*args.values())
    check(args)


@pytest.mark.parametrize("start", STARTS)
def test_float64_tables_are_torchs_own(start):
    """What the network computed before there was this operator, bit by bit."""
    args = inputs(start, "cpu", table=torch.float64)
    OP(*args.values())
    positions = start + torch.arange(3)
    assert torch.equal(args["rope_time"], rope.rotation(positions, args["freqs"], torch.float64))
    valid = min(start + 3, 12)
    shifted = torch.arange(3) + (start + 3 - valid)
    assert torch.equal(args["sink_time"], rope.rotation(shifted, args["freqs"], torch.float64))
    check(args)


def test_scores_at_1e8_are_those_at_0(run, device):
    """Only differences of position matter: the angle between two frames does not depend on where they are."""
    near, far = (inputs(start, device) for start in (9, 100_000_000))
    products = []
    for args in (near, far):
        run(*args.values())
        time, sinks = (torch.view_as_complex(args[n].double()) for n in ("rope_time", "sink_time"))
        products.append(time[:, None] * sinks.conj())
    torch.testing.assert_close(*products, rtol=0, atol=1e-6)


def test_slots_of_a_long_stream_cycle(device):
    """Beyond the sinks every slot is written once per round, in order."""
    written = []
    for start in range(3, 3 + 4 * 9, 3):
        args = inputs(start, device)
        OP(*args.values())
        written += args["slots"].tolist()
    assert written == list(range(3, 12)) * 4


BAD = {
    "start": [lambda t: t.int(), lambda t: t.repeat(2), lambda t: t[0]],
    "freqs": [lambda t: t.float(), lambda t: t[None], lambda t: t.repeat_interleave(2)[::2]],
    "slots": [lambda t: t.int(), lambda t: t[None], lambda t: t.repeat_interleave(2)[::2], other_device],
    "rope_time": [lambda t: t[:-1], lambda t: t[..., 0], lambda t: t.half(), lambda t: t.mT.contiguous().mT],
    "sink_time": [lambda t: t[:-1], lambda t: t[..., 0], lambda t: t.half(), lambda t: t.mT.contiguous().mT],
    "window": [lambda t: t.int(), lambda t: t.repeat(2), lambda t: t[0], other_device],
    "sink": [lambda _: -1],
    "origin": [lambda _: -1],
}


@pytest.mark.parametrize(
    ("name", "spoil"), [pytest.param(n, f, id=f"{n}{i}") for n, all_of in BAD.items() for i, f in enumerate(all_of)]
)
def test_bad_input_is_named_and_nothing_written(backend, device, name, spoil):
    args = inputs(9, device)
    before = dict(args)
    args[name] = spoil(args[name])
    with pytest.raises((ValueError, RuntimeError), match=rf"\b{name} must\b"):
        OP.impls[backend][0](*args.values())
    assert before["slots"].eq(-7).all() and before["rope_time"].isnan().all() and before["sink_time"].isnan().all()


def test_there_must_be_frames(backend, device):
    args = inputs(9, device, frames=0)
    with pytest.raises((ValueError, RuntimeError), match="slots must have at least 1 frame"):
        OP.impls[backend][0](*args.values())


def test_registered_properly(device):
    torch.library.opcheck(OP.torch_op, tuple(inputs(9, device).values()))


def test_compiles_to_one_graph(device):
    args = inputs(27, device)
    torch.compile(lambda *a: OP(*a), fullgraph=True, backend="aot_eager")(*args.values())
    check(args)


@pytest.mark.gpu
def test_a_cuda_graph_replays_at_another_start_and_window(run, device):
    args = inputs(0, device)
    run(*args.values())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(*args.values())
    args["start"].fill_(1_000_000)
    args["window"].fill_(9)
    graph.replay()
    check(args)
