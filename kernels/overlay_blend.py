"""overlay_blend: a small RGBA picture over a block of frames, in place, in one launch."""

import torch
from torch import Tensor

from . import native
from .checks import expect
from .registry import op
from .triton_import import tl, triton

DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


@op(mutates=("frames",))
def overlay_blend(frames: Tensor, panel: Tensor, y: int, x: int) -> None:
    """``frames += (panel.rgb - frames) * panel.alpha`` where the panel lies, its top left corner at row y, column x.

    frames [T, H, W, 3], of any strides under which no two elements share memory: uint8 in 0..255, or float16, bfloat16
    or float32 in 0..1. panel [h, w, 4], uint8, contiguous: red, green, blue (not premultiplied), alpha. The panel must
    lie inside the frames; no pixel outside of it is touched. Raises ValueError naming the argument that does not fit.
    """
    _check(frames, panel, y, x)
    under = frames[:, y : y + panel.shape[0], x : x + panel.shape[1]]
    colour, alpha = panel[..., :3], panel[..., 3:]
    # Precision: uint8 is rounded to nearest, in integers (a sum of n/255 has no ties), so that all backends agree to
    # the last bit. Floating point is computed in float32 and rounded once.
    if frames.dtype == torch.uint8:
        colour, alpha = colour.int(), alpha.int()
        under.copy_((under.int() * (255 - alpha) + colour * alpha + 127) // 255)
    else:
        wide = under.float()
        under.copy_(wide + (colour.float() / 255 - wide) * (alpha.float() / 255))


def _check(frames: Tensor, panel: Tensor, y: int, x: int) -> None:
    if frames.dtype not in DTYPES:
        raise ValueError(f"frames must be uint8, float16, bfloat16 or float32, got {frames.dtype}")
    if frames.dim() != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames must be [T, H, W, 3], got {list(frames.shape)}")
    if any(size > 1 and stride == 0 for size, stride in zip(frames.shape, frames.stride(), strict=True)):
        raise ValueError("frames must not be expanded: no two elements may share memory")
    expect("panel", panel, (None, None, 4), torch.uint8, frames.device)
    for name, start, size, limit in zip("yx", (y, x), panel.shape, frames.shape[1:], strict=False):
        if not 0 <= start <= limit - size:
            raise ValueError(f"{name} must put the panel's {size} pixels inside the frames' {limit}, got {start}")


def _fits_cuda(frames: Tensor, panel: Tensor, y: int, x: int) -> bool:
    return native.on_hopper(frames) and frames.dtype in (torch.uint8, torch.bfloat16, torch.float32)


@overlay_blend.impl("cuda", when=_fits_cuda)
def _cuda(frames: Tensor, panel: Tensor, y: int, x: int) -> None:
    torch.ops.longlive_C.overlay_blend(frames, panel, y, x)


if triton:
    # Not specialised: a panel of another size must not wait for a compiler in the middle of a stream.
    @triton.jit(do_not_specialize=["top", "left", "width", "area"])
    def _kernel(
        frames, panel, frame_stride, row_stride, column_stride, channel_stride, top, left, width, area,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        live = pixel < area
        alpha = tl.load(panel + pixel * 4 + 3, mask=live, other=0)
        row, column = (top + pixel // width).to(tl.int64), (left + pixel % width).to(tl.int64)
        at = frames + tl.program_id(1).to(tl.int64) * frame_stride + row * row_stride + column * column_stride
        for channel in tl.static_range(3):  # pyright: ignore[reportGeneralTypeIssues]
            colour = tl.load(panel + pixel * 4 + channel, mask=live, other=0)
            under = tl.load(at, mask=live, other=0)
            # Precision: as in the reference.
            if frames.dtype.element_ty == tl.uint8:
                a = alpha.to(tl.int32)
                blend = (under.to(tl.int32) * (255 - a) + colour.to(tl.int32) * a + 127) // 255
            else:
                wide = under.to(tl.float32)
                blend = wide + (colour.to(tl.float32) / 255 - wide) * (alpha.to(tl.float32) / 255)
            tl.store(at, blend.to(frames.dtype.element_ty), mask=live)
            at += channel_stride

    @overlay_blend.impl("triton", when=lambda frames, *rest: frames.is_cuda)
    def _triton(frames: Tensor, panel: Tensor, y: int, x: int) -> None:
        _check(frames, panel, y, x)
        height, width, _ = panel.shape
        area, block = height * width, 256
        if frames.shape[0] == 0 or area == 0:
            return
        grid = triton.cdiv(area, block), frames.shape[0]
        with torch.cuda.device_of(frames):
            _kernel[grid](frames, panel, *frames.stride(), y, x, width, area, BLOCK=block)
