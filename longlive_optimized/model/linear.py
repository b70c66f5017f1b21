"""A linear layer, in the model's dtype or in 8 bits, and where a checkpoint's tensors go in it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.dequantize_weight import dequantize_weight
from ..kernels.int8_linear import int8_linear, int8_linear_gelu, quantize_weight
from ..kernels.linear_gelu import linear_gelu
from ..kernels.quantize import quantize
from .slot import Int8Slot, Slot


class Quantized(NamedTuple):
    """An activation [N, D], or queries [N, heads, head_dim], in 8 bits: what ``quantize`` gives, and the operators that
    end in it."""

    values: Tensor  # int8
    scale: Tensor  # float32 [groups, N]: of each row's groups of columns; of queries [heads, N]


class Linear(nn.Module):
    """A weight [d_out, d_in] and a bias, allocated and never initialised: checkpoints fill them.

    After ``quantize_weight`` it has an int8 copy of the weight too. The activation's type decides which product runs.
    With ``int8_only`` there is no other weight than that: its slots quantise what they are given, ``weight`` is None,
    and a product in the model's dtype multiplies with what the 8 bits stand for. d_out, and the rows of each slot, must
    then be a multiple of ``int8_linear.PACK``.
    """

    def __init__(self, d_in: int, d_out: int, *, int8_only: bool = False, **where):
        super().__init__()
        self.weight: nn.Parameter | None
        weight = None if int8_only else nn.Parameter(torch.empty(d_out, d_in, **where), requires_grad=False)
        self.register_parameter("weight", weight)
        self.bias = nn.Parameter(torch.empty(d_out, **where), requires_grad=False)
        self.int8_weight: Tensor | None  # [d_out, d_in], packed
        self.int8_scale: Tensor | None  # float32 [d_out]
        self.drop_int8()
        if int8_only:
            self.int8_weight = torch.empty(d_out, d_in, dtype=torch.int8, device=self.bias.device)
            self.int8_scale = torch.empty(d_out, dtype=torch.float32, device=self.bias.device)

    def forward(self, x: Tensor | Quantized) -> Tensor:
        """x [..., d_in] to [..., d_out]; a Quantized [N, d_in] by the int8 product, to the bias's dtype."""
        if isinstance(x, Quantized):
            return int8_linear(*x, self.int8_weight, self.int8_scale, self.bias)
        return F.linear(x, self._plain_weight(), self.bias)

    def gelu(self, x: Tensor | Quantized, groups: int | None = None) -> Tensor | Quantized:
        """GELU of ``forward(x)``, tanh form; x [N, d_in]. With ``groups`` it is quantised, each row in so many."""
        if isinstance(x, Quantized):
            if groups:
                return Quantized(*int8_linear_gelu(*x, self.int8_weight, self.int8_scale, self.bias, groups))
            return F.gelu(self(x), approximate="tanh")
        y = linear_gelu(x, self._plain_weight(), self.bias)
        return Quantized(*quantize(y, groups)) if groups else y

    def quantize_weight(self) -> None:
        """Make the int8 copy of the weight, a scale for each row: in place where there is one, so that captured
        passes stay good. Does nothing with ``int8_only``. Raises ValueError for a d_out that int8 products do not take.
        """
        if self.weight is None:
            return
        packed, scale = quantize_weight(self.weight.detach())
        if self.int8_weight is None or self.int8_scale is None:
            self.int8_weight, self.int8_scale = packed, scale
        else:
            self.int8_weight.copy_(packed)
            self.int8_scale.copy_(scale)

    def drop_weight(self) -> None:
        """Hold the int8 copy alone from here on. Raises ValueError where there is none."""
        if self.int8_weight is None:
            raise ValueError("the weight has no int8 copy that could stand for it")
        self.weight = None

    def drop_int8(self) -> None:
        """Forget the int8 copy."""
        self.register_buffer("int8_weight", None, persistent=False)
        self.register_buffer("int8_scale", None, persistent=False)

    def slots(self, *keys: str, shape: tuple[int, ...] | None = None) -> dict[str, Slot]:
        """Slots of the checkpoint's linears ``keys``, whose rows lie one after another in this weight.

        ``shape``: the checkpoint's shape of a weight that is no matrix there.
        """
        slots = {}
        for key, weight, bias in zip(
            keys, self._rows(len(keys), shape), self.bias.detach().chunk(len(keys)), strict=True
        ):
            slots |= {f"{key}.weight": weight, f"{key}.bias": Slot(bias)}
        return slots

    def _rows(self, parts: int, shape: tuple[int, ...] | None) -> list[Slot]:
        """Slots of so many equal parts of the weight."""
        if self.weight is None:
            assert self.int8_weight is not None and self.int8_scale is not None
            rows = zip(self.int8_weight.chunk(parts), self.int8_scale.chunk(parts), strict=True)
            return [Int8Slot(values, scale, self.bias.dtype) for values, scale in rows]
        return [Slot(rows, shape) for rows in self.weight.detach().chunk(parts)]

    def _plain_weight(self) -> Tensor:
        """In the model's dtype."""
        if self.weight is None:
            # One for each product: the allocator gives them all the same memory, in a graph's pool too.
            return dequantize_weight(self.int8_weight, self.int8_scale, self.bias.dtype)
        return self.weight
