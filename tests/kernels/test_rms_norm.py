import pytest
import torch

from longlive_optimized.kernels.rms_norm import rms_norm

OP = rms_norm
EPS = 1e-6
REAL = pytest.param(4680, 1536, marks=pytest.mark.gpu)
SIZES = [(0, 128), (1, 128), (13, 256), (7, 1536), (3, 100), (2, 2048), REAL]


def inputs(rows: int, size: int, dtype, device):
    """Random rows between rows of NaN, so that a stray read shows."""
    torch.manual_seed(rows * 10 + size)
    x = torch.full((rows + 2, size), torch.nan, dtype=torch.float64)
    x[1:-1] = 2 * torch.randn(rows, size, dtype=torch.float64) + 0.5
    gain = torch.randn(size, dtype=torch.float64)
    return x.to(device, dtype)[1:-1], gain.to(device, dtype)


def truth(x, gain):
    return x.double() / (x.double().square().mean(1, keepdim=True) + EPS).sqrt() * gain.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "size"), SIZES)
def test_matches_float64(run, close, device, rows, size, dtype):
    args = inputs(rows, size, dtype, device)
    out = run(*args, EPS)
    assert out.dtype == dtype and out.device == args[0].device and out.is_contiguous()
    close(out, truth(*args))


def test_reference_in_float64(close):
    args = inputs(5, 96, torch.float64, "cpu")
    close(OP.reference(*args, EPS), truth(*args))


def test_the_size_of_a_row_does_not_matter(run, device):
    x, gain = inputs(5, 256, torch.float32, device)
    torch.testing.assert_close(run(1024 * x, gain, EPS), run(x, gain, 2.0**-20 * EPS))


def test_a_row_of_zeros_stays_zero(run, device):
    _, gain = inputs(1, 256, torch.float32, device)
    assert not run(torch.zeros(3, 256, device=device), gain, EPS).any()


def test_a_row_depends_on_itself_alone(run, device):
    x, gain = inputs(10, 256, torch.bfloat16, device)
    clean = run(x, gain, EPS)
    x[3] = torch.nan
    spoiled = run(x, gain, EPS)
    assert spoiled[3].isnan().all()
    assert torch.equal(spoiled[[0, 1, 2, *range(4, 10)]], clean[[0, 1, 2, *range(4, 10)]])


def test_closer_to_the_truth_than_the_published_roundings(device):
    x, gain = inputs(50, 1536, torch.bfloat16, device)
    published = (x.float() * (x.float().square().mean(1, keepdim=True) + EPS).rsqrt()).bfloat16() * gain
    exact = truth(x, gain)
    assert (OP(x, gain, EPS) - exact).norm() < (published - exact).norm()


BAD = {
    "x": [
        lambda x, g: (x[None], g),
        lambda x, g: (x.T.contiguous().T, g),
        lambda x, g: (x.half(), g.half()),
        lambda x, g: (x.int(), g.int()),
    ],
    "gain": [
        lambda x, g: (x, g[:-8]),
        lambda x, g: (x, g[None]),
        lambda x, g: (x, g.double()),
        lambda x, g: (x, g.repeat_interleave(2)[::2]),
        lambda x, g: (x, g.to("cpu" if g.is_cuda else "meta")),
    ],
}


@pytest.mark.parametrize(("name", "spoil"), [(name, f) for name, all_of in BAD.items() for f in all_of])
def test_bad_input_is_named(backend, device, name, spoil):
    args = spoil(*inputs(6, 256, torch.float32, device))
    with pytest.raises((ValueError, RuntimeError), match=rf"\b{name} must\b"):
        OP.impls[backend][0](*args, EPS)


def test_registered_properly(device):
    torch.library.opcheck(OP.torch_op, (*inputs(6, 128, torch.float32, device), EPS))


def test_compiles_to_one_graph(device):
    x, gain = inputs(6, 128, torch.float32, device)
    compiled = torch.compile(lambda x: OP(2 * x, gain, EPS) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), OP(2 * x, gain, EPS) + 1)


@pytest.mark.gpu
def test_unaligned_rows_go_to_triton():
    x, gain = inputs(3, 136, torch.bfloat16, "cuda")
    assert OP.choose(x, gain, EPS) == "cuda"
    assert OP.choose(x, torch.zeros(137, dtype=x.dtype, device="cuda")[1:], EPS) == "triton"


@pytest.mark.gpu
def test_replays_in_a_cuda_graph(run, device):
    x, gain = inputs(21, 1536, torch.bfloat16, device)
    run(x, gain, EPS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x, gain, EPS)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(out, run(x, gain, EPS))
