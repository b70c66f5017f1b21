"""int8_block_linear against its formula in float64, the weight that was quantised, and what its scales cost."""

import pytest
import torch

from longlive_optimized.kernels import int8_block_linear as module
from longlive_optimized.kernels.int8_block_linear import BLOCK, expand_blocks, int8_block_linear, quantize_blocks

OP = int8_block_linear
# rows, columns, channels: fewer and more than each tile, and what divides none
CASES = {"empty": (0, 32, 16), "one": (1, 32, 1), "prime": (13, 96, 37), "tile": (16, 128, 64), "odd": (33, 160, 70)}
CASES |= {"rows": (130, 64, 33), "chunks": (3, 32, 1100)}
REAL = {"short": (24, 4096, 10240), "long": (512, 4096, 4096), "deep": (77, 10240, 4096)}
SHAPES = [pytest.param(c, id=n) for n, c in CASES.items()]
SHAPES += [pytest.param(c, id=n, marks=pytest.mark.gpu) for n, c in REAL.items()]
DTYPES = [torch.float32, torch.bfloat16]


def inputs(rows: int, depth: int, channels: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    """Activations, and a weight in 8 bits whose blocks are of quite different magnitudes."""
    torch.manual_seed(rows + depth + channels)
    x = torch.randn(rows, depth, device=device).to(dtype)
    values = torch.randint(-127, 128, (channels, depth), dtype=torch.int8, device=device)
    scale = 4.0 ** torch.randint(-4, 5, (depth // BLOCK, channels), device=device) * (
        1 + torch.rand(depth // BLOCK, channels, device=device)
    )
    return x, values, scale.bfloat16()


def formula(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The plain weight, one block after the other, rounded once to ``dtype``, in float64."""
    out = torch.empty(values.shape, dtype=torch.float64, device=values.device)
    for k in range(values.shape[1]):
        out[:, k] = values[:, k].double() * scale[k // BLOCK].double()
    return out.to(dtype).double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_formula(run, device, shape, dtype):
    x, values, scale = inputs(*shape, dtype, device)
    weight = formula(values, scale, dtype)
    got, truth = run(x, values, scale), x.double() @ weight.T
    assert got.shape == truth.shape and got.dtype == dtype and got.is_contiguous()
    # Each sum's error is of its terms' size, not of its own: they cancel. Triton's interpreter cuts bfloat16 off.
    size = x.double().abs() @ weight.abs().T
    relative = {torch.float32: 2e-6, torch.bfloat16: 2**-7}[dtype]
    assert ((got.double() - truth).abs() <= relative * size).all()
    if dtype == torch.bfloat16 and truth.numel() > 1000:
        assert (got.double() - truth).norm() < 2**-7 * truth.norm()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_an_expanded_weight_is_the_formulas_bit_for_bit(device, dtype):
    _, values, scale = inputs(1, 160, 70, torch.float32, device)
    assert torch.equal(expand_blocks(values, scale, dtype).double(), formula(values, scale, dtype))
    buffer = torch.full((70, 160), torch.nan, dtype=dtype, device=device)
    assert expand_blocks(values, scale, dtype, buffer) is buffer and buffer.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_each_value_is_the_nearest_step(device, dtype):
    torch.manual_seed(0)
    weight = torch.randn(64, 96, device=device).to(dtype) * 10.0 ** torch.randint(-3, 3, (64, 1), device=device)
    weight = weight.to(dtype)
    values, scale = quantize_blocks(weight)
    assert values.dtype == torch.int8 and scale.dtype == torch.bfloat16 and scale.shape == (3, 64)
    assert values.is_contiguous() and scale.is_contiguous() and values.abs().max() == 127
    blocks = weight.double().unflatten(1, (3, BLOCK))
    wide = scale.T.double()[..., None]
    torch.testing.assert_close(wide[..., 0], blocks.abs().amax(-1) / 127, rtol=2**-8, atol=0)
    got = expand_blocks(values, scale, torch.float64).unflatten(1, (3, BLOCK))
    assert ((got - blocks).abs() <= 0.5001 * wide).all() and not torch.equal(got, blocks)


@pytest.mark.parametrize("draw", ["normal", "heavy"])
def test_scales_in_bfloat16_cost_nothing(device, draw):
    """Less than 1.5 % of the error itself, which is a third of that of a scale a row and a fifth of float8's."""
    torch.manual_seed(1)
    weight = torch.randn(128, 4096, device=device)
    weight = weight if draw == "normal" else weight / torch.rand(128, 4096, device=device).clamp(min=0.05)
    weight = weight.bfloat16().double()

    def error(got: torch.Tensor) -> float:
        return ((got.double() - weight).norm() / weight.norm()).item()

    def with_scales(width: int) -> torch.Tensor:
        blocks = weight.unflatten(1, (-1, width))
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        return ((blocks / scale).round() * scale).flatten(1)

    ours = error(expand_blocks(*quantize_blocks(weight), torch.float32))
    assert ours < 1.015 * error(with_scales(BLOCK))
    assert ours < 0.7 * error(with_scales(4096)) and ours < 0.4 * error(weight.to(torch.float8_e4m3fn))


def test_a_block_of_zeros_and_of_the_smallest_numbers(device):
    weight = torch.zeros(2, 64, device=device)
    weight[0, 40], weight[1, 3] = 1e-35, -1e-20
    values, scale = quantize_blocks(weight)
    assert scale[:, 0].eq(0).all() and values[0].eq(0).all() and values[1, 3] == -127 and scale[1, 1] == 0
    assert torch.equal(expand_blocks(values, scale, torch.float32)[0], torch.zeros(64, device=device))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_shows_in_its_scale(device, bad):
    weight = torch.randn(4, 96, device=device)
    clean = quantize_blocks(weight)[1]
    weight[2, 50] = bad
    scale = quantize_blocks(weight)[1]
    assert not scale[1, 2].isfinite() and not scale.sum().isfinite()
    scale[1, 2] = clean[1, 2]
    assert torch.equal(scale, clean)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter
def test_a_scale_that_is_not_finite_shows_in_its_channel_alone(run, device):
    x, values, scale = inputs(5, 64, 40, torch.float32, device)
    clean = run(x, values, scale)
    scale[1, 37] = torch.nan
    got = run(x, values, scale)
    assert got[:, 37].isnan().all()
    got[:, 37] = clean[:, 37]
    assert torch.equal(got, clean)


def test_nothing_beyond_the_tensors_is_read(run, device):
    """The arguments lie in buffers of NaN, and of values that would show."""
    x, values, scale = inputs(5, 96, 70, torch.float32, device)
    wanted = run(x, values, scale)
    poisoned = []
    for t, poison in ((x, torch.nan), (values, 127), (scale, torch.nan)):
        buffer = torch.full((t.numel() + 4096,), poison, dtype=t.dtype, device=device)
        poisoned.append(buffer[1024 : 1024 + t.numel()].view(t.shape).copy_(t))
    assert torch.equal(run(*poisoned), wanted)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_the_reference_is_one_product_however_it_is_divided(monkeypatch, dtype):
    x, values, scale = inputs(7, 64, 1100, dtype, "cpu")
    whole = x @ expand_blocks(values, scale, dtype).T
    for rows in (64, 512, 4096):
        monkeypatch.setattr(module, "_ROWS", rows)
        got = int8_block_linear.reference(x, values, scale)
        torch.testing.assert_close(got, whole, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


BAD = {
    "x": [
        lambda x, w, s: (x[None], w, s),
        lambda x, w, s: (x.half(), w, s),
        lambda x, w, s: (x[:, :48].contiguous(), w[:, :48].contiguous(), s),
        lambda x, w, s: (x.T.contiguous().T, w, s),
        lambda x, w, s: (x[:, :0].contiguous(), w[:, :0].contiguous(), s[:0]),
    ],
    "weight": [
        lambda x, w, s: (x, w[None], s),
        lambda x, w, s: (x, w.float(), s),
        lambda x, w, s: (x, w[:, :32].contiguous(), s),
        lambda x, w, s: (x, w.T.contiguous().T, s),
        lambda x, w, s: (x, w.to("meta"), s),
    ],
    "weight_scale": [
        lambda x, w, s: (x, w, s.T.contiguous()),
        lambda x, w, s: (x, w, s.float()),
        lambda x, w, s: (x, w, s[:1]),
        lambda x, w, s: (x, w, s.repeat_interleave(2, 1)[:, ::2]),
    ],
}


@pytest.mark.parametrize(("name", "spoil"), [(name, f) for name, all_of in BAD.items() for f in all_of])
def test_bad_input_is_named(backend, device, name, spoil):
    arguments = spoil(*inputs(5, 64, 40, torch.float32, device))
    with pytest.raises(ValueError, match=rf"^{name} must\b"):
        OP.impls[backend][0](*arguments)


@pytest.mark.parametrize("shape", [(4, 48), (4, 5, 32), (32,)])
def test_a_weight_that_has_no_whole_blocks_is_refused(shape):
    with pytest.raises(ValueError, match=r"^weight must be \[M, K\], K a multiple of 32"):
        quantize_blocks(torch.zeros(shape))


def test_registered_properly(device):
    torch.library.opcheck(OP.torch_op, inputs(3, 64, 40, torch.float32, device))


def test_compiles_to_one_graph(device):
    x, values, scale = inputs(3, 64, 40, torch.float32, device)
    compiled = torch.compile(lambda x: OP(2 * x, values, scale), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), OP(2 * x, values, scale))
