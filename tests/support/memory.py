"""How much memory torch's operators hold at a time, on any device."""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is active: bytes of the storages that operators have made and that still live, and the most there were.

    Storages that were there before do not count, nor do those of a file or of the meta device, nor what an operator
    frees before it returns.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    @property
    def now(self) -> int:
        """Bytes that live."""
        self._made = {key: (ref, nbytes) for key, (ref, nbytes) in self._made.items() if not ref.expired()}
        return sum(nbytes for _, nbytes in self._made.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, torch.Tensor) or tensor.is_meta or "set_" in str(func):
                continue
            if (storage := tensor.untyped_storage())._cdata not in given:
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, self.now)
        return made
