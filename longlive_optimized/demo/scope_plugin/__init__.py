"""The plugin that scope finds through the entry point group ``scope``: pipeline ``longlive-optimized``.

Loaded at every start of scope, so nothing heavy is imported before scope asks for the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable

import pluggy

hookimpl = pluggy.HookimplMarker("scope")


@hookimpl
def register_pipelines(register: Callable[[type], None]) -> None:
    """Hand scope the pipeline class; may be called again, with the same class."""
    from .pipeline import LongLiveOptimizedPipeline

    register(LongLiveOptimizedPipeline)
