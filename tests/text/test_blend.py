"""Mixing embeddings against float64 and by its properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longlive_optimized.text.blend import blend, lerp, normalise, slerp

WEIGHTS = st.lists(st.floats(0, 1e300), min_size=1, max_size=5)


def embeddings(n, dtype=torch.float32, rows=6, width=16):
    out = torch.randn(n, rows, width, generator=torch.Generator().manual_seed(n)).to(dtype)
    for i, row in enumerate(out):
        row[i + 2 :] = 0  # padding of another length for each prompt
    return list(out)


@settings(deadline=None)
@given(WEIGHTS)
def test_weights_sum_to_one(weights):
    shares = normalise(weights)
    assert math.isclose(math.fsum(shares), 1, rel_tol=1e-12)
    assert all(share >= 0 for share in shares)
    if any(weights):
        assert all((share > 0) <= (weight > 0) for share, weight in zip(shares, weights, strict=True))
    else:
        assert set(shares) == {1 / len(weights)}


def test_weights():
    assert normalise([1, 3]) == [0.25, 0.75]
    assert normalise([0, 0]) == [0.5, 0.5]
    assert normalise([5]) == [1.0]


@pytest.mark.parametrize("weights", [[], [-0.1, 1], [math.nan], [math.inf, 1]])
def test_bad_weights(weights):
    with pytest.raises(ValueError, match="weights"):
        normalise(weights)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=4))
def test_norm_is_the_weighted_mean_of_the_norms(weights):
    parts = embeddings(len(weights))
    shares = torch.tensor(weights, dtype=torch.float64) / math.fsum(weights)
    mixed = blend(parts, weights)
    plain = sum(share * part.double() for share, part in zip(shares, parts, strict=True))
    norm = sum(share * part.double().norm() for share, part in zip(shares, parts, strict=True))
    torch.testing.assert_close(mixed.double(), plain * norm / plain.norm(), rtol=1e-5, atol=1e-6)


def test_one_prompt_is_itself():
    a, b = embeddings(2, torch.bfloat16)
    assert torch.equal(blend([a], [3.0]), a)
    assert torch.equal(blend([a, b], [0, 2]), b)


def test_blend_rounds_once():
    parts = embeddings(3, torch.bfloat16)
    mixed = blend(parts, [1, 2, 3])
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, blend([part.float() for part in parts], [1, 2, 3]).bfloat16())


def test_opposite_prompts_cancel_without_nan():
    (a,) = embeddings(1)
    assert blend([a, -a], [1, 1]).eq(0).all()


def test_bad_blends():
    a, b = embeddings(2)
    with pytest.raises(ValueError, match="weights must be one for each of the 2"):
        blend([a, b], [1])
    with pytest.raises(ValueError, match="one shape"):
        blend([a, b[:3]], [1, 1])


@pytest.mark.parametrize("mix", [lerp, slerp])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ends_are_exact(mix, dtype):
    a, b = embeddings(2, dtype)
    assert torch.equal(mix(a, b, 0.0), a) and torch.equal(mix(a, b, 1.0), b)
    assert mix(a, b, 0.3).dtype == dtype


@pytest.mark.parametrize("mix", [lerp, slerp])
@pytest.mark.parametrize("t", [-0.01, 1.01, math.nan])
def test_bad_t(mix, t):
    with pytest.raises(ValueError, match="t must be"):
        mix(*embeddings(2), t)


@pytest.mark.parametrize("mix", [lerp, slerp])
def test_bad_shapes(mix):
    a, b = embeddings(2)
    with pytest.raises(ValueError, match="one shape"):
        mix(a, b[:, :3], 0.5)


def test_lerp_is_linear():
    a, b = (x.double() for x in embeddings(2))
    torch.testing.assert_close(lerp(a, b, 0.3), 0.7 * a + 0.3 * b, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(st.floats(0, 1))
def test_slerp_turns_at_constant_speed(t):
    rows = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    a, b = torch.nn.functional.normalize(rows, dim=-1)
    x, angle = slerp(a, b, t), (a * b).sum(-1).acos()
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(5), rtol=0, atol=1e-5)
    torch.testing.assert_close((a * x).sum(-1), (t * angle).cos(), rtol=0, atol=1e-5)
    torch.testing.assert_close(x, slerp(b, a, 1 - t), rtol=0, atol=1e-5)


def test_slerp_without_an_arc_is_lerp():
    a = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
    b = a.clone()
    b[1] *= 2  # parallel
    b[2] *= -1  # opposite
    torch.testing.assert_close(slerp(a, b, 0.25), 0.75 * a + 0.25 * b)


def test_slerp_takes_a_row_of_zeros_for_a_right_angle():
    a, zero = torch.randn(1, 8, generator=torch.Generator().manual_seed(3)), torch.zeros(1, 8)
    torch.testing.assert_close(slerp(a, zero, 0.25), math.sin(0.75 * math.pi / 2) * a)
    torch.testing.assert_close(slerp(zero, a, 0.25), math.sin(0.25 * math.pi / 2) * a)
    assert not slerp(zero, zero, 0.25).any()
