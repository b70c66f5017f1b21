"""attention against softmax in float64."""

import pytest
import torch

from longlive_optimized.kernels.attention import attention as OP

# Errors of the whole output, relative: float32 sums; bfloat16 inputs with one rounding of p and of the result.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 5e-3}

CASES = {
    "a few": {},
    "one key": {"keys": 1},
    "one query of one head": {"queries": 1, "heads": 1},
    "a prompt": {"queries": 300, "keys": 512},
    "ragged": {"queries": 131, "keys": 67, "heads": 3},
    "short heads": {"head_dim": 32},
    "large logits": {"spread": 30.0},
}


def case(dtype, device, queries=7, keys=43, heads=2, head_dim=128, spread=4.0):
    """Logits of about the deviation ``spread``."""
    torch.manual_seed(0)
    q = spread**0.5 * torch.randn(queries, heads, head_dim, device=device)
    k = spread**0.5 * torch.randn(keys, heads, head_dim, device=device)
    return q.to(dtype), k.to(dtype), torch.randn(keys, heads, head_dim, device=device).to(dtype)


def truth(q, k, v):
    scores = torch.einsum("nhd,mhd->hnm", q.double(), k.double()) / q.shape[-1] ** 0.5
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v.double())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_matches_float64(run, device, dtype, name):
    args = case(dtype, device, **CASES[name])
    got, want = run(*args), truth(*args)
    assert got.dtype == dtype and got.is_contiguous() and got.shape == want.shape
    wide = 3 if name == "large logits" and dtype == torch.float32 else 1  # a float32 score of 100 is off by 4e-6
    assert (got.double() - want).norm() <= TOLERANCE[dtype] * wide * want.norm()


def test_without_queries_there_is_no_result(run, device):
    q, k, v = case(torch.bfloat16, device)
    assert run(q[:0], k, v).shape == (0, *q.shape[1:])


def test_takes_queries_beside_keys_and_values(run, device):
    """Rows of a fused product, which lie further apart than they are long."""
    q, k, v = case(torch.bfloat16, device, queries=20)
    fused = torch.full((20, 3, *q.shape[1:]), float("nan"), device=device, dtype=q.dtype)
    fused[:, 0] = q
    assert torch.equal(run(fused[:, 0], k, v), run(q, k, v))


BAD = {
    "q": [
        (lambda q, k, v: (q[0], k, v), r"\[any, any, any\]"),
        (lambda q, k, v: (q.half(), k, v), "bfloat16"),
        (lambda q, k, v: (q.transpose(0, 1).contiguous().transpose(0, 1), k, v), "contiguous rows"),
        (lambda q, k, v: (q.transpose(1, 2), k, v), "contiguous in its last dimension"),
    ],
    "k": [
        (lambda q, k, v: (q, k[..., :64], v), r"\[any, 2, 128\]"),
        (lambda q, k, v: (q, k[None], v), r"\[any, 2, 128\]"),
        (lambda q, k, v: (q, k.float(), v), "bfloat16"),
        (lambda q, k, v: (q, k[::2], v), "contiguous"),
        (lambda q, k, v: (q, k.to("meta"), v), "on c"),
        (lambda q, k, v: (q, k[:0], v[:0]), "not be empty"),
    ],
    "v": [
        (lambda q, k, v: (q, k, v[:2]), r"\[43, 2, 128\]"),
        (lambda q, k, v: (q, k, v.double()), "bfloat16"),
    ],
}


@pytest.mark.parametrize(("name", "spoil", "text"), [(name, *bad) for name, all_of in BAD.items() for bad in all_of])
def test_bad_input_is_named(backend, device, name, spoil, text):
    args = spoil(*case(torch.bfloat16, device))
    with pytest.raises(ValueError, match=rf"^{name} must .*{text}"):
        OP.impls[backend][0](*args)


@pytest.mark.gpu
def test_the_library_takes_half_precision_alone(device):
    assert [OP.choose(*case(dtype, device)) for dtype in TOLERANCE] == ["reference", "reference", "library"]


def test_registered_properly(device):
    torch.library.opcheck(OP.torch_op, case(torch.float32, device))


def test_compiles_to_one_graph(device):
    args = case(torch.float32, device)
    compiled = torch.compile(lambda *a: OP(*a) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), OP(*args) + 1)
