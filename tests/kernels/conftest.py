"""One test for all backends: the registry's table becomes the parameters ``backend`` and ``device``.

A test module, or a class in it, names its operator ``OP``. On the CPU run the reference and, interpreted, Triton; on a
GPU every backend. What needs a GPU carries the marker ``gpu`` and is skipped where there is none.
"""

import os

import pytest
import torch

from longlive_optimized.kernels import native
from support.int8_data import check_int8

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Precision: the operators compute in float32 and round once. A rounding to bfloat16 is off by at most 2^-8 of the
# value; Triton's interpreter cuts off instead, which is up to twice that. The absolute part is for sums that cancel.
RELATIVE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 2**-8 * (2 if INTERPRETED else 1.01)}
ABSOLUTE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5}


def operator_of(test):
    """``test`` is a metafunc or a request: the operator of its class, or of its module."""
    return getattr(test.cls, "OP", None) or test.module.OP


def pytest_generate_tests(metafunc):
    """Cases for the devices that are here; a test that is marked ``gpu`` keeps its cases everywhere."""
    only_gpu = metafunc.definition.get_closest_marker("gpu") is not None
    devices = [] if only_gpu else ["cpu"]
    devices += ["cuda"] if only_gpu or torch.cuda.is_available() else []
    marks = {"cpu": (), "cuda": pytest.mark.gpu}
    if "backend" in metafunc.fixturenames:
        every = list(operator_of(metafunc).impls)
        on_cpu = [name for name in every if name == "reference" or (name == "triton" and INTERPRETED)]
        cases = [(name, d) for d in devices for name in (on_cpu if d == "cpu" else every)]
        params = [pytest.param(name, d, id=f"{name}-{d}", marks=marks[d]) for name, d in cases]
        metafunc.parametrize(("backend", "device"), params)
    elif "device" in metafunc.fixturenames:
        metafunc.parametrize("device", [pytest.param(d, marks=marks[d]) for d in devices])


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if "callspec" in vars(item) and item.callspec.params.get("backend") == "cuda" and not native.load():
        pytest.skip("built without nvcc")


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    """float32 means float32, in the references' convolutions too, where torch's default is less."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def run(request, backend):
    """The operator on one backend; a call that a library leaves to another is skipped there."""
    implementation, takes = operator_of(request).impls[backend]

    def call(*args):
        if backend in ("cuda", "library") and not takes(*args):
            pytest.skip("the library leaves this to another backend")
        return implementation(*args)

    return call


@pytest.fixture
def kernel(request, device):
    """The operator's CUDA kernel alone."""
    implementation, takes = operator_of(request).impls["cuda"]

    def call(*args):
        if not takes(*args):
            pytest.skip("the CUDA kernel is for Hopper")
        return implementation(*args)

    return call


@pytest.fixture
def close():
    """Compare with a float64 truth, to one rounding of the result's dtype."""

    def check(got: torch.Tensor, truth: torch.Tensor) -> None:
        torch.testing.assert_close(got.double(), truth, rtol=RELATIVE[got.dtype], atol=ABSOLUTE[got.dtype])

    return check


@pytest.fixture
def close_int8():
    """Compare an int8 result and its scales with a float64 truth: see ``support.int8_data.check_int8``."""
    return check_int8
