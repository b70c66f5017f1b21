"""The chains that a GPU runs compiled, and their gradients, against complex numbers and float64's mean and variance."""

import pytest
import torch

from longlive_optimized.tinyworld.chains import gated, modulated, rotated

HAS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, HAS_GPU])]
SHAPES = [(3, 4, 6), (5, 2, 6), (4, 4, 9), (1, 1, 1)]
EPS = 1e-6


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def true_modulated(x, shift, scale, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * (1 + scale) + shift


def true_rotated(x, turns):
    numbers = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(numbers * torch.view_as_complex(turns)).flatten(-2)


def of_modulated(b, r, s):
    return draw(b, r, s, 32), draw(b, r, 1, 32), draw(b, r, 1, 32), EPS


def of_gated(b, r, s):
    return draw(b, r, s, 32), draw(b, r, s, 32), draw(b, r, 1, 32)


def of_rotated(b, r, s):
    return draw(b, r, s, 2, 16), draw(r, s, 1, 8, 2)


def with_gradients(chain, *given):
    """The result, and the gradients of a sum that weighs all of its elements differently."""
    leaves = [each.clone().requires_grad_() if torch.is_tensor(each) else each for each in given]
    result = chain(*leaves)
    (result * torch.arange(result.numel(), device=result.device).view(result.shape).remainder(7)).sum().backward()
    return [result, *(each.grad for each in leaves if torch.is_tensor(each))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("chain", "true", "given"),
    [
        (modulated, true_modulated, of_modulated),
        (gated, lambda x, y, gate: x + y * gate, of_gated),
        (rotated, true_rotated, of_rotated),
    ],
)
def test_a_chain_and_its_gradients(chain, true, given, device):
    for shape in SHAPES:  # one compiled chain serves them all
        exact = given(*shape)
        rounded = [each.float().to(device) if torch.is_tensor(each) else each for each in exact]
        for ours, theirs in zip(with_gradients(chain, *rounded), with_gradients(true, *exact), strict=True):
            torch.testing.assert_close(ours.cpu().double(), theirs, rtol=1e-4, atol=1e-4)


def test_a_rotation_is_rounded_once():
    x, turns = (each.float() for each in of_rotated(2, 3, 4))
    assert torch.equal(rotated(x.bfloat16(), turns), rotated(x.bfloat16().float(), turns).bfloat16())
