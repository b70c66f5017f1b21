"""int8_linear and int8_linear_gelu: exact sums, float64 for the rest, and what int8 costs the unquantised product."""

import math
import os
import random
from collections.abc import Callable

import pytest
import torch

from longlive_optimized.kernels import int8_linear as module
from longlive_optimized.kernels.int8_linear import int8_linear, int8_linear_gelu, pack
from longlive_optimized.kernels.quantize import quantize
from support.emulated import run_on_a_cpu
from support.graphs import captured
from support.int8_data import DEPTHS, activations, check_int8, error, weights
from support.results import same
from support.spoiled import other_device, other_order

OP = int8_linear
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NAMES = ("x", "x_scale", "weight", "weight_scale", "bias")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
CASES = {
    "empty": (0, 64, 32, 1),
    "one-row": (1, 64, 32, 1),
    "one-column": (5, 1, 32, 1),
    "a-group-a-column": (3, 4, 32, 4),
    "prime": (13, 37, 96, 1),
    "prime-groups": (7, 39, 32, 3),
    "tiny-model-up": (60, 256, 448, 1),
    "tiny-model-down": (60, 448, 256, 7),
    "two-tiles": (129, 96, 160, 1),
    "groups-of-128": (33, 384, 64, 3),
    "whole-tiles": (129, 256, 128, 1),
    "whole-tiles-groups-of-128": (33, 384, 128, 3),
    "whole-tiles-groups-of-256": (70, 512, 256, 2),
}
REAL = {
    "qkv": (4680, 1536, 4608, 1),
    "out": (2160, 1536, 1536, 12),
    "up": (2160, 1536, 8960, 1),
    "down": (4680, 8960, 1536, 35),
    "down-fewer-rows": (2160, 8960, 1536, 35),
    "down-groups-of-128": (4680, 8960, 1536, 70),
    "down-long-groups": (4680, 5120, 1536, 2),  # longer than the CUDA kernel's ring of stages
    "down-long-groups-fewer-rows": (2160, 7680, 1536, 3),
}
SHAPES = [pytest.param(c, id=n) for n, c in CASES.items()]
SHAPES += [pytest.param(c, id=n, marks=pytest.mark.gpu) for n, c in REAL.items()]


def inputs(rows: int, depth: int, channels: int, runs: int, dtype: torch.dtype, device: str) -> dict:
    """All int8 values but -128, and scales that leave sums of about 1. The rows lie between rows of 127."""
    torch.manual_seed(rows + depth + channels)
    whole = torch.full((rows + 2, depth), 127, dtype=torch.int8, device=device)
    whole[1:-1] = torch.randint(-127, 128, (rows, depth), dtype=torch.int8, device=device)
    weight = torch.randint(-127, 128, (channels, depth), dtype=torch.int8, device=device)
    x_scale = torch.rand(runs, rows, device=device) + 0.5
    weight_scale = (torch.rand(channels, device=device) + 0.5) / 5000 / depth**0.5
    bias = torch.randn(channels, device=device).to(dtype)
    return dict(zip(NAMES, (whole[1:-1], x_scale, weight, weight_scale, bias), strict=True))


def packed_of(channel: int) -> int:
    """Where ``pack`` puts a row, by the formula of its description."""
    b, rest = divmod(channel, 32)
    t, i, j = rest // 8, rest % 8 // 2, rest % 2
    return 32 * b + 8 * i + 2 * t + j


def plain(weight: torch.Tensor) -> torch.Tensor:
    return weight[[packed_of(m) for m in range(len(weight))]]


def sums_of(x, x_scale, weight, weight_scale, bias) -> torch.Tensor:
    """The sums of each group of columns, [G, N, M], exact in float64; weight is packed."""
    runs = len(x_scale)
    a, b = (t.double().unflatten(1, (runs, -1)).transpose(0, 1) for t in (x, plain(weight)))
    return a @ b.transpose(1, 2)


def truth(**args: torch.Tensor) -> torch.Tensor:
    total = (args["x_scale"].double()[..., None] * sums_of(**args)).sum(0)
    return total * args["weight_scale"].double() + args["bias"].double()


def bound(**args: torch.Tensor) -> torch.Tensor:
    """What float32 may be off by: a rounding of each group's sum and term, on magnitudes that do not cancel."""
    terms = (args["x_scale"].double()[..., None] * sums_of(**args).abs()).sum(0) * args["weight_scale"].double()
    return (len(args["x_scale"]) + 4) * 2.0**-24 * (terms + args["bias"].double().abs()) + 1e-30


@DTYPES
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_float64(run, close, device, shape, dtype):
    args = inputs(*shape, dtype, device)
    out = run(*args.values())
    assert out.dtype == dtype and out.shape == (shape[0], shape[2]) and out.is_contiguous()
    want = truth(**args)
    if dtype == torch.float32:
        assert ((out - want).abs() <= bound(**args)).all()
    else:
        close(out, want)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0)], ids=str)
@pytest.mark.parametrize(
    "shape", [(129, 96, 160, 1), (7, 39, 32, 3), (33, 384, 64, 3), (20, 64, 4128, 1), (20, 128, 4352, 1)], ids=str
)
def test_triton_as_on_other_gpus(monkeypatch, device, capability, shape):
    """The tiles of each generation, at ragged edges, and with so many channels that tiles are wide."""
    pytest.importorskip("triton")
    if device == "cpu" and not INTERPRETED:
        pytest.skip("without a GPU Triton is interpreted or not run")
    monkeypatch.setattr(module, "generation", lambda device: capability)
    args = inputs(*shape, torch.float32, device)
    assert ((OP.impls["triton"][0](*args.values()) - truth(**args)).abs() <= bound(**args)).all()


@pytest.fixture
def exactly(close):
    """Bit for bit a float64 truth rounded to the result's dtype, which Triton's interpreter cuts off instead."""

    def check(got: torch.Tensor, truth: torch.Tensor) -> None:
        if INTERPRETED and got.dtype == torch.bfloat16:
            close(got, truth)
        else:
            assert torch.equal(got, truth.to(got.dtype))

    return check


@DTYPES
@pytest.mark.parametrize("depth", [64, 1024, 1041, 4099, 8960, pytest.param(131071, marks=pytest.mark.gpu)])
def test_the_largest_sums_are_exact(run, exactly, device, depth, dtype):
    """Each is the largest or smallest there is, but for one product: float32 and int16 would lose it."""
    x = torch.full((3, depth), 127, dtype=torch.int8, device=device)
    x[1] = -128
    x[2, 0] = 126
    weight = torch.full((32, depth), -128, dtype=torch.int8, device=device)
    one = torch.ones(32, device=device)
    out = run(x, torch.ones(1, 3, device=device), weight, one, torch.zeros(32, dtype=dtype, device=device))
    want = torch.tensor([-127 * 128 * depth, 128 * 128 * depth, -127 * 128 * depth + 128], device=device)
    exactly(out, want.float().double()[:, None].expand(3, 32))


@DTYPES
def test_integer_sums_bit_for_bit(run, exactly, device, dtype):
    """With scales of 1 and sums below 2^24 all arithmetic is exact."""
    args = inputs(37, 512, 96, 4, dtype, device)
    args |= {name: torch.ones_like(args[name]) for name in ("x_scale", "weight_scale")}
    args["bias"] = torch.arange(96, device=device).to(dtype)
    exactly(run(*args.values()), truth(**args))


@DTYPES
def test_channels_are_in_the_plain_order(run, exactly, device, dtype):
    """A weight that is the identity: each channel is its own column."""
    eye = 127 * torch.eye(128, dtype=torch.int8, device=device)
    x = torch.randint(-127, 128, (5, 128), dtype=torch.int8, device=device)
    bias = torch.arange(128, device=device).to(dtype)
    scale = 1 + torch.arange(128, device=device) / 64
    out = run(x, torch.ones(1, 5, device=device), pack(eye), scale, bias)
    exactly(out, x.double() * 127 * scale.double() + bias.double())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter
def test_a_row_depends_on_itself_alone(run, device):
    """Bit for bit, whatever the number of rows; a scale that is not finite shows."""
    args = inputs(70, 384, 64, 3, torch.bfloat16, device)
    whole = run(*args.values())
    some = args | {"x": args["x"][3:8].contiguous(), "x_scale": args["x_scale"][:, 3:8].contiguous()}
    assert torch.equal(run(*some.values()), whole[3:8])
    args["x_scale"][1, 5], args["x_scale"][2, 6] = torch.nan, torch.inf
    spoiled = run(*args.values())
    assert not spoiled[5:7].isfinite().any()
    others = [*range(5), *range(7, 70)]
    assert torch.equal(spoiled[others], whole[others])


def random_sizes(rng: random.Random, device: str, whole: bool) -> tuple[int, int]:
    """Rows and depth of a group, for which tiles have edges everywhere; ``whole``: of 128 columns, as CUDA's are."""
    large = device != "cpu" and rng.random() < 0.1
    rows = rng.randint(1, 140 if device == "cpu" else 5000 if large else 700)
    depth = 128 * rng.randint(1, 3 if device == "cpu" else 12)
    return rows, depth if whole or rng.random() < 0.5 else rng.randint(1, 70)


def check_random_call(rng: random.Random, run: Callable, backend: str, device: str) -> None:
    """One call of random shape: with scales that leave all arithmetic exact, or of any size."""
    runs, channels = rng.choice((1, 1, 2, 5)), 32 * rng.randint(1, rng.choice((9, 9, 60)) if device != "cpu" else 9)
    rows, depth = random_sizes(rng, device, backend == "cuda")
    args = inputs(rows, runs * depth, channels, runs, torch.bfloat16 if backend == "cuda" else torch.float32, device)
    exact = rng.random() < 0.5
    if exact:
        args |= {name: 2.0 ** torch.randint_like(args[name], -2, 3) for name in ("x_scale", "weight_scale")}
        args["bias"] = torch.randint_like(args["bias"], -8, 8)
        args["x"] = (args["x"] // 16).contiguous()  # sums of all terms, in quarters, below 2^24
    else:
        args |= {name: args[name] * 10.0 ** rng.randint(-6, 6) for name in ("x_scale", "weight_scale", "bias")}
        args["x_scale"] *= 10.0 ** torch.randint_like(args["x_scale"], -3, 4)
    out, want = run(*args.values()), truth(**args)
    if exact:
        good = torch.equal(out, want.to(out.dtype))
    else:
        rounding = 0 if out.dtype == torch.float32 else 2.0**-8 * want.abs()
        good = bool(((out - want).abs() <= 1.01 * rounding + bound(**args)).all())
    assert good, (rows, runs, depth, channels, exact)


def test_random_shapes(run, backend, device):
    """``tests/measure/random_calls.py`` tries as many as one likes."""
    rng = random.Random(backend)
    for _ in range(8 if device == "cpu" else 300):
        check_random_call(rng, run, backend, device)


def test_zeros(run, device):
    args = inputs(6, 256, 32, 2, torch.bfloat16, device)
    args["x_scale"].zero_()
    assert torch.equal(run(*args.values()), args["bias"].expand(6, 32))


# Relative L2 of the product by its scales: one a row of x, or one for each 128 columns.
RECIPES = {
    "normal": (0.0115, 0.0092),
    "outlier-channels": (0.057, 0.024),
    "large-tokens": (0.0113, 0.0091),
    "gelu": (0.0160, 0.0109),
    "gelu-outliers": (0.105, 0.018),
}


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("grouped", [False, True], ids=["row", "groups"])
def test_error_of_the_recipe(run, backend, device, kind, grouped):
    """Against float64 of what was not quantised: within 1.2 of what the recipe is known for."""
    if backend == "triton" and device == "cpu" and DEPTHS[kind] > 2000:
        pytest.skip("the interpreter is slow")
    x, weight = activations(kind, 64).to(device), weights(kind, 128).to(device)
    values, scale = quantize(x, x.shape[1] // 128 if grouped else 1)
    q, weight_scale = quantize(weight, 1)
    out = run(values, scale, pack(q), weight_scale[0], torch.zeros(128, dtype=torch.bfloat16, device=device))
    assert error(out, x.double() @ weight.double().T) <= 1.2 * RECIPES[kind][grouped]


def test_pack_is_the_permutation_it_says():
    weight = torch.arange(96)[:, None].expand(96, 3)
    rows = pack(weight)[:, 0].tolist()
    for b in range(3):
        for i in range(4):
            for t in range(4):
                for j in range(2):
                    assert rows[32 * b + 8 * i + 2 * t + j] == 32 * b + 8 * t + 2 * i + j


def test_pack_is_its_own_inverse():
    weight = torch.randint(-127, 128, (64, 48), dtype=torch.int8)
    assert torch.equal(pack(pack(weight)), weight) and not torch.equal(pack(weight), weight)
    assert torch.equal(pack(weight), plain(weight))
    assert pack(weight).is_contiguous()
    assert pack(weight[:0]).shape == (0, 48)


@pytest.mark.parametrize("shape", [(48, 8), (33, 8), (32,), (2, 32, 8)])
def test_pack_refuses(shape):
    with pytest.raises(ValueError, match="weight must be"):
        pack(torch.zeros(shape))


BAD = {
    "x": [lambda t: t[None], other_order, lambda t: t.float(), lambda t: t.view(torch.uint8)],
    "x_scale": [
        lambda t: t[:, :-1].contiguous(),
        lambda t: t[0],
        lambda t: t.double(),
        other_order,
        lambda t: t[:0],
        lambda t: t.repeat(3, 1)[:5].contiguous(),
        other_device,
    ],
    "weight": [
        lambda t: t[:, :-1].contiguous(),
        lambda t: t[:-1],
        lambda t: t.float(),
        lambda t: t[None],
        other_order,
        other_device,
    ],
    "weight_scale": [lambda t: t[:-1], lambda t: t[None], lambda t: t.double(), lambda t: t.bfloat16(), other_device],
    "bias": [lambda t: t[:-1], lambda t: t[None], lambda t: t.double(), lambda t: t.half(), other_device],
}
SPOILED = pytest.mark.parametrize(
    ("name", "spoil"), [pytest.param(n, f, id=f"{n}{i}") for n, all_of in BAD.items() for i, f in enumerate(all_of)]
)


@pytest.mark.parametrize(
    ("source", "cases"),
    [
        ("int8_tiles", 3000),  # each tile once, and its weights shared where all of a cluster's are the same
        ("int8_linear", 60),  # the CUDA kernel's source, its threads and engines in random order
    ],
)
def test_on_a_cpu(tmp_path, source, cases):
    run_on_a_cpu(tmp_path, f"{source}.cpp", cases)


@SPOILED
def test_bad_input_is_named(backend, device, name, spoil):
    args = inputs(6, 128, 64, 2, torch.bfloat16, device)
    args[name] = spoil(args[name])
    with pytest.raises((ValueError, RuntimeError), match=rf"\b{name} must\b"):
        OP.impls[backend][0](*args.values())


def test_sums_that_may_overflow_are_refused(backend, device):
    args = inputs(1, 131072, 32, 1, torch.bfloat16, device)
    with pytest.raises((ValueError, RuntimeError), match=r"x must have at most 131071 columns for each row of x_scale"):
        OP.impls[backend][0](*args.values())


def test_registered_properly(device):
    torch.library.opcheck(OP.torch_op, tuple(inputs(6, 128, 64, 2, torch.float32, device).values()))


def test_compiles_to_one_graph(device):
    args = inputs(6, 128, 64, 2, torch.float32, device)
    compiled = torch.compile(lambda *a: OP(*a) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args.values()), OP(*args.values()) + 1)


@pytest.mark.gpu
def test_replays_in_a_cuda_graph(run, device):
    args = inputs(31, 384, 96, 3, torch.bfloat16, device)
    graph, out = captured(run, *args.values())
    args["x"].random_(-127, 128)
    args["x_scale"].uniform_()
    graph.replay()
    assert torch.equal(out, run(*args.values()))


GELU_CASES = {
    "empty": (0, 64, 64, 1, 2),
    "one-row": (1, 64, 32, 1, 1),
    "small-groups": (9, 64, 64, 2, 8),
    "odd-groups": (5, 32, 96, 1, 3),
    "prime": (37, 39, 192, 3, 2),
    "tiny-model": (60, 256, 448, 1, 7),
    "wide-groups": (70, 256, 512, 1, 2),
}
GELU_REAL = {"layer": (4680, 1536, 8960, 1, 35), "short": (2160, 1536, 8960, 1, 70)}
GELU_SHAPES = [pytest.param(c, id=n) for n, c in GELU_CASES.items()]
GELU_SHAPES += [pytest.param(c, id=n, marks=pytest.mark.gpu) for n, c in GELU_REAL.items()]


def gelu(h: torch.Tensor) -> torch.Tensor:
    return h / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))


def check_random_gelu(rng: random.Random, run: Callable, backend: str, device: str) -> None:
    """The same of int8_linear_gelu."""
    groups = rng.randint(1, 8 if device != "cpu" else 3)
    runs = 1 if backend == "cuda" else rng.choice((1, 1, 3))
    channels = groups * (256 if backend == "cuda" else rng.choice((64, 256)))
    rows, depth = random_sizes(rng, device, backend != "reference")
    args = inputs(rows, runs * depth, channels, runs, torch.bfloat16, device)
    size = 10 ** rng.uniform(-0.3, 1)
    args |= {name: args[name] * size for name in ("weight_scale", "bias")}
    values, scale = run(*args.values(), groups)
    try:
        check_int8(values, scale, gelu(truth(**args)), 2e-3 if backend == "cuda" else 1e-5)
    except AssertionError as error:
        raise AssertionError((rows, runs, depth, channels, groups, size)) from error


class TestGelu:
    """int8_linear_gelu, which has all its arguments in common with int8_linear."""

    OP = int8_linear_gelu

    @DTYPES
    @pytest.mark.parametrize("shape", GELU_SHAPES)
    def test_matches_float64(self, run, backend, close_int8, device, shape, dtype):
        *sizes, groups = shape
        args = inputs(*sizes, dtype, device)
        values, scale = run(*args.values(), groups)
        # Float32 sums of some terms, and a GELU by approximate exponentials; CUDA's is of halves, good to 2^-11.
        close_int8(values, scale, gelu(truth(**args)), 2e-3 if backend == "cuda" else 1e-5)
        assert len(scale) == groups

    @pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # of Triton's interpreter
    def test_random_shapes(self, run, backend, device):
        rng = random.Random(backend)
        for _ in range(8 if device == "cpu" else 300):
            check_random_gelu(rng, run, backend, device)

    def test_gelu_is_the_tanh_form(self, run, device):
        """Down the tail, where the two forms differ by percents. A group is a channel, whose scale is its magnitude."""
        h = torch.linspace(-4, -1, 64, device=device)
        weight = torch.zeros(64, 32, dtype=torch.int8, device=device)
        one = torch.ones(1, 1, device=device)
        values, scale = run(weight[:1], one, weight, torch.ones_like(h), h, 64)
        assert (values == -127).all()
        torch.testing.assert_close(-127 * scale[:, 0].double(), gelu(h.double()), rtol=2e-5, atol=3e-7)

    def test_zeros(self, run, backend, device):
        args = inputs(6, 128, 512, 1, torch.bfloat16, device)
        args["x"].zero_()
        args["bias"].zero_()
        values, scale = run(*args.values(), 2)
        assert not values.any()
        assert scale.isfinite().all() if backend == "cuda" else not scale.any()  # CUDA's is that of a half

    @pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")  # of Triton's interpreter
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_what_is_not_finite_shows_in_its_own_rows_alone(self, run, device, bad):
        args = inputs(9, 128, 512, 1, torch.bfloat16, device)
        clean = run(*args.values(), 2)
        args["x_scale"][0, 4] = bad
        values, scale = run(*args.values(), 2)
        assert not scale[:, 4].isfinite().any()
        others = [0, 1, 2, 3, 5, 6, 7, 8]
        assert torch.equal(values[others], clean[0][others]) and torch.equal(scale[:, others], clean[1][:, others])

    @SPOILED
    def test_bad_input_is_named(self, backend, device, name, spoil):
        args = inputs(6, 128, 64, 2, torch.bfloat16, device)
        args[name] = spoil(args[name])
        with pytest.raises((ValueError, RuntimeError), match=rf"\b{name} must\b"):
            self.OP.impls[backend][0](*args.values(), 2)

    @pytest.mark.parametrize("groups", [0, -1, 3, 128])
    def test_groups_must_divide_the_channels(self, backend, device, groups):
        args = inputs(6, 128, 64, 2, torch.bfloat16, device)
        with pytest.raises((ValueError, RuntimeError), match=r"groups must divide the 64 rows of weight"):
            self.OP.impls[backend][0](*args.values(), groups)

    def test_registered_properly(self, device):
        torch.library.opcheck(self.OP.torch_op, (*inputs(6, 128, 64, 2, torch.float32, device).values(), 2))

    @pytest.mark.gpu
    def test_groups_wider_than_a_program_go_to_the_reference(self):
        args = inputs(6, 128, 544, 1, torch.bfloat16, "cuda")
        takes = self.OP.impls["triton"][1]
        assert takes(*args.values(), 17) and not takes(*args.values(), 2)

    @pytest.mark.gpu
    def test_replays_in_a_cuda_graph(self, run, device):
        args = inputs(31, 384, 512, 1, torch.bfloat16, device)
        graph, out = captured(run, *args.values(), 2)
        args["x"].random_(-127, 128)
        graph.replay()
        assert same(out, run(*args.values(), 2))
