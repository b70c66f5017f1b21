"""linear_gelu against float64, and which of the two GELUs it is."""

import math

import pytest
import torch
import torch.nn.functional as F

from longlive_optimized.kernels.linear_gelu import linear_gelu

OP = linear_gelu
REAL = pytest.param(4680, 1536, 8960, marks=pytest.mark.gpu)
SIZES = [(0, 16, 24), (1, 16, 24), (13, 64, 1), (7, 1, 24), (31, 128, 72), (5, 33, 17), REAL]


def inputs(rows: int, depth: int, width: int, dtype, device):
    torch.manual_seed(rows + depth + width)
    x, weight, bias = torch.randn(rows, depth), torch.randn(width, depth) / depth**0.5, torch.randn(width)
    return tuple(t.to(device, dtype) for t in (x, weight, bias))


def gelu(h: torch.Tensor) -> torch.Tensor:
    return h / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))


def takes(backend: str, dtype: torch.dtype) -> None:
    if backend == "library" and dtype != torch.bfloat16:
        pytest.skip("the library is for bfloat16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "depth", "width"), SIZES)
def test_matches_float64(run, backend, device, rows, depth, width, dtype):
    takes(backend, dtype)
    args = inputs(rows, depth, width, dtype, device)
    x, weight, bias = (t.double() for t in args)
    h = x @ weight.T + bias
    out = run(*args)
    assert out.dtype == dtype and out.shape == (rows, width) and out.is_contiguous()
    # One rounding of the result, and one of the sum before it: GELU's slope is at most 1.13. Float32 sums add 1e-5.
    ulp = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-20
    error, bound = (out.double() - gelu(h)).abs(), ulp * (gelu(h).abs() + 1.13 * h.abs()) + 1e-5
    assert (error <= bound).all(), (error / bound).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gelu_is_the_tanh_form(run, backend, device, dtype):
    """On exact sums, down the tail, where the two forms differ by percents."""
    takes(backend, dtype)
    h = torch.linspace(-4, 4, 64 * 64, dtype=torch.float64).to(device, dtype).view(64, 64)
    out = run(h, torch.eye(64, dtype=dtype, device=device), torch.zeros(64, dtype=dtype, device=device)).double()
    h = h.double()
    torch.testing.assert_close(out, gelu(h), rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=2e-5)
    tail = h < -1.5
    assert (out - gelu(h))[tail].norm() < 0.4 * (out - F.gelu(h))[tail].norm()


BAD = {
    "x": [
        lambda x, w, b: (x[None], w, b),
        lambda x, w, b: (x.T.contiguous().T, w, b),
        lambda x, w, b: (x.half(), w.half(), b.half()),
    ],
    "weight": [
        lambda x, w, b: (x, w[:, :-1].contiguous(), b),
        lambda x, w, b: (x, w.double(), b),
        lambda x, w, b: (x, w.T.contiguous().T, b),
        lambda x, w, b: (x, w.to("cpu" if w.is_cuda else "meta"), b),
    ],
    "bias": [lambda x, w, b: (x, w, b[:-1]), lambda x, w, b: (x, w, b.double()), lambda x, w, b: (x, w, b[None])],
}


@pytest.mark.parametrize(("name", "spoil"), [(name, f) for name, all_of in BAD.items() for f in all_of])
def test_bad_input_is_named(backend, device, name, spoil):
    args = spoil(*inputs(6, 16, 24, torch.bfloat16, device))
    with pytest.raises(ValueError, match=rf"\b{name} must\b"):
        OP.impls[backend][0](*args)


def test_the_library_is_for_cuda_alone():
    """The same call on the CPU computes the other GELU."""
    assert OP.choose(*inputs(6, 16, 24, torch.bfloat16, "cpu")) == "reference"


@pytest.mark.gpu
def test_the_library_takes_half_precision():
    assert OP.choose(*inputs(6, 16, 24, torch.bfloat16, "cuda")) == "library"
    assert OP.choose(*inputs(6, 16, 24, torch.float32, "cuda")) == "reference"


def test_registered_properly(device):
    torch.library.opcheck(OP.torch_op, inputs(6, 16, 24, torch.float32, device))


def test_compiles_to_one_graph(device):
    args = inputs(6, 16, 24, torch.float32, device)
    compiled = torch.compile(lambda *a: OP(*a) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), OP(*args) + 1)


@pytest.mark.gpu
def test_replays_in_a_cuda_graph(run, device):
    x, weight, bias = inputs(31, 128, 72, torch.bfloat16, device)
    run(x, weight, bias)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x, weight, bias)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(out, run(x, weight, bias))
