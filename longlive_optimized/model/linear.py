"""A linear layer and where a checkpoint's tensors go in it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.linear_gelu import linear_gelu
from .slot import Slot


class Linear(nn.Module):
    """A weight [d_out, d_in] and a bias, allocated and never initialised: checkpoints fill them."""

    def __init__(self, d_in: int, d_out: int, **where):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in, **where), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(d_out, **where), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_in] to [..., d_out]."""
        return F.linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of ``forward(x)``, tanh form, in one operator; x [N, d_in]."""
        return linear_gelu(x, self.weight, self.bias)

    def slots(self, *keys: str, shape: tuple[int, ...] | None = None) -> dict[str, Slot]:
        """Slots of the checkpoint's linears ``keys``, whose rows lie one after another in this weight.

        ``shape``: the checkpoint's shape of a weight that is no matrix there.
        """
        rows = (stored.detach().chunk(len(keys)) for stored in (self.weight, self.bias))
        slots = {}
        for key, weight, bias in zip(keys, *rows, strict=True):
            slots |= {f"{key}.weight": Slot(weight, shape), f"{key}.bias": Slot(bias)}
        return slots
