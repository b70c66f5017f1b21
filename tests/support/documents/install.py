"""What README and docs/install.md say of cards, builds and wheels."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from types import SimpleNamespace
from unittest import mock

from .claims import lists, says
from .markdown import Unit
from .place import ROOT, Place

README, INSTALL = "README.md", "docs/install.md"


def _backend():
    spec = importlib.util.spec_from_file_location("build_backend", ROOT / "csrc/build_backend.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compiles(wanted: str, platform: str = "linux", nvcc: str | None = "nvcc", hopper: bool = True) -> bool | str:
    backend = _backend()
    there = {
        "sys": SimpleNamespace(platform=platform),
        "find_nvcc": lambda: nvcc,
        "has_hopper": lambda: hopper,
    }
    with mock.patch.multiple(backend, **there):
        try:
            return backend.compiler(wanted) is not None
        except SystemExit as error:
            return str(error)


@says(README, "Linux, Python 3.11 to 3.13, and torch 2.9 or newer; for the real model an NVIDIA GPU, Ampere or newer")
def what_it_needs():
    from longlive_optimized.engine.devices import SUPPORTED
    from longlive_optimized.video_time import TRAINED_FPS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.14" and "torch>=2.9" in project["dependencies"]
    assert "NVIDIA" in SUPPORTED and TRAINED_FPS == 16


@says(README, "*Expected* is computed, not run: from what the same kernels reach on an H200 to what a data sheet")
@lists(README, "What it needs")
@lists(INSTALL, "Cards", "item")
def cards(place: Place):
    place.passes("tests/docs/test_requirements.py")


@lists(INSTALL, "From a checkout")
def who_gets_kernels(units: list[Unit]):
    said = {re.split(r"\s*\|\s*", unit.text)[1].strip("`"): unit.text for unit in units}
    assert said.keys() == {"not given", "AUTO", "ON", "OFF"}
    assert _compiles("") is True and not _compiles("", hopper=False) and not _compiles("", nvcc=None)
    assert _compiles("AUTO", hopper=False) is True and not _compiles("AUTO", nvcc=None)
    assert _compiles("ON", hopper=False) is True and "no nvcc" in _compiles("ON", nvcc=None)
    assert not _compiles("OFF")
    assert not any(_compiles(wanted, platform="win32") for wanted in ("", "AUTO", "OFF"))
    assert "not Linux" in _compiles("ON", platform="win32")


@says(README, "They are compiled where there is such a GPU, for `test`, or with `LONGLIVE_CUDA=ON`.")
@says("docs/CONTRIBUTING.md", "CUDA kernels too where there are an nvcc and a Hopper GPU")
def what_the_script_adds():
    setup = (ROOT / "setup_env.sh").read_text()
    assert "== lint || ${1:-} == test ]]; then export LONGLIVE_CUDA=${LONGLIVE_CUDA:-AUTO}; fi" in setup
    assert _compiles("") is True and not _compiles("", hopper=False)


@says(README, "which needs no compiler and, but for the kernels of Hopper, no torch to build with")
@says(INSTALL, "What compiles nothing is built by `scikit-build-core` alone, in seconds, on any system")
def what_a_build_needs():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert [re.split("[>=]", name)[0] for name in needed] == ["scikit-build-core"]


@says(INSTALL, "What compiles takes minutes, and needs nvcc (13.0 was used), a C++ compiler, pybind11, CMake, ninja")
def what_compiling_needs():
    assert _backend().BUILT_WITH == ["pybind11>=2.13", "torch>=2.10"]


@says(INSTALL, "The second is later to pip than the first")
def which_is_taken():
    from packaging.version import Version

    from longlive_optimized import __version__

    assert Version(f"{__version__}+hopper.cu130") > Version(__version__)
