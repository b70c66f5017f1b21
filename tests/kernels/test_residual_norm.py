"""residual_norm against float64: x as stored to one rounding, and the norm of x as stored to one rounding."""

import pytest
import torch

from longlive_optimized.kernels.residual_norm import residual_norm, residual_norm_int8
from support.results import same
from support.spoiled import other_device, other_order

OP = residual_norm
EPS = 1e-6
NAMES = ("x", "y", "gate", "shift", "scale")


def inputs(rows: int, size: int, dtype, device, gates: int | None = 1, groups: int = 1) -> dict:
    """Random rows; gate, shift and scale as the network has them: views of one [groups, 6, size] tensor.

    x and y lie between rows of NaN, so that a stray read or write shows.
    """
    torch.manual_seed(rows * 10 + size)

    def poisoned(t):
        whole = torch.full((rows + 2, size), torch.nan, dtype=dtype, device=device)
        whole[1:-1] = t.to(device, dtype)
        return whole[1:-1]

    m = (0.5 * torch.randn(max(groups, gates or 0), 6, size, dtype=torch.float64)).to(device, dtype)
    x, y = (k * torch.randn(rows, size, dtype=torch.float64) + 0.5 for k in (2, 1))
    gate = None if gates is None else m[:gates, 2]
    return dict(zip(NAMES, (poisoned(x), poisoned(y), gate, m[:groups, 3], m[:groups, 4]), strict=True))


def per_row(t: torch.Tensor, rows: int) -> torch.Tensor:
    return t.double().repeat_interleave(rows // len(t), 0)


def true_sum(args: dict) -> torch.Tensor:
    x, y, gate = (args[n] for n in NAMES[:3])
    return x.double() + y.double() * (1 if gate is None else per_row(gate, len(x)))


def true_norm(x: torch.Tensor, args: dict, offset: float) -> torch.Tensor:
    x = x.double()
    centred = x - x.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + EPS).sqrt()
    return normed * (offset + per_row(args["scale"], len(x))) + per_row(args["shift"], len(x))


def check(run, close, args: dict, offset: float) -> None:
    """Both results, y as it was, and NaN as before around x."""
    x, y, want = args["x"], args["y"].clone(), true_sum(args)
    out = run(*args.values(), offset, EPS)
    close(x, want)
    # Where the sum cancels, x is small beside its terms; its own rounding is all that counts in the norm.
    close(out, true_norm(x, args, offset))
    assert out.dtype == x.dtype and out.shape == x.shape and out.is_contiguous()
    assert torch.equal(args["y"], y)
    assert all(t._base[[0, -1]].isnan().all() for t in (x, args["y"]))


CASES = {
    "empty": (0, 128, 1, 1),
    "one-row": (1, 128, 1, 1),
    "prime": (13, 256, 1, 1),
    "no-gate": (6, 256, None, 3),
    "three-groups": (21, 256, 3, 3),
    "groups-differ": (6, 1536, 3, 2),
    "affine": (6, 256, 3, 1),
    "a-group-a-row": (7, 1536, 7, 7),
    "widest": (3, 1536, 1, 1),
    "not-a-multiple": (6, 100, 2, 3),
    "wide": (2, 2048, 1, 2),
}
REAL = {"block": (4680, 1536, 3, 3), "two-blocks": (9360, 1536, 6, 1)}
SHAPES = [pytest.param(c, id=n) for n, c in CASES.items()]
SHAPES += [pytest.param(c, id=n, marks=pytest.mark.gpu) for n, c in REAL.items()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [1.0, 0.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_float64(run, close, device, shape, offset, dtype):
    rows, size, gates, groups = shape
    check(run, close, inputs(rows, size, dtype, device, gates, groups), offset)


@pytest.mark.parametrize("gates", [None, 2])
def test_reference_in_float64(close, gates):
    check(OP.reference, close, inputs(6, 96, torch.float64, "cpu", gates, 3), 1.0)


def test_the_norm_is_that_of_the_rounded_sum(run, device):
    """At 256 bfloat16 goes in steps of 2: the norm of the sum before its rounding is quite another."""
    args = inputs(12, 256, torch.bfloat16, device, None, 3)
    args["x"].fill_(256)
    unrounded = true_norm(true_sum(args), args, 1.0)
    out = run(*args.values(), 1.0, EPS)
    # A float32 mean near 256 is off by up to 2e-5.
    torch.testing.assert_close(out.double(), true_norm(args["x"], args, 1.0), rtol=2**-7, atol=1e-4)
    assert (out - unrounded).norm() > 0.2 * unrounded.norm()


def test_no_gate_is_a_gate_of_one(run, device):
    with_gate, without = (inputs(6, 256, torch.bfloat16, device, g, 3) for g in (3, None))
    with_gate["gate"] = torch.ones(3, 256, dtype=torch.bfloat16, device=device)
    with_gate |= {n: without[n].clone() for n in ("x", "shift", "scale")}
    assert torch.equal(run(*with_gate.values(), 1.0, EPS), run(*without.values(), 1.0, EPS))
    assert torch.equal(with_gate["x"], without["x"])


def test_large_mean_does_not_cancel(run, device):
    # sum(x^2)/n - mean^2 in float32 would be off by about 0.1 here.
    args = inputs(5, 1536, torch.float32, device)
    args["x"] += 1000
    out = run(*args.values(), 1.0, EPS)
    torch.testing.assert_close(out.double(), true_norm(args["x"], args, 1.0), rtol=0, atol=2e-3)


def test_a_row_depends_on_itself_alone(run, device):
    clean, spoiled = (inputs(10, 256, torch.bfloat16, device, 2, 5) for _ in range(2))
    spoiled["y"][3] = torch.nan
    outs = [run(*args.values(), 1.0, EPS) for args in (clean, spoiled)]
    others = [0, 1, 2, *range(4, 10)]
    assert outs[1][3].isnan().all() and spoiled["x"][3].isnan().all()
    assert torch.equal(outs[1][others], outs[0][others])
    assert torch.equal(spoiled["x"][others], clean["x"][others])


def test_closer_to_the_truth_than_the_published_roundings(device):
    args = inputs(150, 1536, torch.bfloat16, device, 3, 3)
    want_x = true_sum(args)
    want = true_norm(want_x, args, 1.0)
    x, y, gate, shift, scale = (t if n in "xy" else t[:, None] for n, t in args.items())
    x = x.view(3, 50, -1) + y.view(3, 50, -1) * gate
    z = torch.nn.functional.layer_norm(x.float(), x.shape[-1:], eps=EPS).bfloat16()
    z = (z * (1 + scale) + shift).flatten(0, 1)
    ours = OP(*args.values(), 1.0, EPS)
    assert (ours - want).norm() < (z - want).norm()
    assert (args["x"] - want_x).norm() < (x.flatten(0, 1) - want_x).norm()


BAD = {
    "x": [lambda t: t[None], other_order, lambda t: t.half(), lambda t: t.int()],
    "y": [lambda t: t[:-1], lambda t: t[:, :-8].contiguous(), other_order, lambda t: t.double(), other_device],
    "gate": [lambda t: t[:, :-8], lambda t: t[0], lambda t: t.double(), other_order, lambda t: t[:0], lambda t: t.mT],
    "shift": [lambda t: t[:, :-8], lambda t: t[0], lambda t: t.double(), other_order, lambda t: t[:0]],
    "scale": [lambda t: t[:1], lambda t: t[:, :-8], lambda t: t.double(), other_device, other_order],
}


def test_compiles_to_one_graph(device):
    eager, traced = (inputs(6, 128, torch.float32, device, 2, 3) for _ in range(2))
    compiled = torch.compile(lambda x, *rest: OP(x, *rest, 1.0, EPS) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*traced.values()), OP(*eager.values(), 1.0, EPS) + 1)
    torch.testing.assert_close(traced["x"], eager["x"])


class Both:
    """What holds of the plain operator and of its int8 form alike."""

    @pytest.mark.parametrize(
        ("name", "spoil"), [pytest.param(n, f, id=f"{n}{i}") for n, all_of in BAD.items() for i, f in enumerate(all_of)]
    )
    def test_bad_input_is_named_and_nothing_written(self, backend, device, name, spoil):
        args = inputs(6, 256, torch.float32, device, 2, 3)
        x, before = args["x"], args["x"].clone()
        args[name] = spoil(args[name])
        with pytest.raises((ValueError, RuntimeError), match=rf"\b{name} must\b"):
            self.OP.impls[backend][0](*args.values(), 1.0, EPS)
        assert torch.equal(x, before)

    @pytest.mark.parametrize("name", ["gate", "shift"])
    def test_groups_must_divide_the_rows(self, backend, device, name):
        args = inputs(6, 256, torch.float32, device, 2, 3)
        args[name] = torch.zeros(4, 256, device=device)
        args["scale"] = args["shift"] if name == "shift" else args["scale"]
        with pytest.raises((ValueError, RuntimeError), match=rf"{name} must have a row count that divides x's 6"):
            self.OP.impls[backend][0](*args.values(), 1.0, EPS)

    @pytest.mark.parametrize("gates", [None, 2])
    def test_registered_properly(self, device, gates):
        torch.library.opcheck(self.OP.torch_op, (*inputs(6, 128, torch.float32, device, gates, 3).values(), 1.0, EPS))

    @pytest.mark.gpu
    def test_unaligned_rows_go_to_triton(self):
        args = inputs(6, 136, torch.bfloat16, "cuda", 2, 3)
        assert self.OP.choose(*args.values(), 1.0, EPS) == "cuda"
        assert self.OP.choose(*(args | {"gate": None}).values(), 1.0, EPS) == "cuda"
        for name in ("gate", "shift", "scale"):
            moved = torch.zeros(len(args[name]), 137, dtype=torch.bfloat16, device="cuda")[:, 1:]
            assert self.OP.choose(*(args | {name: moved}).values(), 1.0, EPS) == "triton"

    @pytest.mark.gpu
    def test_replays_in_a_cuda_graph(self, run, device):
        args, fresh = (inputs(21, 1536, torch.bfloat16, device, 3, 3) for _ in range(2))
        run(*args.values(), 1.0, EPS)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run(*args.values(), 1.0, EPS)
        args["x"].copy_(fresh["x"].mul_(-3))
        graph.replay()
        assert same(out, run(*fresh.values(), 1.0, EPS)) and torch.equal(args["x"], fresh["x"])


class TestPlain(Both):
    OP = residual_norm


class TestInt8(Both):
    """residual_norm_int8: x as residual_norm writes it; values times their scale are the norm, to half a step."""

    OP = residual_norm_int8

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("offset", [1.0, 0.0])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_matches_float64(self, run, backend, close_int8, device, shape, offset, dtype):
        rows, size, gates, groups = shape
        args, twin = (inputs(rows, size, dtype, device, gates, groups) for _ in range(2))
        x, y = args["x"], args["y"].clone()
        values, scale = run(*args.values(), offset, EPS)
        residual_norm.impls[backend][0](*twin.values(), offset, EPS)
        assert torch.equal(x, twin["x"]) and torch.equal(args["y"], y)
        close_int8(values, scale, true_norm(x, args, offset))
        assert all(t._base[[0, -1]].isnan().all() for t in (x, args["y"]))

    @pytest.mark.parametrize("gates", [None, 2])
    def test_reference_in_float64(self, close, close_int8, gates):
        args = inputs(6, 96, torch.float64, "cpu", gates, 3)
        want = true_sum(args)
        values, scale = self.OP.reference(*args.values(), 1.0, EPS)
        close(args["x"], want)
        close_int8(values, scale, true_norm(want, args, 1.0), 2**-22)

    def test_the_norm_is_that_of_the_rounded_sum(self, run, close_int8, device):
        args = inputs(12, 256, torch.bfloat16, device, None, 3)
        args["x"].fill_(256)
        values, scale = run(*args.values(), 1.0, EPS)
        close_int8(values, scale, true_norm(args["x"], args, 1.0), 1e-4)  # a float32 mean near 256 is off by 2e-5

    @pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_what_is_not_finite_shows_in_its_own_scale_alone(self, run, device, bad):
        clean, spoiled = (inputs(10, 256, torch.bfloat16, device, 2, 5) for _ in range(2))
        spoiled["y"][3, 77] = bad
        outs = [run(*args.values(), 1.0, EPS) for args in (clean, spoiled)]
        others = [0, 1, 2, *range(4, 10)]
        assert outs[1][1][0, 3].isnan()
        assert torch.equal(outs[1][0][others], outs[0][0][others])
        assert torch.equal(outs[1][1][0, others], outs[0][1][0, others])
