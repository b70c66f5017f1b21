"""Tensors that an operator must refuse, made of ones that it takes."""

from torch import Tensor


def other_device(t: Tensor) -> Tensor:
    """On another device than the other arguments."""
    return t.to("cpu" if t.is_cuda else "meta")


def other_order(t: Tensor) -> Tensor:
    """The same values, not contiguous: of two dimensions or more."""
    return t.transpose(0, -1).contiguous().transpose(0, -1)
