"""ring_attention against softmax in float64; slots that are not valid hold NaN."""

import pytest
import torch

from longlive_optimized.kernels.ring_attention import ring_attention as OP

# Errors of one output relative to the whole: float32 sums; bfloat16 inputs with one rounding of P and of the result.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}


def case(dtype, device, tokens=7, slots=5, per_slot=6, heads=2, head_dim=128, valid=3, spread=4.0):
    torch.manual_seed(0)
    q = (spread**0.5 * torch.randn(tokens, heads, head_dim)).to(device, dtype)
    k = (spread**0.5 * torch.randn(slots, per_slot, heads, head_dim)).to(device, dtype)
    v = torch.randn(slots, per_slot, heads, head_dim).to(device, dtype)
    k[valid:], v[valid:] = float("nan"), float("nan")
    return q, k, v, valid


def truth(q, k_ring, v_ring, valid):
    k, v = (x[:valid].double().flatten(0, 1) for x in (k_ring, v_ring))
    scores = torch.einsum("nhd,mhd->hnm", q.double(), k) / q.shape[-1] ** 0.5
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "shape",
    [{}, {"tokens": 1, "per_slot": 1, "valid": 1}, {"valid": 5}, {"tokens": 131, "per_slot": 67}, {"spread": 30.0}],
    ids=str,
)
def test_matches_float64(run, backend, device, dtype, shape):
    if backend == "library" and dtype != torch.bfloat16:
        pytest.skip("the library is for half precision")
    args = case(dtype, device, **shape)
    got, want = run(*args), truth(*args)
    assert got.dtype == dtype and got.is_contiguous()
    assert ((got.double() - want).norm() / want.norm()).item() <= TOLERANCE[dtype]


def test_the_order_of_slots_is_irrelevant(run, backend, device):
    q, k, v, _ = case(torch.bfloat16 if backend == "library" else torch.float32, device, valid=5)
    order = torch.tensor([3, 0, 4, 1, 2], device=device)
    torch.testing.assert_close(run(q, k, v, 5), run(q, k[order], v[order], 5), rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[0], r"q must be \[tokens, heads, head_dim\]"),
        (1, lambda t: t[..., :64], r"k_ring must be \[slots, tokens, 2, 128\]"),
        (2, lambda t: t[:2], "v_ring must have k_ring's shape"),
        (3, lambda _: 0, r"valid must lie in 1\.\.5"),
        (3, lambda _: 6, r"valid must lie in 1\.\.5"),
    ],
)
def test_bad_arguments(run, device, index, change, message):
    args = list(case(torch.bfloat16, device))
    args[index] = change(args[index])
    with pytest.raises(ValueError, match=message):
        run(*args)


def test_registered_properly(device):
    q, k, v, valid = case(torch.float32, device)
    torch.library.opcheck(OP.torch_op, (q, k, v, valid))
