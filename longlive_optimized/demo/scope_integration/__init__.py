"""The pipeline that people stream with: frames one by one, prompts and presets at any time, and figures to show.

Importable without CUDA, scope, OpenCV or weights.
"""

from ...engine.latency import LatencyStats
from .config import ScopeOptimizationConfig
from .overlay import LatencyOverlay, OverlayConfig, create_latency_overlay
from .pipeline import OptimizedScopePipeline, create_optimized_scope_pipeline

__all__ = [
    "LatencyOverlay",
    "LatencyStats",
    "OptimizedScopePipeline",
    "OverlayConfig",
    "ScopeOptimizationConfig",
    "create_latency_overlay",
    "create_optimized_scope_pipeline",
]
