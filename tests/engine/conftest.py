import pytest

from longlive_optimized.config import OptimizationConfig
from longlive_optimized.engine.engine import LongLiveEngine


@pytest.fixture(scope="session")
def engine() -> LongLiveEngine:
    """The built-in model at 32 x 48 pixels on the CPU; tests open streams of their own."""
    return LongLiveEngine("tiny", OptimizationConfig(height=32, width=48), device="cpu")
