"""Results of operators, one tensor or several."""

import torch
from torch import Tensor


def same(got: Tensor | tuple[Tensor, ...], wanted: Tensor | tuple[Tensor, ...]) -> bool:
    """Whether they are equal, bit for bit."""
    if isinstance(got, Tensor):
        return torch.equal(got, wanted)
    return len(got) == len(wanted) and all(map(torch.equal, got, wanted))
