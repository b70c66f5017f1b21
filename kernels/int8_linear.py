"""int8_linear, int8_linear_gelu: products of int8 activations and int8 weights, whose integer sums are exact."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import expect
from .quantize import expect_groups, quantize_runs
from .registry import op

PACK = 32  # rows of a weight that are permuted among themselves
_DEEPEST = (2**31 - 1) // 128**2  # columns whose products sum to an int32, whatever the values
_EXACT = 2**24 // 128**2  # columns whose products sum to a float32 without rounding


def pack(weight: Tensor) -> Tensor:
    """The rows of ``weight`` [M, K] in the order that the products read: its own inverse.

    Row ``32 b + 8 i + 2 t + j`` of the result is row ``32 b + 8 t + 2 i + j`` of ``weight``; i and t are 0 to 3, j is 0
    or 1. A tensor core leaves columns 8 i + 2 t + j of a product in thread t of a quad: of a packed weight these are
    consecutive channels, stored in one piece. Raises ValueError unless M is a multiple of 32.
    """
    if weight.dim() != 2 or weight.shape[0] % PACK:
        raise ValueError(f"weight must be [M, K], M a multiple of {PACK}, got {list(weight.shape)}")
    return weight.reshape(-1, 4, 4, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _fake(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    _check(x, x_scale, weight, weight_scale, bias)
    return bias.new_empty(x.shape[0], weight.shape[0])


@op(fake=_fake)
def int8_linear(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    """``(sum_g x_scale[g, n] * sum_{k in group g} x[n, k] w[m, k]) * weight_scale[m] + bias[m]``.

    - x [N, K] int8 and x_scale [G, N] float32, as ``quantize`` returns them: G equal runs of columns, each of at most
      131071.
    - weight [M, K] int8, packed by ``pack``: w is the plain weight. M is a multiple of 32.
    - weight_scale [M] float32 and bias [M], bfloat16 or float32, in the plain order of channels.

    All contiguous. The integer sums are exact; the rest is float32, rounded once at the end. A scale that is not finite
    makes its row's results NaN or infinite. Returns [N, M] in bias's dtype. Raises ValueError naming the argument that
    does not fit.
    """
    _check(x, x_scale, weight, weight_scale, bias)
    return _linear(x, x_scale, weight, weight_scale, bias).to(bias.dtype)


def _fake_gelu(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    _check_gelu(x, x_scale, weight, weight_scale, bias, groups)
    rows = x.shape[0]
    return x.new_empty(rows, weight.shape[0]), x_scale.new_empty(groups, rows)


@op(fake=_fake_gelu)
def int8_linear_gelu(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """``quantize(GELU(int8_linear(...)), groups)`` without a rounding before the last; GELU by its tanh approximation.

    The arguments are those of ``int8_linear``; ``groups`` divides M into equal runs. Returns (values [N, M] int8, scale
    [groups, N] float32), as ``quantize`` does. Raises ValueError naming the argument that does not fit.
    """
    _check_gelu(x, x_scale, weight, weight_scale, bias, groups)
    return quantize_runs(F.gelu(_linear(x, x_scale, weight, weight_scale, bias), approximate="tanh"), groups)


def _linear(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    """[N, M] in float32."""
    depth = x.shape[1] // len(x_scale)
    plain = pack(weight)
    runs = zip(x_scale, x.split(depth, dim=1), plain.split(depth, dim=1), strict=True)
    total = x_scale.new_zeros(x.shape[0], len(plain))
    for scale, a, b in runs:
        total += scale[:, None] * _integer_product(a, b)
    return total * weight_scale + bias.float()


def _integer_product(a: Tensor, b: Tensor) -> Tensor:
    """``a b^T`` of int8 matrices: the exact sums, int32."""
    if a.is_cpu and len(a) and a.shape[1] > 1 and _int_mm_is_exact():  # of one column it returns something else
        return torch._int_mm(a, b.T)
    total = torch.zeros(len(a), len(b), dtype=torch.int32, device=a.device)
    for c, d in zip(a.split(_EXACT, dim=1), b.split(_EXACT, dim=1), strict=True):
        total += (c.float() @ d.float().T).int()
    return total


@functools.cache
def _int_mm_is_exact() -> bool:
    """Whether torch's integer product, seven times faster, can be used: without VNNI a CPU saturates sums of two."""
    ends = torch.tensor([127, -128], dtype=torch.int8).repeat_interleave(64).expand(64, 128).contiguous()
    try:
        return bool((torch._int_mm(ends, ends.T) == 64 * (127**2 + 128**2)).all())
    except (AttributeError, RuntimeError):
        return False


def _check(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> None:
    expect("x", x, (None, None), torch.int8, x.device)
    expect("x_scale", x_scale, (None, x.shape[0]), torch.float32, x.device)
    runs, depth = x_scale.shape[0], x.shape[1]
    if runs < 1 or depth < 1 or depth % runs:
        raise ValueError(f"x_scale must have a row count that divides x's {depth} columns, got {runs}")
    if depth // runs > _DEEPEST:
        raise ValueError(f"x must have at most {_DEEPEST} columns for each row of x_scale, got {depth // runs}")
    expect("weight", weight, (None, depth), torch.int8, x.device)
    if weight.shape[0] % PACK:
        raise ValueError(f"weight must have a multiple of {PACK} rows, got {weight.shape[0]}")
    expect("weight_scale", weight_scale, (weight.shape[0],), torch.float32, x.device)
    if bias.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"bias must be bfloat16 or float32, got {bias.dtype}")
    expect("bias", bias, (weight.shape[0],), bias.dtype, x.device)


def _check_gelu(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, groups: int) -> None:
    _check(x, x_scale, weight, weight_scale, bias)
    expect_groups(groups, "weight's rows,", weight.shape[0])
