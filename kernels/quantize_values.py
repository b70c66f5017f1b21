"""quantize_values: values of attention as e4m3 into a ring, transposed, so that each channel's tokens lie in a row."""

import torch
from torch import Tensor

from . import native
from .checks import expect, expect_float
from .quantize_keys import KEY_RUN
from .registry import op

VALUE_GROUP = 16  # tokens of a channel that lie in 16 bytes of a ring
# In this order, ``_place_of`` its inverse: so the accumulator of q kT is the operand of p v.
ORDER = (0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)
LARGEST = 448.0  # e4m3's


@op(mutates=("v_ring",))
def quantize_values(v: Tensor, v_offset: Tensor, v_scale: Tensor, v_ring: Tensor, slots: Tensor) -> None:
    """Write values into a ring of e4m3: ``(v[f, s, h, d] - v_offset[h, d]) * (1 / v_scale[h, d])`` for each token.

    F frames of S tokens, S a multiple of 8; H heads of hd channels:

    - v [F*S, H, hd], rows of any stride: bfloat16, float32 or float64.
    - v_offset, v_scale [H, hd], float32. A scale of 0 makes NaN.
    - v_ring [H, hd, P], float8_e4m3fn, P a multiple of 16: frame f's token s is token slots[f] * S + s of the ring.
      Position p of 16 positions in a row holds token ORDER[p] of 16 tokens in a row. Nothing else is touched, the other
      half of 16 bytes neither.
    - slots [F], int64, on the same device; distinct and in [0, P // S): not checked, that would wait for the device.

    Float32 arithmetic, each operation rounded, and the result rounded to the nearest e4m3, ties to even. What then is
    beyond +-448 or not finite becomes NaN (0x7f). Raises ValueError naming the argument that does not fit.
    """
    tokens = _check(v, v_offset, v_scale, v_ring, slots)
    x = (v.float() - v_offset) * v_scale.reciprocal()
    x = torch.where(x.abs() <= LARGEST, x, torch.nan).to(torch.float8_e4m3fn)
    at = slots[:, None] * tokens + torch.arange(tokens, device=v.device)
    v_ring.view(torch.uint8).index_copy_(2, _place_of(at.flatten()), x.view(torch.uint8).permute(1, 2, 0))


def dequantize_values(
    v_ring: Tensor, v_scale: Tensor, v_offset: Tensor, slots: int, tokens: int, dtype: torch.dtype
) -> Tensor:
    """The values that the first ``slots`` slots of a ring stand for, [slots, tokens, H, hd] of ``dtype``.

    ``v_offset + v_scale * e4m3``, computed in float32 or wider, rounded once to ``dtype``; other arguments as in
    ``quantize_values``, whose inverse it is, but for the rounding. Raises ValueError naming the argument that does not
    fit.
    """
    expect_values(v_ring, v_scale, v_offset, (None, None), slots * tokens, v_ring.device)
    at = _place_of(torch.arange(slots * tokens, device=v_ring.device))
    wide = torch.promote_types(dtype, torch.float32)
    e4m3 = v_ring.view(torch.uint8)[:, :, at].view(torch.float8_e4m3fn).to(wide).permute(2, 0, 1)
    return (v_offset + v_scale * e4m3).to(dtype).unflatten(0, (slots, tokens))


def expect_values(
    v_ring: Tensor,
    v_scale: Tensor,
    v_offset: Tensor,
    channels: tuple[int | None, int | None],
    tokens: int,
    device: torch.device,
) -> None:
    """Raise ValueError unless v_ring [*channels, P] has room for so many tokens and v_scale and v_offset fit it, all on
    ``device``.

    ``channels``: how many heads, and how many channels a head has, None for any.
    """
    expect("v_ring", v_ring, (*channels, None), torch.float8_e4m3fn, device)
    room = v_ring.shape[2]
    if room % VALUE_GROUP or room < tokens:
        raise ValueError(f"v_ring must have a multiple of {VALUE_GROUP} tokens, at least {tokens}, got {room}")
    expect("v_scale", v_scale, tuple(v_ring.shape[:2]), torch.float32, device)
    expect("v_offset", v_offset, tuple(v_ring.shape[:2]), torch.float32, device)


def _place_of(token: Tensor) -> Tensor:
    """The position of each token of a ring."""
    in_group = token % VALUE_GROUP
    return token - in_group + in_group % 8 // 2 * 4 + in_group // 8 * 2 + in_group % 2


def _check(v: Tensor, v_offset: Tensor, v_scale: Tensor, v_ring: Tensor, slots: Tensor) -> int:
    """Raise ValueError unless all fit; returns the tokens of a frame."""
    expect_float("v", v)
    expect("v", v, (None,) * 3, v.dtype, v.device, dense_from=1)
    rows, heads, head_dim = v.shape
    if v.stride(1) != head_dim:
        raise ValueError("v must have contiguous rows")
    expect_values(v_ring, v_scale, v_offset, (heads, head_dim), rows, v.device)
    expect("slots", slots, (None,), torch.int64, v.device)
    frames = slots.shape[0]
    if frames == 0 or rows % (frames * KEY_RUN):
        raise ValueError(f"v must have a multiple of {KEY_RUN} tokens for each of slots' {frames} frames, got {rows}")
    return rows // frames


def _fits_cuda(v: Tensor, v_offset: Tensor, v_scale: Tensor, v_ring: Tensor, slots: Tensor) -> bool:
    return (
        native.takes(v)
        and v.dim() == 3
        and v.shape[1] * v.shape[2] * v.element_size() % 256 == 0
        and native.rows_of_vectors(v)
        and all(t.data_ptr() % 16 == 0 for t in (v_offset, v_scale, v_ring))
    )


@quantize_values.impl("cuda", when=_fits_cuda)
def _cuda(v: Tensor, v_offset: Tensor, v_scale: Tensor, v_ring: Tensor, slots: Tensor) -> None:
    torch.ops.longlive_C.quantize_values(v, v_offset, v_scale, v_ring, slots)
