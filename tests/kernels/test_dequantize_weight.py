"""dequantize_weight against the weights that it began from, its formula, and the product that it stands in for."""

import pytest
import torch

from longlive_optimized.kernels.dequantize_weight import dequantize_weight
from longlive_optimized.kernels.int8_linear import int8_linear, pack
from longlive_optimized.kernels.quantize import quantize

OP = dequantize_weight
CASES = {"empty": (0, 16), "one-column": (32, 1), "prime": (64, 37), "wide": (96, 1025)}
REAL = {"qkv": (4608, 1536), "ffn-in": (8960, 1536), "ffn-out": (1536, 8960)}
SHAPES = [pytest.param(c, id=n) for n, c in CASES.items()]
SHAPES += [pytest.param(c, id=n, marks=pytest.mark.gpu) for n, c in REAL.items()]


def inputs(rows: int, size: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight in 8 bits, packed and in the plain order, with rows of quite different magnitudes; its scale."""
    torch.manual_seed(rows + size)
    plain = torch.randint(-127, 128, (rows, size), dtype=torch.int8, device=device)
    scale = 10.0 ** torch.randint(-6, 7, (rows,), device=device).float() * (1 + torch.rand(rows, device=device))
    return pack(plain).contiguous(), plain, scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_formula(run, close, device, shape, dtype):
    packed, plain, scale = inputs(*shape, device)
    got = run(packed, scale, dtype)
    assert got.shape == shape and got.dtype == dtype and got.is_contiguous()
    close(got, plain.double() * scale.double()[:, None])


@pytest.mark.parametrize("shape", [(64, 48), pytest.param((4608, 1536), marks=pytest.mark.gpu)])
def test_half_a_step_from_the_weight_that_was_quantised(run, device, shape):
    torch.manual_seed(0)
    weight = torch.randn(shape, device=device)
    values, scale = quantize.reference(weight, 1)
    got = run(pack(values).contiguous(), scale[0], torch.float32)
    assert ((got - weight).abs() <= 0.5001 * scale[0][:, None]).all() and not torch.equal(got, weight)
    assert torch.equal(quantize.reference(got, 1)[0], values)


def test_is_what_the_product_multiplies_with(run, device):
    """The product of the unit matrix, in 8 bits exact, is the weight."""
    packed, _, scale = inputs(96, 64, device)
    unit, ones = torch.eye(64, dtype=torch.int8, device=device), torch.ones(1, 64, device=device)
    product = int8_linear.reference(unit, ones, packed, scale, torch.zeros(96, device=device))
    assert torch.equal(product.T, run(packed, scale, torch.float32))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_scale_that_is_not_finite_shows_in_its_row_alone(run, device, bad):
    packed, _, scale = inputs(64, 48, device)
    clean = run(packed, scale, torch.float32)
    scale[37] = bad
    got = run(packed, scale, torch.float32)
    assert not got[37].isfinite().any()
    got[37] = clean[37]
    assert torch.equal(got, clean)


BAD = {
    "weight": [
        lambda w, s, d: (w[None], s, d),
        lambda w, s, d: (w.float(), s, d),
        lambda w, s, d: (w[:40], s[:40], d),
        lambda w, s, d: (w.T.contiguous().T, s, d),
    ],
    "weight_scale": [
        lambda w, s, d: (w, s[None], d),
        lambda w, s, d: (w, s[:32], d),
        lambda w, s, d: (w, s.double(), d),
        lambda w, s, d: (w, s.repeat_interleave(2)[::2], d),
    ],
    "dtype": [lambda w, s, d: (w, s, torch.int8), lambda w, s, d: (w, s, torch.float16)],
}


@pytest.mark.parametrize(("name", "spoil"), [(name, f) for name, all_of in BAD.items() for f in all_of])
def test_bad_input_is_named(backend, device, name, spoil):
    packed, _, scale = inputs(64, 48, device)
    with pytest.raises(ValueError, match=rf"^{name} must\b"):
        OP.impls[backend][0](*spoil(packed, scale, torch.float32))


def test_registered_properly(device):
    packed, _, scale = inputs(32, 16, device)
    torch.library.opcheck(OP.torch_op, (packed, scale, torch.bfloat16))


def test_compiles_to_one_graph(device):
    packed, _, scale = inputs(32, 16, device)
    compiled = torch.compile(lambda w, s: OP(w, 2 * s, torch.bfloat16), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(packed, scale), OP(packed, 2 * scale, torch.bfloat16))


@pytest.mark.gpu
def test_replays_in_a_cuda_graph(run, device):
    packed, _, scale = inputs(96, 1536, device)
    run(packed, scale, torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(packed, scale, torch.bfloat16)
    scale.mul_(3)
    graph.replay()
    assert torch.equal(out, run(packed, scale, torch.bfloat16))
