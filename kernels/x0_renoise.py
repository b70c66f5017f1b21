"""x0_renoise: what lies between two denoising steps, in one pass."""

import torch
from torch import Tensor

from . import native
from .checks import expect, expect_float, on_gpu
from .registry import op
from .triton_import import tl, triton


@op()
def x0_renoise(x: Tensor, flow: Tensor, noise: Tensor | None, sigmas: Tensor, index: int) -> Tensor:
    """``x0 = x - sigma flow``, then ``(1 - sigma') x0 + sigma' noise``; noise None, after the last step, gives x0.

    sigma = sigmas[index] and sigma' = sigmas[index + 1]. x, flow and noise are contiguous, of one shape and dtype:
    bfloat16, float32 or float64. sigmas [steps], float64, on the same device; its values are float32 numbers.
    Source: docs/model.md 4.3. Raises ValueError naming the argument that does not fit.
    """
    _check(x, flow, noise, sigmas, index)
    # Precision, in every implementation bit for bit: x0 in float64, rounded to x's dtype; the rest in float32, where
    # 1 - sigma', both products and their sum are each rounded, then to x's dtype.
    x0 = (x.double() - sigmas[index] * flow.double()).to(x.dtype)
    if noise is None:
        return x0
    wide = torch.promote_types(x.dtype, torch.float32)
    sigma = sigmas[index + 1].float()
    return ((1 - sigma).to(wide) * x0.to(wide) + sigma.to(wide) * noise.to(wide)).to(x.dtype)


def _check(x: Tensor, flow: Tensor, noise: Tensor | None, sigmas: Tensor, index: int) -> None:
    expect_float("x", x)
    shape = tuple(x.shape)
    expect("x", x, shape, x.dtype, x.device)
    expect("flow", flow, shape, x.dtype, x.device)
    if noise is not None:
        expect("noise", noise, shape, x.dtype, x.device)
    expect("sigmas", sigmas, (None,), torch.float64, x.device)
    last = sigmas.shape[0] - (1 if noise is None else 2)
    if not 0 <= index <= last:
        raise ValueError(f"index must lie in 0..{last}, got {index}")


def _fits_cuda(x: Tensor, flow: Tensor, noise: Tensor | None, sigmas: Tensor, index: int) -> bool:
    vectors = [x, flow] + ([] if noise is None else [noise])
    return native.takes(x) and x.numel() * x.element_size() % 16 == 0 and all(t.data_ptr() % 16 == 0 for t in vectors)


@x0_renoise.impl("cuda", when=_fits_cuda)
def _cuda(x: Tensor, flow: Tensor, noise: Tensor | None, sigmas: Tensor, index: int) -> Tensor:
    return torch.ops.longlive_C.x0_renoise(x, flow, noise, sigmas, index)


if triton:
    # Not specialised: another number of steps must not wait for a compiler.
    @triton.jit(do_not_specialize=["index"])
    def _kernel(x, flow, noise, sigmas, out, count, index, RENOISE: tl.constexpr, BLOCK: tl.constexpr):
        here = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        live = here < count
        wide = tl.load(x + here, mask=live).to(tl.float64)
        wide -= tl.load(sigmas + index) * tl.load(flow + here, mask=live).to(tl.float64)
        # Precision: torch rounds float64 to bfloat16 by way of float32; so must this.
        result = wide.to(tl.float32).to(out.dtype.element_ty)
        if RENOISE:
            sigma = tl.load(sigmas + index + 1).to(tl.float32)
            new = tl.load(noise + here, mask=live).to(tl.float32)
            result = ((1 - sigma) * result.to(tl.float32) + sigma * new).to(out.dtype.element_ty)
        tl.store(out + here, result, mask=live)

    @x0_renoise.impl("triton", when=on_gpu)
    def _triton(x: Tensor, flow: Tensor, noise: Tensor | None, sigmas: Tensor, index: int) -> Tensor:
        _check(x, flow, noise, sigmas, index)
        out = torch.empty_like(x)
        count = x.numel()
        if count == 0:
            return out
        with torch.cuda.device_of(x):
            _kernel[(triton.cdiv(count, 1024),)](
                x, flow, flow if noise is None else noise, sigmas, out, count, index,
                RENOISE=noise is not None, BLOCK=1024, enable_fp_fusion=False,  # each product is rounded
            )  # fmt: skip
        return out
