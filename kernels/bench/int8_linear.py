"""Shapes, bytes and operations of int8_linear, and the same products of other types.

The peers compute with the same numbers in bfloat16, and in fp8 with a scale a row: converted once, before the clock
runs, as our activations come quantised from the operator before. The ceiling is bfloat16's: int8 may be above it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..int8_linear import pack, quantize_weight
from ..quantize import quantize
from .case import Bench, Case


def draw(rows: int, depth: int, channels: int, groups: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Arguments of ``int8_linear``, of normal activations and weights."""
    x, scale = quantize.reference(torch.randn(rows, depth, device=device), groups)
    weight = torch.randn(channels, depth, device=device) * depth**-0.5
    return x, scale, *quantize_weight(weight), torch.randn(channels, device=device, dtype=dtype)


def case(rows: int, depth: int, channels: int, groups: int, dtype: torch.dtype) -> Case:
    moved = (rows + channels) * depth + 4 * (rows * groups + channels) + (1 + rows) * channels * dtype.itemsize
    return Case(
        f"{rows}x{depth}x{channels}, {groups} groups",
        dtype,
        lambda device: draw(rows, depth, channels, groups, dtype, device),
        moved,
        2 * rows * depth * channels,
    )


def layer(rows: int, dtype: torch.dtype) -> list[Case]:
    """q, k and v; cross-attention's q, like which are both attentions' outputs; the FFN's second product."""
    shapes = ((1536, 4608, 1), (1536, 1536, 1), (8960, 1536, 35))
    return [case(rows, depth, channels, groups, dtype) for depth, channels, groups in shapes]


def once(convert: Callable[[Tensor, Tensor], tuple]) -> Callable[[Tensor, Tensor], tuple]:
    """``convert(values, scale)``, remembered as long as the values live."""
    known = WeakTensorKeyDictionary()

    def found(values: Tensor, scale: Tensor) -> tuple:
        if values not in known:
            known[values] = convert(values, scale)
        return known[values]

    return found


def numbers(values: Tensor, scale: Tensor) -> Tensor:
    """What ``quantize`` made int8, as float32."""
    return (values.float().unflatten(1, (len(scale), -1)) * scale.T[..., None]).flatten(1)


def to_fp8(values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """float8_e4m3fn and the scale of each row, [rows, 1]."""
    wide = numbers(values, scale)
    largest = wide.abs().amax(dim=1, keepdim=True) / 448
    return (wide / largest).clamp(-448, 448).to(torch.float8_e4m3fn), largest


def peers(linear: Callable = F.linear) -> dict[str, Callable]:
    """torch's products in bfloat16, by ``linear``, and, where the GPU has it, in fp8 with a scale a row of both."""
    narrow, fp8 = once(lambda values, scale: (numbers(values, scale).bfloat16(),)), once(to_fp8)
    plain = once(lambda weight, scale: (pack(weight), scale[None]))

    def bf16(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
        return linear(*narrow(x, x_scale), *narrow(*plain(weight, weight_scale)), bias)

    def fp8_rows(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
        (a, a_scale), (b, b_scale) = fp8(x, x_scale), fp8(*plain(weight, weight_scale))
        return torch._scaled_mm(a, b.t(), a_scale, b_scale.t(), bias=bias, out_dtype=bias.dtype)

    found: dict[str, Callable] = {"bf16": bf16}
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0):
        found["fp8 rows"] = fp8_rows
    return found


BENCH = Bench(
    real=[*layer(4680, torch.bfloat16), *layer(2160, torch.bfloat16)],
    small=[case(60, 448, 256, 7, torch.float32)],
    peers=peers,
    time_reference=False,
)
