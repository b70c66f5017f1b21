"""ring_attention against softmax in float64. Tokens that are not valid hold NaN, always."""

import os
import random

import pytest
import torch

from longlive_optimized.kernels import attention
from longlive_optimized.kernels import ring_attention as module
from longlive_optimized.kernels.ring_attention import ring_attention as OP
from support.emulated import run_on_a_cpu
from support.graphs import captured

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Errors of one output relative to the whole: float32 sums; bfloat16 inputs with one rounding of the weights and of the
# result, which Triton's interpreter cuts off instead.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 1e-2 if INTERPRETED else 5e-3}

BEYOND = 10**6  # more than any ring has: the whole ring
CASES = {
    "beyond the ring": {},
    "the whole ring": {"valid": 301},
    "one token": {"tokens": 1, "slots": 1, "per_slot": 1},
    "one key of many": {"valid": 1},
    "ragged": {"tokens": 131, "per_slot": 67, "valid": 334},
    "whole tiles of keys": {"valid": 192},
    "a key more than whole tiles": {"valid": 193},
    "all keys but one": {"valid": 300},
    "more than one tile of queries": {"tokens": 150, "valid": 229},
    "large logits": {"spread": 30.0},
    "an outlier": {"outlier": 40.0},
}


def case(
    dtype,
    device,
    tokens=7,
    slots=7,
    per_slot=43,
    heads=2,
    head_dim=128,
    valid=BEYOND,
    spread=4.0,
    outlier=0.0,
    seed=0,
):
    """Logits of about the deviation ``spread``; with an ``outlier``, one key of that many times the usual length."""
    torch.manual_seed(seed)
    size = slots * per_slot
    q = spread**0.5 * torch.randn(tokens, heads, head_dim, device=device)
    k = spread**0.5 * torch.randn(size, heads, head_dim, device=device)
    v = torch.randn(size, heads, head_dim, device=device)
    if outlier:
        k[size // 2] *= outlier
        v[size // 2] *= outlier
    keys = max(valid, 0)
    k[keys:], v[keys:] = float("nan"), float("nan")
    ring = (slots, per_slot, heads, head_dim)
    count = torch.tensor([valid], dtype=torch.int32, device=device)
    return q.to(dtype), k.view(ring).to(dtype), v.view(ring).to(dtype), count


def truth(q, k_ring, v_ring, valid):
    k, v = (x.double().flatten(0, 1)[: int(valid)] for x in (k_ring, v_ring))
    scores = torch.einsum("nhd,mhd->hnm", q.double(), k) / q.shape[-1] ** 0.5
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v)


def error(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_matches_float64(run, backend, device, dtype, name):
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("Triton's kernel computes in float32")
    args = case(dtype, device, **CASES[name])
    got, want = run(*args), truth(*args)
    assert got.dtype == dtype and got.is_contiguous() and got.shape == want.shape
    # A float32 score of 100 is off by 4e-6, and its exponential by as much of itself.
    wide = {"an outlier": 20, "large logits": 3}.get(name, 1) if dtype == torch.float32 else 1
    assert error(got, want) <= TOLERANCE[dtype] * wide


@pytest.mark.parametrize("valid", [0, -1, -1000])
def test_without_keys_the_result_is_zero(run, backend, device, valid):
    args = case(torch.bfloat16, device, valid=valid)
    assert torch.equal(run(*args), torch.zeros_like(args[0]))


def test_without_queries_there_is_no_result(run, backend, device):
    q, *rest = case(torch.bfloat16, device)
    assert run(q[:0], *rest).shape == (0, *q.shape[1:])


def test_takes_queries_beside_keys_and_values(run, backend, device):
    """Rows of a fused product, which lie further apart than they are long."""
    q, *rest = case(torch.bfloat16, device, tokens=20)
    fused = torch.full((20, 3, *q.shape[1:]), float("nan"), device=device, dtype=q.dtype)
    fused[:, 0] = q
    assert torch.equal(run(fused[:, 0], *rest), run(q, *rest))


def test_the_order_of_slots_is_irrelevant(run, backend, device):
    q, k, v, *rest = case(torch.bfloat16, device, slots=5)
    order = torch.tensor([3, 0, 4, 1, 2], device=device)
    torch.testing.assert_close(run(q, k, v, *rest), run(q, k[order], v[order], *rest), rtol=0, atol=2e-2)


@pytest.mark.parametrize("shape", [*CASES.values(), {"valid": 0}, {"valid": -1}])
def test_the_reference_means_the_same_with_a_mask(device, shape):
    """The mask is for GPUs, which must not be waited for; the slice is for CPUs."""
    q, k_ring, v_ring, valid = case(torch.float64, device, **shape)
    ways = (module._attend_masked, module._attend_slice)
    got = [way(q, k_ring.flatten(0, 1), v_ring.flatten(0, 1), valid) for way in ways]
    torch.testing.assert_close(*got, rtol=1e-10, atol=1e-12)


BAD = {
    "q": [
        (lambda a: (a[0][0], *a[1:]), r"\[any, any, any\]"),
        (lambda a: (a[0].half(), *a[1:]), "bfloat16"),
        (lambda a: (a[0].transpose(0, 1).contiguous().transpose(0, 1), *a[1:]), "contiguous rows"),
    ],
    "k_ring": [
        (lambda a: (a[0], a[1][..., :64], *a[2:]), r"\[any, any, 2, 128\]"),
        (lambda a: (a[0], a[1].float(), *a[2:]), "bfloat16"),
        (lambda a: (a[0], a[1][:, ::2], *a[2:]), "contiguous"),
        (lambda a: (a[0], a[1][:0], a[2][:0], *a[3:]), "not be empty"),
    ],
    "v_ring": [(lambda a: (*a[:2], a[2][:2], *a[3:]), r"\[7, 43, 2, 128\]")],
    "valid": [
        (lambda a: (*a[:3], a[3].long()), "int32"),
        (lambda a: (*a[:3], a[3].repeat(2)), r"\[1\]"),
        (lambda a: (*a[:3], a[3][0]), r"\[1\]"),
        (lambda a: (*a[:3], a[3].to("meta")), "on c"),
    ],
}


@pytest.mark.parametrize(("name", "spoil", "text"), [(name, *bad) for name, all_of in BAD.items() for bad in all_of])
def test_bad_input_is_named(backend, device, name, spoil, text):
    args = spoil(case(torch.bfloat16, device))
    with pytest.raises(ValueError, match=rf"^{name} must .*{text}"):
        OP.impls[backend][0](*args)


def test_registered_properly(device):
    torch.library.opcheck(OP.torch_op, case(torch.float32, device, tokens=9))


def test_compiles_to_one_graph(device):
    args = case(torch.float32, device)
    compiled = torch.compile(lambda *a: OP(*a) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), OP(*args) + 1)


@pytest.mark.parametrize(
    ("source", "cases"),
    [
        ("attention_schedule", 3000),  # each key tile of each output tile once, each partial result once, evenly shared
        ("ring_attention", 60),  # the CUDA kernel's source, its threads and engines in random order
    ],
)
def test_on_a_cpu(tmp_path, source, cases):
    run_on_a_cpu(tmp_path, f"{source}.cpp", cases)


# ----------------------------------------------------------------------------------------------------------------------
# Of the CUDA kernel alone. Rings are made to measure: a prime number of tokens, and any of them valid.


def draw(rng, device):
    tokens, heads = rng.choice([rng.randint(1, 400), rng.randint(1, 3000)]), rng.randint(1, 4)
    size = rng.choice([rng.randint(1, 400), rng.randint(1, 6000)])
    valid = rng.choice([0, 1, size, size + 1, *(rng.randint(0, size) for _ in range(4))])
    shape = {"tokens": tokens, "slots": 1, "per_slot": size, "heads": heads, "valid": valid}
    return case(torch.bfloat16, device, **shape, spread=rng.choice([1.0, 4.0, 30.0]))


@pytest.mark.gpu
@pytest.mark.parametrize("part", range(10))
def test_thousands_of_shapes(kernel, device, part):
    rng = random.Random(part)
    for i in range(1000):
        args = draw(rng, device)
        got, want = kernel(*args), truth(*args)
        shapes = [list(x.shape) for x in args[:3]], args[3].tolist()
        assert torch.isfinite(got).all(), (i, shapes)
        assert (got.double() - want).norm() <= 5e-3 * want.norm(), (i, shapes)


REAL = {
    "self-attention": {"tokens": 4680, "slots": 12, "per_slot": 1560, "heads": 12},
    "a young stream": {"tokens": 4680, "slots": 12, "per_slot": 1560, "heads": 12, "valid": 9360},
    "recache": {"tokens": 14040, "slots": 9, "per_slot": 1560, "heads": 12},
    "small picture": {"tokens": 2160, "slots": 12, "per_slot": 720, "heads": 12},
    "text": {"tokens": 4680, "slots": 1, "per_slot": 512, "heads": 12},
}


LOGITS = {"small": {"spread": 1.0}, "usual": {}, "large": {"spread": 30.0}, "outlier": {"outlier": 40.0}}


SEEDS = [*((name, 0) for name in REAL), *(("self-attention", seed) for seed in range(1, 10))]


@pytest.mark.gpu
@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize(("name", "seed"), SEEDS)
def test_is_as_exact_as_cudnn(kernel, device, name, seed, logits):
    q, k, v, valid = args = case(torch.bfloat16, device, **REAL[name], **LOGITS[logits], seed=seed)
    dense = (x.flatten(0, 1)[: int(valid)] for x in (k, v))
    got, library = kernel(*args), attention._library(q, *dense)
    want = torch.cat([truth(*(x[..., i : i + 1, :] for x in (q, k, v)), valid) for i in range(12)], dim=1)
    assert error(got, want) <= 1.02 * error(library, want)


@pytest.mark.gpu
@pytest.mark.parametrize("name", REAL)
def test_gives_the_same_bits_every_time(kernel, device, name):
    args = case(torch.bfloat16, device, **REAL[name])
    first = kernel(*args)
    for _ in range(20):
        assert torch.equal(kernel(*args), first)


@pytest.mark.gpu
def test_one_graph_serves_every_number_of_keys(kernel, device):
    args = *_, valid = case(torch.bfloat16, device, tokens=1000, slots=12, per_slot=299, heads=3)
    graph, out = captured(kernel, *args)
    for keys in (299, 3588, 1, 1000, 192, 193, 5000):
        valid.fill_(keys)
        graph.replay()
        assert torch.equal(out, kernel(*args))
        assert error(out, truth(*args)) <= 5e-3
