"""The build backend: scikit-build-core's, which compiles csrc/ where that is of use, and wants torch only there.

``LONGLIVE_CUDA`` decides, as an environment variable or as the config setting ``cmake.define.LONGLIVE_CUDA``:

- ON: compiled, or an error.
- OFF: not compiled.
- AUTO: compiled on Linux where there is an nvcc.
- not given: compiled on Linux where there are an nvcc and a Hopper GPU.

What compiles nothing is a wheel for every system (py3-none-any), and needs neither torch nor CMake nor a compiler.
``python csrc/build_backend.py`` prints ON or OFF, as the environment decides.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from scikit_build_core import build
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist
from scikit_build_core.settings.skbuild_read_settings import SettingsReader

__all__ = ["build_sdist", "get_requires_for_build_sdist"]  # and the hooks below

BUILT_WITH = ["pybind11>=2.13", "torch>=2.10"]  # torch's own headers of 2.9 are too old
Settings = dict[str, str | list[str]]


def compiler(wanted: str, named: str | None = None) -> str | None:
    """The nvcc that compiles csrc/; None: it is not compiled. named: an nvcc to take where one is to be taken."""
    if wanted not in ("ON", "OFF", "AUTO", ""):
        raise SystemExit(f"LONGLIVE_CUDA must be ON, OFF or AUTO, got {wanted}")
    nvcc = None if wanted == "OFF" or sys.platform != "linux" else named or find_nvcc()
    if wanted == "ON" and nvcc is None:
        lacks = "there is no nvcc: set CUDACXX, or put nvcc on PATH" if sys.platform == "linux" else "this is not Linux"
        raise SystemExit(f"LONGLIVE_CUDA=ON, but {lacks}")
    return None if wanted == "" and nvcc and not has_hopper() else nvcc


def find_nvcc() -> str | None:
    folders = (os.path.join(os.environ.get("CUDA_HOME", ""), "bin"), "/usr/local/cuda/bin")
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(folders))


def has_hopper() -> bool:
    """Whether a GPU of compute capability 9.0 is here, by nvidia-smi, which comes with the driver."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and "9.0" in done.stdout.split()


def decided(settings: Settings | None, state: str) -> tuple[Settings, list[str]]:
    """The settings with what was decided, and what must be there to build so."""
    settings = dict(settings or {})
    define = SettingsReader.from_file("pyproject.toml", settings, state=state).settings.cmake.define
    nvcc = compiler(str(define.get("LONGLIVE_CUDA", "")), define.get("CMAKE_CUDA_COMPILER"))
    if nvcc is None:
        return settings | {"wheel.cmake": "false"}, []
    return settings | {"cmake.define.CMAKE_CUDA_COMPILER": str(nvcc)}, BUILT_WITH


def get_requires_for_build_wheel(config_settings: Settings | None = None) -> list[str]:
    settings, needed = decided(config_settings, "wheel")
    return build.get_requires_for_build_wheel(settings) + needed


def get_requires_for_build_editable(config_settings: Settings | None = None) -> list[str]:
    settings, needed = decided(config_settings, "editable")
    return build.get_requires_for_build_editable(settings) + needed


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Settings | None = None) -> str:
    return build.prepare_metadata_for_build_wheel(metadata_directory, decided(config_settings, "metadata_wheel")[0])


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: Settings | None = None) -> str:
    settings, _ = decided(config_settings, "metadata_editable")
    return build.prepare_metadata_for_build_editable(metadata_directory, settings)


def build_wheel(directory: str, config_settings: Settings | None = None, metadata_directory: str | None = None) -> str:
    return build.build_wheel(directory, decided(config_settings, "wheel")[0], metadata_directory)


def build_editable(
    directory: str, config_settings: Settings | None = None, metadata_directory: str | None = None
) -> str:
    return build.build_editable(directory, decided(config_settings, "editable")[0], metadata_directory)


if __name__ == "__main__":
    print("ON" if compiler(os.environ.get("LONGLIVE_CUDA", "")) else "OFF")
