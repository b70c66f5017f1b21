"""How much memory torch's operators hold at a time, as shapes on the meta device tell it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def _convolved(x: Tensor, weight: Tensor, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """The result of a plain convolution of x [n, C, ...], channels last as the VAEs' are."""
    kernel = weight.shape[2:]
    strides, pads = ((n,) * len(kernel) if isinstance(n, int) else n for n in (stride, padding))
    size = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(x.shape[2:], kernel, strides, pads, strict=True)]
    return x.new_empty(len(x), *size, len(weight)).movedim(-1, 1)


# What is one kernel on a GPU, and allocates its result alone. On the meta device torch takes norms and attention apart,
# and convolutions do not give frames as they came.
_KERNELS: dict[Callable, Callable[..., Tensor]] = {
    F.conv2d: _convolved,
    F.conv3d: _convolved,
    F.rms_norm: lambda x, *args, **kwargs: torch.empty_like(x),
    F.scaled_dot_product_attention: lambda q, *args, **kwargs: torch.empty_like(q),
}


class AsKernels(TorchFunctionMode):
    """On the meta device, what a GPU does in one kernel allocates its result alone."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        call = _KERNELS[func] if func in _KERNELS else func
        return call(*args, **(kwargs or {}))


class _Live(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._living: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {_storage(t)._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (key := _storage(tensor)._cdata) not in given | self._living:
                self._living.add(key)
                self.now += tensor.untyped_storage().nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(_storage(tensor), self._gone, key, _storage(tensor).nbytes())
        return made

    def _gone(self, key: int, nbytes: int) -> None:
        self._living.discard(key)
        self.now -= nbytes


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def passing_bytes(work: Callable[[], object]) -> int:
    """The most bytes of new tensors that ``work`` holds at a time, less those that are left when it has returned."""
    with AsKernels(), _Live() as live:
        result = work()
        del result
    return live.most - live.now


def storage_bytes(owners: Iterable[object], device: torch.device, seen: set[int] | None = None) -> int:
    """Bytes on ``device`` of all tensors that can be reached from ``owners`` through modules, containers and objects of
    this package, each storage once; those in ``seen``, to which what is found is added, do not count."""
    seen = set() if seen is None else seen
    return sum(_held(owner, device, seen) for owner in owners)


def _held(owner: object, device: torch.device, seen: set[int]) -> int:
    if isinstance(owner, Tensor):
        storage = _storage(owner)
        if owner.device != device or storage._cdata in seen:
            return 0
        seen.add(storage._cdata)
        return storage.nbytes()
    if owner is None or id(owner) in seen or isinstance(owner, str | bytes | type):
        return 0
    seen.add(id(owner))
    return sum(_held(each, device, seen) for each in _inside(owner))


def _inside(owner: object) -> Iterable[Any]:
    if isinstance(owner, nn.Module):
        return [*owner.parameters(), *owner.buffers()]
    if isinstance(owner, Mapping):
        return [*owner.values()]
    if isinstance(owner, list | tuple | set | frozenset):
        return owner
    ours = type(owner).__module__.startswith(__name__.partition(".")[0])
    return [*vars(owner).values()] if ours and hasattr(owner, "__dict__") else ()
