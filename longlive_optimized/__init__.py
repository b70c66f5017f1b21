"""Real-time LongLive: prompt in, frames out."""

import importlib

__version__ = "0.1.0"
_PUBLIC = {"LongLiveEngine": "engine.engine", "BlockRequest": "engine.request", "OptimizationConfig": "config"}
__all__ = [*_PUBLIC]


def __getattr__(name: str):
    # Imported on first use: hosts that look through their plugins import this package without wanting torch.
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
