"""norm_silu: what the video autoencoder's convolutions read, where no convolution before could write it."""

from __future__ import annotations

import torch
from torch import Tensor

from .causal_conv import _EPS, GROUP, LARGEST, _Outputs
from .checks import expect, expect_float, on_gpu
from .registry import op
from .triton_import import tl, triton


@op(mutates=("act", "saturated"))
def norm_silu(
    x: Tensor,
    gain: Tensor,
    act: Tensor,
    act_frames: Tensor,
    act_scale: float = 0.0,
    saturated: Tensor | None = None,
) -> None:
    """``SiLU(norm(x) * gain)`` into ``act``: what ``causal_conv`` does with its sums.

    x [T, C / 8, H, W, 8], contiguous: bfloat16, float32 or float64. gain [C], act [S, C / 8, H, W, 8] of x's dtype or
    int8 [S, C / 16, H, W, 16], act_frames [T], act_scale and saturated: see ``causal_conv``.
    Raises ValueError naming the argument that does not fit.
    """
    outputs = _checked(x, gain, act, act_frames, act_scale, saturated)
    outputs.write(x.movedim(-1, 2).flatten(1, 2))


def _checked(
    x: Tensor, gain: Tensor, act: Tensor, act_frames: Tensor, act_scale: float, saturated: Tensor | None
) -> _Outputs:
    expect_float("x", x)
    expect("x", x, (None, None, None, None, GROUP), x.dtype, x.device)
    outputs = _Outputs(None, None, act, act_frames, gain, act_scale, saturated)
    outputs.check(x.shape[1] * GROUP, len(x), (x.shape[2], x.shape[3]), x.dtype, x.device)
    return outputs


if triton:
    # Not specialised: what varies with the picture must not wait for a compiler in the middle of a stream.
    @triton.jit(do_not_specialize=["pixels"])
    def _kernel(
        x, gain, act, act_frames, saturated, pixels, groups, inverse, eps,
        INT8: tl.constexpr, MOST: tl.constexpr, GROUPS: tl.constexpr, PIXELS: tl.constexpr,
    ):  # fmt: skip
        frame = tl.program_id(1)
        pixel = (tl.program_id(0) * PIXELS + tl.arange(0, PIXELS))[None, :, None]
        group, channel = tl.arange(0, GROUPS)[:, None, None], tl.arange(0, 8)[None, None, :]
        live = (group < groups) & (pixel < pixels) & (channel < 8)
        size = (groups * pixels * 8).to(tl.int64)
        here = (group * pixels + pixel) * 8 + channel
        wide = tl.load(x + frame.to(tl.int64) * size + here, mask=live, other=0.0).to(tl.float32)
        squares = tl.sum(tl.sum(wide * wide, axis=2), axis=0)
        gains = tl.load(gain + group * 8 + channel, mask=(group < groups) & (channel < 8), other=0.0)
        z = wide * tl.rsqrt(squares / (groups * 8) + eps)[None, :, None] * gains
        y = z * tl.sigmoid(z)
        to = act + tl.load(act_frames + frame).to(tl.int64) * size
        if INT8:
            steps = y * inverse
            over = (steps < MOST + 0.5) == 0
            count = tl.sum(tl.sum(tl.sum((over & live).to(tl.int64), axis=2), axis=1), axis=0)
            if count != 0:
                tl.atomic_add(saturated, count)
            steps = tl.where(over, MOST, steps) + 12582912.0 - 12582912.0  # which leaves a float32 no bits below 1
            here = (group // 2 * pixels + pixel) * 16 + group % 2 * 8 + channel
            tl.store(to + here, steps.to(tl.int8), mask=live)
        else:
            tl.store(to + here, y, mask=live)

    @norm_silu.impl("triton", when=on_gpu)
    def _triton(
        x: Tensor,
        gain: Tensor,
        act: Tensor,
        act_frames: Tensor,
        act_scale: float = 0.0,
        saturated: Tensor | None = None,
    ) -> None:
        _checked(x, gain, act, act_frames, act_scale, saturated)
        count, groups, height, width, _ = x.shape
        in_int8 = act.dtype == torch.int8
        most = triton.next_power_of_2(max(groups, 1))
        together = max(1, 512 // most)
        if x.numel() == 0:
            return
        with torch.cuda.device_of(x):
            _kernel[(triton.cdiv(height * width, together), count)](
                x, gain, act, act_frames, saturated if in_int8 else act_frames, height * width, groups,
                1 / act_scale if in_int8 else 0.0, _EPS / (groups * GROUP),
                INT8=in_int8, MOST=LARGEST, GROUPS=most, PIXELS=together,
            )  # fmt: skip
