"""Real-time LongLive: prompt in, frames out."""

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import OptimizationConfig
    from .engine.engine import LongLiveEngine
    from .engine.request import BlockRequest

_HERE = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_HERE, "kernels")):  # a checkout: kernels/ lies beside this package, not in it
    __path__.append(os.path.dirname(_HERE))

__version__ = "0.1.0"
__all__ = ["BlockRequest", "LongLiveEngine", "OptimizationConfig"]
_ROOMS = {"BlockRequest": "engine.request", "LongLiveEngine": "engine.engine", "OptimizationConfig": "config"}


def __getattr__(name: str):
    # Imported on first use: hosts that look through their plugins import this package without wanting torch.
    if name in _ROOMS:
        return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
