"""Pictures as they are handed over: checked, and as tensors without a copy where torch can share them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Picture = Tensor | np.ndarray
Pictures = Picture | Sequence[Tensor] | Sequence[np.ndarray]

_COLOURS, _MASK = "[H, W, 3]", "[H, W], [H, W, 1] or [H, W, 3]"


def read_frames(name: str, given: Any) -> Tensor | tuple[Tensor, ...]:
    """RGB frames: one tensor [T, H, W, 3], or some of [H, W, 3]. Raises TypeError, ValueError naming the argument."""
    return _read(name, given, "[T, H, W, 3]", _COLOURS, (3,))


def read_masks(name: str, given: Any) -> Tensor | tuple[Tensor, ...]:
    """Masks: one tensor [T, H, W], [T, H, W, 1] or [T, H, W, 3], or some without T. Raises as ``read_frames``."""
    return _read(name, given, "[T, H, W], [T, H, W, 1] or [T, H, W, 3]", _MASK, (None, 1, 3))


def read_picture(name: str, given: Any) -> Tensor:
    """One RGB picture [H, W, 3]. Raises as ``read_frames``."""
    return _one(given, f"{name} must be a uint8 picture {_COLOURS}, as a tensor or NumPy array", (3,), "")


def _read(
    name: str, given: Any, whole: str, single: str, channels: Sequence[int | None]
) -> Tensor | tuple[Tensor, ...]:
    wanted = f"{name} must be uint8 frames {whole}, or a list of {single}, as tensors or NumPy arrays"
    if isinstance(given, Tensor | np.ndarray):
        frames: Any = _tensor(given, wanted)
        if not _fits(frames.dtype, frames.shape[1:], channels):
            raise ValueError(f"{wanted}; got {frames.dtype} {list(frames.shape)}")
    elif isinstance(given, list | tuple):
        frames = tuple(_one(frame, wanted, channels, " for a frame") for frame in given)
    else:
        raise TypeError(f"{wanted}; got {type(given).__name__}")
    if not len(frames):
        raise ValueError(f"{name} must hold at least one frame, got none")
    return frames


def _one(frame: Any, wanted: str, channels: Sequence[int | None], of: str) -> Tensor:
    if not isinstance(frame, Tensor | np.ndarray):
        raise TypeError(f"{wanted}; got {type(frame).__name__}{of}")
    tensor = _tensor(frame, wanted)
    if not _fits(tensor.dtype, tensor.shape, channels):
        raise ValueError(f"{wanted}; got {tensor.dtype} {list(tensor.shape)}{of}")
    return tensor


def _fits(dtype: torch.dtype, shape: Sequence[int], channels: Sequence[int | None]) -> bool:
    """Whether ``shape`` is that of a picture: None among the channels is one without that dimension."""
    known = (len(shape) == 2 and None in channels) or (len(shape) == 3 and shape[2] in channels)
    return dtype == torch.uint8 and known and 0 not in shape


def _tensor(frame: Picture, wanted: str) -> Tensor:
    """An array as a tensor; copied where torch cannot share it: read-only, or mirrored as with ``[..., ::-1]``."""
    if isinstance(frame, Tensor):
        return frame
    try:
        return torch.from_numpy(np.require(frame, requirements=("C", "W")))
    except TypeError:
        raise ValueError(f"{wanted}; got an array of {frame.dtype}") from None
