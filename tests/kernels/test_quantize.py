"""quantize against its formula in float64, and the same values bit for bit on every backend."""

import random
from collections.abc import Callable

import pytest
import torch

from longlive_optimized.kernels.quantize import quantize
from support.graphs import captured
from support.results import same

OP = quantize
CASES = {
    "empty": (0, 128, 1),
    "one-value": (1, 1, 1),
    "one-column": (5, 1, 1),
    "a-group-a-column": (3, 8, 8),
    "prime": (13, 37, 1),
    "prime-groups": (7, 39, 3),
    "tiny-model": (21, 448, 7),
    "odd-groups": (6, 320, 5),
    "heads": (17, 1536, 12),
    "row": (17, 1536, 1),
    "short-row": (5, 8, 1),
    "part-of-a-warp": (13, 1000, 1),
    "long-row": (3, 8960, 1),
    "long-groups": (2, 8960, 70),
}
REAL = {"layer": (4680, 1536, 12), "layer-row": (4680, 1536, 1), "ffn": (2160, 8960, 70), "ffn-row": (2160, 8960, 1)}
SHAPES = [pytest.param(c, id=n) for n, c in CASES.items()]
SHAPES += [pytest.param(c, id=n, marks=pytest.mark.gpu) for n, c in REAL.items()]


def inputs(rows: int, size: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Random rows of quite different magnitudes, between rows of NaN, so that a stray read shows."""
    torch.manual_seed(rows * 10 + size)
    whole = torch.full((rows + 2, size), torch.nan, dtype=torch.float64)
    whole[1:-1] = torch.randn(rows, size, dtype=torch.float64) * 10.0 ** torch.randint(-6, 7, (rows, 1))
    return whole.to(device, dtype)[1:-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_formula(run, close_int8, device, shape, dtype):
    rows, size, groups = shape
    x = inputs(rows, size, dtype, device)
    values, scale = run(x, groups)
    close_int8(values, scale, x.double(), 2**-22)
    assert len(scale) == groups
    expected = OP.reference(x.cpu(), groups)
    assert torch.equal(values.cpu(), expected[0]) and torch.equal(scale.cpu(), expected[1])


def check_random_call(rng: random.Random, run: Callable, backend: str, device: str) -> None:
    """One call of random shape, rows of any magnitude that float32 has: the reference's bits."""
    dtype = rng.choice((torch.float32, torch.bfloat16))
    groups = 1 if backend == "cuda" else rng.choice((1, 7))
    widths = rng.choice(((65, 128), (257, 512)))  # of few powers of two: Triton compiles its kernel for each
    size = 8 * rng.randint(1, 192) if backend == "cuda" else groups * rng.randint(*widths)
    rows = rng.randint(1, rng.choice((5, 40 if device == "cpu" else 3000)))
    power = torch.randint(-44, 38, (rows, 1), device=device).double()
    x = (torch.randn(rows, size, dtype=torch.float64, device=device) * 10**power).to(dtype)
    got, want = run(x, groups), OP.reference(x, groups)
    assert same(got, want), (rows, size, groups, dtype)


def test_random_shapes(run, backend, device):
    """``tests/measure/random_calls.py`` tries as many as one likes."""
    rng = random.Random(backend)
    for _ in range(20 if device == "cpu" else 300):
        check_random_call(rng, run, backend, device)


def test_reference_in_float64(close_int8):
    x = inputs(7, 96, torch.float64, "cpu")
    close_int8(*OP.reference(x, 4), x, 2**-22)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_largest_value_is_127_of_either_sign(run, device, dtype, groups):
    x = inputs(50, 256, dtype, device)
    values, _ = run(x, groups)
    runs = values.unflatten(1, (groups, -1)).int()
    assert (runs.abs().amax(-1) == 127).all() and runs.min() == -127 and runs.max() == 127


def test_halves_go_to_even(run, device):
    x = torch.arange(-127, 127.5, 0.5, device=device)[None]
    values, scale = run(x, 1)
    assert scale.item() == 1.0
    assert torch.equal(values.float(), x.round())


@pytest.mark.parametrize("groups", [1, 3])
def test_integers_stay(run, device, groups):
    x = torch.randint(-127, 128, (40, 384), device=device).float()
    x[:, ::128] = 127
    values, scale = run(x, groups)
    assert torch.equal(values.float(), x) and (scale == 1).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_zeros(run, device, groups):
    x = torch.zeros(3, 256, device=device)
    x[1, 128:] = 5
    values, scale = run(x, groups)
    assert not values[[0, 2]].any() and not values[1, :128].any() and (values[1, 128:] == 127).all()
    assert scale[-1].tolist() == [0, torch.tensor(5 / 127).item(), 0] and not scale[:-1].any()


@pytest.mark.parametrize("tiny", [2.0**-101, 1e-38, 1e-45])
def test_the_smallest_count_as_zero(run, device, tiny):
    x = torch.full((2, 64), tiny, device=device)
    x[1, 3] = 2.0**-100
    values, scale = run(x, 1)
    assert not values[0].any() and scale[0, 0] == 0
    assert values[1, 3] == 127 and scale[0, 1] > 0


def test_the_largest_floats(run, device):
    x = torch.tensor([[3.4e38, -3.4e38, 1e38, 0.0]], device=device)
    values, scale = run(x, 1)
    assert values.tolist() == [[127, -127, 37, 0]] and scale.isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("groups", [1, 3])
def test_what_is_not_finite_shows_in_its_own_scale_alone(run, device, groups, bad, dtype):
    x = inputs(9, 384, dtype, device)
    clean = run(x, groups)
    x[4, 200] = bad
    values, scale = run(x, groups)
    group = groups // 2  # of column 200
    assert scale[group, 4].isnan() if bad != bad else scale[group, 4] == torch.inf
    scale[group, 4] = clean[1][group, 4]
    runs, before = (each.unflatten(1, (groups, -1)) for each in (values, clean[0]))
    runs[4, group] = before[4, group]
    assert torch.equal(values, clean[0]) and torch.equal(scale, clean[1])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_beside_infinity_is_nan(run, device):
    x = torch.tensor([[torch.inf, torch.nan, 1.0, -torch.inf]], device=device)
    assert run(x, 1)[1].isnan().all()


BAD = {
    "x": [
        lambda x, g: (x[None], g),
        lambda x, g: (x.T.contiguous().T, g),
        lambda x, g: (x.half(), g),
        lambda x, g: (x.int(), g),
    ],
    "groups": [
        lambda x, g: (x, 0),
        lambda x, g: (x, -2),
        lambda x, g: (x, 5),
        lambda x, g: (x, 512),
        lambda x, g: (x[:, :0].contiguous(), 1),
    ],
}


@pytest.mark.parametrize(("name", "spoil"), [(name, f) for name, all_of in BAD.items() for f in all_of])
def test_bad_input_is_named(backend, device, name, spoil):
    with pytest.raises((ValueError, RuntimeError), match=rf"\b{name} must\b"):
        OP.impls[backend][0](*spoil(inputs(6, 256, torch.float32, device), 2))


def test_registered_properly(device):
    torch.library.opcheck(OP.torch_op, (inputs(6, 128, torch.float32, device), 2))


def test_compiles_to_one_graph(device):
    x = inputs(6, 128, torch.float32, device)
    compiled = torch.compile(lambda x: OP(2 * x, 2), fullgraph=True, backend="aot_eager")
    assert same(compiled(x), OP(2 * x, 2))


@pytest.mark.gpu
def test_unaligned_rows_go_to_triton():
    x = torch.randn(6, 272, dtype=torch.bfloat16, device="cuda")
    assert OP.choose(x, 1) == "cuda"
    assert OP.choose(x[:, :270].contiguous(), 1) == "triton"
    assert OP.choose(torch.randn(6 * 272 + 1, dtype=torch.bfloat16, device="cuda")[1:].view(6, 272), 1) == "triton"


@pytest.mark.gpu
def test_groups_and_long_rows_go_to_triton():
    assert OP.choose(torch.randn(6, 272, device="cuda"), 2) == "triton"
    assert OP.choose(torch.randn(6, 1544, device="cuda"), 1) == "triton"


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [1, 12])
def test_replays_in_a_cuda_graph(run, device, groups):
    x = torch.randn(21, 1536, dtype=torch.bfloat16, device=device)
    graph, out = captured(run, x, groups)
    x.copy_(3 * torch.randn_like(x))
    graph.replay()
    assert same(out, run(x, groups))
