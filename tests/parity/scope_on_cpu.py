"""A checkout of scope, made importable on a machine without a GPU; of scope itself nothing is here.

Replaced, all of it libraries that such a machine lacks: flash-attn's one function by torch's attention (same layout,
same scale, no mask), and torchvision, which only image and video files need, by empty modules.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import types
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def make_importable(checkout: str | os.PathLike) -> None:
    """Put scope's sources on the path. Raises FileNotFoundError where there are none."""
    sources = Path(checkout).expanduser().absolute() / "src"
    if not (sources / "scope" / "core").is_dir():
        raise FileNotFoundError(f"no checkout of scope: {sources / 'scope' / 'core'} is not there")
    sys.path.insert(0, str(sources))
    sys.dont_write_bytecode = True  # the checkout stays as it was
    os.environ["HF_HUB_OFFLINE"] = "1"  # scope asks the hub for attention kernels when it is imported
    if importlib.util.find_spec("flash_attn") is None:
        _stand_in("flash_attn").flash_attn_func = _attention
    if importlib.util.find_spec("torchvision") is None:
        root, transforms = _stand_in("torchvision"), _stand_in("torchvision.transforms")
        root.transforms = transforms
        transforms.v2, transforms.functional = (_stand_in(f"torchvision.transforms.{n}") for n in ("v2", "functional"))


class StayHere(TorchFunctionMode):
    """Within it, casts to bfloat16 and moves to "cuda" are left out: scope's VAE does both before it decodes."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to and args[1:] in ((torch.bfloat16,), ("cuda",)):
            return args[0]
        return func(*args, **(kwargs or {}))


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v of [B, L, heads, head_dim]."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def _stand_in(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)  # libraries ask whether it is there
    module.__path__ = []
    sys.modules[name] = module
    return module
