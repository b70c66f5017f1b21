"""Real-time LongLive: prompt in, frames out."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import OptimizationConfig
    from .engine.engine import LongLiveEngine
    from .engine.request import BlockRequest, Control
    from .live import generate, stream
    from .story import Story
    from .video import Video

__version__ = "0.1.0"
__all__ = [
    "BlockRequest",
    "Control",
    "LongLiveEngine",
    "OptimizationConfig",
    "Story",
    "Video",
    "generate",
    "stream",
]
_MODULES = {
    "BlockRequest": "engine.request",
    "Control": "engine.request",
    "LongLiveEngine": "engine.engine",
    "OptimizationConfig": "config",
    "Story": "story",
    "Video": "video",
    "generate": "live",
    "stream": "live",
}


def __getattr__(name: str):
    # Imported on first use: hosts that look through their plugins import this package without wanting torch.
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
