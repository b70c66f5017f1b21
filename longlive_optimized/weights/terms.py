"""What adapters add to a weight, kept in the small form in which trainers write it and expanded where it is added.

Every term counts from the weight as it was before any of them, so that several add up in any order.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

# Below this a row of 2^24 elements still has a norm in float32, whose square is what overflows first.
_NORMABLE = 1e15


class Term(Protocol):
    """One change of one weight, ``scale`` times as strong as it was trained."""

    @property
    def scale(self) -> float: ...

    def add(self, weight: Tensor, base: Tensor) -> Tensor:
        """``weight`` changed as this term changes ``base``, both float32 of one shape; neither is written to."""
        ...

    def bound(self) -> float:
        """No element of the change is larger; NaN or infinity where a tensor of the term has one."""
        ...

    def scaled(self, by: float) -> Term:
        """This term ``by`` times as strong; it shares the tensors, and what ``bound`` has read of them."""
        ...


class _Scaled:
    def scaled(self, by: float):
        other = copy.copy(self)
        object.__setattr__(other, "scale", by * self.scale)  # pyright: ignore[reportAttributeAccessIssue]
        return other


Adapter = Mapping[str, Sequence[Term]]  # by the checkpoint's key of the weight


@dataclass(frozen=True, eq=False)
class LowRank(_Scaled):
    """``scale B A``: A [rank, columns], B [rows, rank]. A weight of more dimensions is taken as [rows, the rest]."""

    a: Tensor
    b: Tensor
    scale: float = 1.0

    def add(self, weight: Tensor, base: Tensor) -> Tensor:
        rows = weight.flatten(1)
        return torch.addmm(rows, _like(self.b, weight), _like(self.a, weight), alpha=self.scale).view_as(weight)

    def bound(self) -> float:
        return abs(self.scale) * self._largest

    @functools.cached_property
    def _largest(self) -> float:
        return len(self.a) * _largest(self.a) * _largest(self.b)


@dataclass(frozen=True, eq=False)
class Difference(_Scaled):
    """``scale D``, D of the weight's shape."""

    difference: Tensor
    scale: float = 1.0

    def add(self, weight: Tensor, base: Tensor) -> Tensor:
        return weight.add(_like(self.difference, weight), alpha=self.scale)

    def bound(self) -> float:
        return abs(self.scale) * self._largest

    @functools.cached_property
    def _largest(self) -> float:
        return _largest(self.difference)


Factor = Tensor | tuple[Tensor, Tensor]  # a matrix, or two whose product it is


@dataclass(frozen=True, eq=False)
class _Product(_Scaled):
    """``scale`` times a product of two matrices, no element of which is larger than the product of their largest."""

    one: Factor
    two: Factor
    scale: float = 1.0

    def add(self, weight: Tensor, base: Tensor) -> Tensor:
        change = self._product(_matrix(self.one, weight), _matrix(self.two, weight))
        return weight.add(change.view_as(weight), alpha=self.scale)

    def bound(self) -> float:
        return abs(self.scale) * self._largest

    @functools.cached_property
    def _largest(self) -> float:
        return _bound(self.one) * _bound(self.two)

    def _product(self, one: Tensor, two: Tensor) -> Tensor:
        raise NotImplementedError


class Hadamard(_Product):
    """LoHa (FedPara, arXiv 2108.06098): ``scale`` times the elementwise product of two matrices."""

    def _product(self, one: Tensor, two: Tensor) -> Tensor:
        return one * two


class Kronecker(_Product):
    """LoKr (LyCORIS, arXiv 2309.14859): ``scale`` times the Kronecker product of two matrices."""

    def _product(self, one: Tensor, two: Tensor) -> Tensor:
        return torch.kron(one, two)


@dataclass(frozen=True, eq=False)
class Dora:
    """DoRA (arXiv 2402.09353) as PEFT runs it: the base and ``change``, then each row scaled to a norm of its own.

    The strength is that of ``change``; the norms stay as trained, so the result is no interpolation. ``magnitude``
    broadcasts over the weight; norms are taken over the dimensions in which it has one element.
    """

    change: Term
    magnitude: Tensor

    @property
    def scale(self) -> float:
        return self.change.scale

    def add(self, weight: Tensor, base: Tensor) -> Tensor:
        adapted, magnitude = self.change.add(base, base), _like(self.magnitude, weight)
        over = [dim for dim, size in enumerate(magnitude.shape) if size == 1]
        norm = torch.linalg.vector_norm(adapted, dim=over, keepdim=True)
        # A row of zeros stays one.
        return weight + (adapted * (magnitude / norm.clamp_min(torch.finfo(norm.dtype).eps)) - base)

    def bound(self) -> float:
        change = self.change.bound()
        return self._largest + (change if not change > _NORMABLE else torch.inf)

    def scaled(self, by: float) -> Dora:
        other = copy.copy(self)
        object.__setattr__(other, "change", self.change.scaled(by))
        return other

    @functools.cached_property
    def _largest(self) -> float:
        return _largest(self.magnitude)


def merge(weight: Tensor, terms: Iterable[Term]) -> Tensor:
    """``weight`` plus what each of ``terms`` adds to it, in turn, in float32 on its device.

    Scale 0 does not touch a bit. Nothing that is given is written to.
    """
    base = merged = weight.float()
    for term in terms:
        if term.scale:
            merged = term.add(merged, base)
    return merged


def placed(term: Any, place: Callable[[Tensor], Tensor]) -> Any:
    """``term`` with each of its tensors where ``place`` puts it."""
    if isinstance(term, Tensor):
        return place(term)
    if isinstance(term, tuple):
        return tuple(placed(each, place) for each in term)
    if not dataclasses.is_dataclass(term):
        return term
    fields = {field.name: placed(getattr(term, field.name), place) for field in dataclasses.fields(term)}
    return type(term)(**fields)


def _like(tensor: Tensor, weight: Tensor) -> Tensor:
    return tensor.to(weight.device, non_blocking=True).to(weight.dtype)


def _matrix(factor: Factor, weight: Tensor) -> Tensor:
    return _like(factor, weight) if isinstance(factor, Tensor) else _like(factor[0], weight) @ _like(factor[1], weight)


def _bound(factor: Factor) -> float:
    if isinstance(factor, Tensor):
        return _largest(factor)
    return len(factor[1]) * _largest(factor[0]) * _largest(factor[1])


def _largest(tensor: Tensor) -> float:
    return tensor.float().abs().max().item()
