"""norm_silu: what the video autoencoder's convolutions read, where no convolution before could write it."""

from __future__ import annotations

from torch import Tensor

from .causal_conv import GROUP, _Outputs
from .checks import expect, expect_float, on_gpu
from .registry import op
from .triton_import import triton


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
    from .causal_conv_triton import launch_norm

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
        launch_norm(x, None, gain, act, act_frames, act_scale, saturated)
