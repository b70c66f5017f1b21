"""x0_renoise equals the sampler's two formulas (docs/model.md 4.3) bit for bit, on every backend."""

import itertools
import os

import numpy as np
import pytest
import torch

from longlive_optimized.engine.sampler import make_schedule
from longlive_optimized.kernels.x0_renoise import x0_renoise
from support.spoiled import other_device, other_order

OP = x0_renoise
SIGMAS = [[step.sigma for step in make_schedule((1000, 750, 500, 250), kind)] for kind in ("longlive", "scope")]
REAL = pytest.param((3, 16, 60, 104), marks=pytest.mark.gpu)
SHAPES = [(0, 16, 4, 4), (8,), (3, 4, 6, 10), (7, 11), (1, 2, 3, 1000), REAL]


def inputs(shape, dtype, device, sigmas=SIGMAS[0]):
    torch.manual_seed(sum(shape))
    x, flow, noise = (torch.randn(shape).to(device, dtype) for _ in range(3))
    return x, flow, noise, torch.tensor(sigmas, dtype=torch.float64, device=device)


def published(x, flow, noise, sigma: float, following: float):
    """Plain torch, step by step, on the CPU: there no compiler joins a product and a sum."""
    x, flow = x.cpu(), flow.cpu()
    x0 = (x.double() - sigma * flow.double()).to(x.dtype)
    if noise is None:
        return x0
    keep = (1 - torch.tensor(following, dtype=torch.float32)).item()
    wide = torch.promote_types(x.dtype, torch.float32)
    return (keep * x0.to(wide) + following * noise.cpu().to(wide)).to(x.dtype)


def same(got: torch.Tensor, want: torch.Tensor, backend: str) -> None:
    assert got.dtype == want.dtype and got.is_contiguous()
    if backend == "triton" and got.dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1":
        # The interpreter cuts off where the GPU rounds: twice, each worth 2^-7 of numbers that are themselves below 6.
        torch.testing.assert_close(got.cpu(), want, rtol=2**-7, atol=6 * 2**-7)
    else:
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sigmas", SIGMAS, ids=["longlive", "scope"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_step_is_the_published_one(run, backend, device, shape, sigmas, dtype):
    x, flow, noise, table = inputs(shape, dtype, device, sigmas)
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        same(run(x, flow, noise, table, i), published(x, flow, noise, sigma, following), backend)
    same(run(x, flow, None, table, 3), published(x, flow, None, sigmas[3], 0.0), backend)
    same(run(x, flow, None, table, 0), published(x, flow, None, sigmas[0], 0.0), backend)


def test_matches_numpy_in_float64():
    """An independent truth, to the rounding of float32: torch has no part in it."""
    x, flow, noise, table = inputs((4, 33), torch.float32, "cpu")
    s, t = np.float64(table[1]), np.float32(table[2])
    x0 = (x.numpy().astype(np.float64) - s * flow.numpy()).astype(np.float32)
    want = (np.float32(1) - t) * x0 + t * noise.numpy()
    assert np.array_equal(OP(x, flow, noise, table, 1).numpy(), want)


def test_reference_in_float64(close):
    x, flow, noise, table = inputs((4, 33), torch.float64, "cpu")
    s, t = table[0], table[1]
    close(OP.reference(x, flow, noise, table, 0), (1 - t) * (x - s * flow) + t * noise)


def test_inputs_stay_as_they_are(run, device):
    x, flow, noise, table = inputs((3, 4, 6, 10), torch.float32, device)
    before = [t.clone() for t in (x, flow, noise, table)]
    out = run(x, flow, noise, table, 1)
    assert all(torch.equal(a, b) for a, b in zip((x, flow, noise, table), before, strict=True))
    assert out.data_ptr() not in [t.data_ptr() for t in (x, flow, noise)]


def test_reads_no_other_noise_level(run, device):
    x, flow, noise, table = inputs((8,), torch.float32, device)
    clean = run(x, flow, noise, table, 1)
    table[[0, 3]] = torch.nan
    assert torch.equal(run(x, flow, noise, table, 1), clean)
    table[2] = torch.nan
    assert not run(x, flow, None, table, 1).isnan().any()


BAD = {
    "x": [other_order, lambda t: t.half(), lambda t: t.int()],
    "flow": [other_order, lambda t: t[:-1], lambda t: t.double(), other_device, lambda t: t[None]],
    "noise": [other_order, lambda t: t[:-1], lambda t: t.double(), other_device, lambda t: t[None]],
    "sigmas": [lambda t: t.float(), lambda t: t[None], other_device, lambda t: t.repeat_interleave(2)[::2]],
}


@pytest.mark.parametrize(
    ("name", "spoil"), [pytest.param(n, f, id=f"{n}{i}") for n, all_of in BAD.items() for i, f in enumerate(all_of)]
)
def test_bad_input_is_named(backend, device, name, spoil):
    args = dict(zip(("x", "flow", "noise", "sigmas"), inputs((8, 16), torch.float32, device), strict=True))
    args[name] = spoil(args[name])
    with pytest.raises((ValueError, RuntimeError), match=rf"\b{name} must\b"):
        OP.impls[backend][0](*args.values(), 1)


@pytest.mark.parametrize(("index", "last"), [(-1, False), (3, False), (4, True), (-1, True)])
def test_index_must_be_a_step(backend, device, index, last):
    x, flow, noise, table = inputs((8,), torch.float32, device)
    with pytest.raises((ValueError, RuntimeError), match=rf"index must lie in 0\.\.{3 if last else 2}, got {index}"):
        OP.impls[backend][0](x, flow, None if last else noise, table, index)


@pytest.mark.parametrize("last", [False, True])
def test_registered_properly(device, last):
    x, flow, noise, table = inputs((8,), torch.float32, device)
    torch.library.opcheck(OP.torch_op, (x, flow, None if last else noise, table, 1))


def test_compiles_to_one_graph(device):
    x, flow, noise, table = inputs((8,), torch.float32, device)
    compiled = torch.compile(lambda x: OP(2 * x, flow, noise, table, 1) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), OP(2 * x, flow, noise, table, 1) + 1, rtol=0, atol=0)


@pytest.mark.gpu
def test_what_is_no_whole_vector_goes_to_triton():
    x, flow, noise, table = inputs((7, 11), torch.bfloat16, "cuda")
    assert OP.choose(x, flow, noise, table, 0) == "triton"
    assert OP.choose(*(t.flatten()[:72] for t in (x, flow, noise)), table, 0) == "cuda"
    assert OP.choose(*(t.flatten()[1:73] for t in (x, flow, noise)), table, 0) == "triton"


@pytest.mark.gpu
def test_a_cuda_graph_replays_with_new_noise_levels(run, backend, device):
    x, flow, noise, table = inputs((3, 16, 6, 10), torch.bfloat16, device)
    run(x, flow, noise, table, 1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x, flow, noise, table, 1)
    table.copy_(torch.tensor(SIGMAS[1]))
    x.copy_(torch.randn_like(x))
    graph.replay()
    same(out, published(x, flow, noise, *SIGMAS[1][1:3]), backend)
