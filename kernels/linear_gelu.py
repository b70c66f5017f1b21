"""linear_gelu: the FFN's first product with its bias and activation in the product's epilogue."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import expect, expect_float
from .registry import op


@op()
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``GELU(x weight^T + bias)``, GELU by its tanh approximation.

    x [N, K], weight [M, K], bias [M], contiguous, of one dtype: bfloat16, float32 or float64. Returns [N, M].
    Raises ValueError naming the argument that does not fit.
    """
    _check(x, weight, bias)
    # Precision: the sum is rounded to x's dtype before GELU, as published; the library's epilogue keeps it in float32.
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    expect_float("x", x)
    expect("x", x, (None, None), x.dtype, x.device)
    expect("weight", weight, (None, x.shape[1]), x.dtype, x.device)
    expect("bias", bias, (weight.shape[0],), x.dtype, x.device)


def _fits_library(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    # Rows that are not whole 16-byte vectors leave the library without its fast kernels.
    vectors = weight.dim() == 2 and weight.shape[0] % 8 == 0 and weight.shape[1] % 8 == 0
    return x.is_cuda and x.dtype == torch.bfloat16 and vectors and hasattr(torch, "_addmm_activation")


@linear_gelu.impl("library", when=_fits_library)
def _library(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    _check(x, weight, bias)
    # On CUDA this is cuBLASLt's GELU epilogue, which is the tanh form, and so is what torch does where cuBLASLt refuses
    # (a dimension of 1, no algorithm). On the CPU the same call computes the erf form.
    return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
