"""What a model's LoRAs were merged into, kept in memory, so that other scales need no file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .files import Reading
from .host_memory import pinned_empty
from .terms import Adapter, placed
from .user_lora import UserLora, check_sizes

_ALIGNED = 64  # bytes at which each tensor starts
_SPARE = 16 << 30  # bytes of a GPU that must stay free beside what is kept there


class Unmerged:
    """Copies of weights as they stand in the generator's file, and of what LongLive's LoRA and a user's add to them.

    tensors, own: by the checkpoint's keys; users: of each LoRA's file, at scale 1. The copies hold the bits of the
    files, in bfloat16 where float32 has no more, so what is merged from them is what is merged from the files.
    They lie on ``device`` where that is a GPU with 16 GiB to spare, otherwise in host memory, pinned for a GPU if the
    system allows it.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], own: Adapter, users: Mapping[Path, Adapter], device: torch.device
    ):
        self._files = Reading(users)
        place = _Place(_tensors_of(tensors, own, users), device)
        self.tensors = {key: place(tensor) for key, tensor in tensors.items()}
        self.own = _placed(own, place)
        self._users = {path: _placed(adapter, place) for path, adapter in users.items()}
        self.device, self.nbytes = place.device, place.nbytes
        self._files.check()

    def covers(self, loras: Iterable[UserLora]) -> bool:
        """Whether ``loras`` are all among what is kept, and their files are as they were."""
        return all(lora.path in self._users for lora in loras) and not self._files.changed

    def users(self, loras: Sequence[UserLora]) -> list[Adapter]:
        """What each of ``loras`` adds at its scale. Raises CheckpointError for one too large."""
        scaled = [_scaled(self._users[lora.path], lora.scale) for lora in loras]
        for lora, adapter in zip(loras, scaled, strict=True):
            check_sizes(lora, adapter)
        return scaled


class _Place:
    """Room for so many tensors, which are copied into it."""

    def __init__(self, tensors: Collection[Tensor], device: torch.device):
        self._kinds = {id(tensor): _narrowest(tensor) for tensor in tensors}
        self.nbytes = sum(_padded(tensor.numel() * self._kinds[id(tensor)].itemsize) for tensor in tensors)
        self._room, self._used = _room(self.nbytes, device), 0
        self.device = self._room.device

    def __call__(self, tensor: Tensor) -> Tensor:
        kind = self._kinds[id(tensor)]
        nbytes = tensor.numel() * kind.itemsize
        mine = self._room[self._used : self._used + nbytes].view(kind).view(tensor.shape)
        self._used += _padded(nbytes)
        return mine.copy_(tensor)


def _scaled(adapter: Adapter, by: float) -> Adapter:
    return {key: [term.scaled(by) for term in terms] for key, terms in adapter.items()}


def _room(nbytes: int, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return torch.empty(nbytes, dtype=torch.uint8)
    if torch.cuda.mem_get_info(device)[0] > nbytes + _SPARE:
        return torch.empty(nbytes, dtype=torch.uint8, device=device)
    try:
        return pinned_empty(nbytes, device)
    except OSError:  # slower to read from, and no less right
        return torch.empty(nbytes, dtype=torch.uint8)


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNED) * _ALIGNED


def _narrowest(tensor: Tensor) -> torch.dtype:
    """bfloat16 for a float32 tensor that was one."""
    fits = tensor.dtype == torch.float32 and torch.equal(tensor.bfloat16().float(), tensor)
    return torch.bfloat16 if fits else tensor.dtype


def _placed(adapter: Adapter, place: _Place) -> Adapter:
    return {key: [placed(term, place) for term in terms] for key, terms in adapter.items()}


def _tensors_of(tensors: Mapping[str, Tensor], own: Adapter, users: Mapping[Path, Adapter]) -> list[Tensor]:
    found = [*tensors.values()]

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    for adapter in (own, *users.values()):
        for term in (term for terms in adapter.values() for term in terms):
            placed(term, note)
    return found
