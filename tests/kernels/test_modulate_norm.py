import pytest
import torch

from longlive_optimized.kernels.modulate_norm import modulate_norm, modulate_norm_int8
from support.results import same

OP = modulate_norm
EPS = 1e-6
REAL = pytest.param(3, 1560, 1536, marks=pytest.mark.gpu)
SIZES = [(1, 0, 128), (1, 1, 128), (3, 7, 256), (7, 1, 1536), (2, 13, 1536), (2, 3, 100), REAL]


def inputs(groups: int, rows: int, size: int, dtype: torch.dtype, device: str):
    """Random rows, and shift and scale as the network has them: views of one [groups, 6, size] tensor."""
    torch.manual_seed(groups * 1000 + rows * 10 + size)
    x = 2 * torch.randn(groups * rows, size, dtype=torch.float64) + 0.5
    m = 0.5 * torch.randn(groups, 6, size, dtype=torch.float64)
    x, m = x.to(device, dtype), m.to(device, dtype)
    return x, m[:, 3], m[:, 4]


def truth(x, shift, scale):
    x, shift, scale = x.double(), shift.double(), scale.double()
    centred = x - x.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + EPS).sqrt()
    rows = x.shape[0] // shift.shape[0]
    return normed * (1 + scale.repeat_interleave(rows, 0)) + shift.repeat_interleave(rows, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("groups", "rows", "size"), SIZES)
def test_matches_float64(run, close, device, groups, rows, size, dtype):
    args = inputs(groups, rows, size, dtype, device)
    out = run(*args, EPS)
    assert out.dtype == dtype and out.device == args[0].device
    close(out, truth(*args))


def test_reference_in_float64(close):
    args = inputs(3, 5, 96, torch.float64, "cpu")
    close(OP.reference(*args, EPS), truth(*args))


def test_large_mean_does_not_cancel(run, device):
    # sum(x^2)/n - mean^2 in float32 would be off by about 0.1 here.
    x, shift, scale = inputs(1, 5, 1536, torch.float32, device)
    x = x + 1000
    torch.testing.assert_close(run(x, shift, scale, EPS).double(), truth(x, shift, scale), rtol=0, atol=2e-3)


def test_constant_row_gives_the_shift(run, device):
    _, shift, scale = inputs(1, 4, 256, torch.float32, device)
    torch.testing.assert_close(run(torch.full((4, 256), 3.0, device=device), shift, scale, EPS), shift.expand(4, -1))


def test_a_row_depends_on_itself_alone(run, device):
    x, shift, scale = inputs(2, 5, 256, torch.bfloat16, device)
    clean = run(x, shift, scale, EPS)
    x[3] = torch.nan
    spoiled = run(x, shift, scale, EPS)
    assert spoiled[3].isnan().all()
    assert torch.equal(spoiled[[0, 1, 2, *range(4, 10)]], clean[[0, 1, 2, *range(4, 10)]])


def test_closer_to_the_truth_than_the_published_roundings(device):
    x, shift, scale = inputs(3, 50, 1536, torch.bfloat16, device)
    published = torch.nn.functional.layer_norm(x.float(), x.shape[1:], eps=EPS).bfloat16().view(3, 50, -1)
    published = (published * (1 + scale[:, None]) + shift[:, None]).flatten(0, 1)
    exact = truth(x, shift, scale)
    assert (OP(x, shift, scale, EPS) - exact).norm() < (published - exact).norm()


BAD = {
    "x": [
        lambda x, b, a: (x[None], b, a),
        lambda x, b, a: (x.T.contiguous().T, b, a),
        lambda x, b, a: (x.half(), b.half(), a.half()),
        lambda x, b, a: (x.int(), b.int(), a.int()),
    ],
    "shift": [
        lambda x, b, a: (x, b[:, :-8], a),
        lambda x, b, a: (x, b[0], a),
        lambda x, b, a: (x, b.double(), a),
        lambda x, b, a: (x, b.T.contiguous().T, a),
        lambda x, b, a: (x[:-1], b, a),
        lambda x, b, a: (x, b[:0], a[:0]),
    ],
    "scale": [
        lambda x, b, a: (x, b, a[:1]),
        lambda x, b, a: (x, b, a.double()),
        lambda x, b, a: (x, b, a.to("cpu" if a.is_cuda else "meta")),
    ],
}


def test_compiles_to_one_graph(device):
    x, shift, scale = inputs(2, 3, 128, torch.float32, device)
    compiled = torch.compile(lambda x: OP(2 * x, shift, scale, EPS) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), OP(2 * x, shift, scale, EPS) + 1)


class Both:
    """What holds of the plain operator and of its int8 form alike."""

    @pytest.mark.parametrize(("name", "spoil"), [(name, f) for name, all_of in BAD.items() for f in all_of])
    def test_bad_input_is_named(self, backend, device, name, spoil):
        args = spoil(*inputs(2, 6, 256, torch.float32, device))
        with pytest.raises((ValueError, RuntimeError), match=rf"\b{name} must\b"):
            self.OP.impls[backend][0](*args, EPS)

    def test_registered_properly(self, device):
        torch.library.opcheck(self.OP.torch_op, (*inputs(2, 3, 128, torch.float32, device), EPS))

    @pytest.mark.gpu
    def test_unaligned_rows_go_to_triton(self):
        x, shift, scale = inputs(2, 3, 136, torch.bfloat16, "cuda")
        assert self.OP.choose(x, shift, scale, EPS) == "cuda"
        assert self.OP.choose(x, shift[:, 1:], scale, EPS) == "triton"

    @pytest.mark.gpu
    def test_replays_in_a_cuda_graph(self, run, device):
        x, shift, scale = inputs(3, 7, 1536, torch.bfloat16, device)
        run(x, shift, scale, EPS)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run(x, shift, scale, EPS)
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert same(out, run(x, shift, scale, EPS))


class TestPlain(Both):
    OP = modulate_norm


class TestInt8(Both):
    """modulate_norm_int8: values times their scale are the norm in float64, to half a step."""

    OP = modulate_norm_int8

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(("groups", "rows", "size"), SIZES)
    def test_matches_float64(self, run, close_int8, device, groups, rows, size, dtype):
        args = inputs(groups, rows, size, dtype, device)
        close_int8(*run(*args, EPS), truth(*args))

    def test_reference_in_float64(self, close_int8):
        args = inputs(3, 5, 96, torch.float64, "cpu")
        close_int8(*self.OP.reference(*args, EPS), truth(*args), 2**-22)

    def test_nothing_is_rounded_before(self, run, device):
        """Of rounded rows, the same scale for a bfloat16's 2^-9: one value in 127 * 2^-9 * 2 / 3 is another."""
        args = inputs(3, 50, 1536, torch.bfloat16, device)
        exact = truth(*args)

        def error(values, scale):
            return (values.double() * scale[0, :, None].double() - exact).norm()

        rounded = modulate_norm(*args, EPS).float()
        scale = rounded.abs().amax(1)[None] / 127
        assert error(*run(*args, EPS)) < error((rounded / scale.T).round(), scale)

    @pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_what_is_not_finite_shows_in_its_own_scale_alone(self, run, device, bad):
        x, shift, scale = inputs(2, 5, 256, torch.bfloat16, device)
        clean = run(x, shift, scale, EPS)
        x[3, 77] = bad
        spoiled = run(x, shift, scale, EPS)
        others = [0, 1, 2, *range(4, 10)]
        assert spoiled[1][0, 3].isnan()
        assert torch.equal(spoiled[0][others], clean[0][others])
        assert torch.equal(spoiled[1][0, others], clean[1][0, others])

    def test_zeros(self, run, device):
        """A constant row without a shift."""
        x, shift, scale = inputs(1, 4, 256, torch.float32, device)
        values, scales = run(torch.full_like(x, 3.0), torch.zeros_like(shift), scale, EPS)
        assert not values.any() and not scales.any()
