"""Runs before any test module is imported, in each of pytest-xdist's workers too."""

import gc
import os
import signal
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

pytest_plugins = ["support.hub_fixture"]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker has one core; read when torch is imported
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell starts pytest in the background
ROOT = Path(__file__).parents[1]
# "python -m pytest" puts the checkout first on the path, where it would hide an installed package and its library.
sys.path.sort(key=lambda path: Path(path).resolve() == ROOT)

try:
    distribution("longlive-optimized")
except PackageNotFoundError:
    if not any(ROOT.glob("longlive_optimized/_C.*")):  # nor built in place
        pytest.exit("longlive-optimized is not installed: ./setup_env.sh, or pip install --no-build-isolation -e .")

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels then run on CPU tensors; read at their import

import longlive_optimized  # noqa: E402
from longlive_optimized.kernels import native  # noqa: E402


def pytest_report_header() -> str:
    """What is tested: without the CUDA library the suite passes on the other backends alone."""
    return f"package: {Path(longlive_optimized.__file__).parent}, CUDA library: {'yes' if native.load() else 'no'}"


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: the collector, which some tests call often, need not look at them again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
