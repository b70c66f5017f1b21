"""csrc/ is compiled where that is of use, and torch is wanted for a build only there."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("scikit_build_core")
ROOT = Path(__file__).parents[2]
HOOKS = "get_requires_for_build_wheel", "get_requires_for_build_editable"


def load():
    spec = importlib.util.spec_from_file_location("build_backend", ROOT / "csrc/build_backend.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def backend(monkeypatch):
    """The module, on a Linux without nvcc and GPU, whose environment says nothing."""
    module = load()
    monkeypatch.chdir(ROOT)
    for name in ("LONGLIVE_CUDA", "SKBUILD_CMAKE_DEFINE", "SKBUILD_CMAKE_ARGS", "CUDACXX", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    return machine(module, monkeypatch)


def machine(module, monkeypatch, platform="linux", nvcc=None, hopper=False):
    monkeypatch.setattr(module, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(module, "find_nvcc", lambda: nvcc)
    monkeypatch.setattr(module, "has_hopper", lambda: hopper)
    return module


def executable(path: Path, script: str = "") -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


# What there is, and for which LONGLIVE_CUDA it is compiled; "error" where that cannot be.
DECISIONS = [
    ("linux", "nvcc", True, {"": True, "AUTO": True, "ON": True, "OFF": False}),
    ("linux", "nvcc", False, {"": False, "AUTO": True, "ON": True, "OFF": False}),
    ("linux", None, True, {"": False, "AUTO": False, "ON": "no nvcc", "OFF": False}),
    ("linux", None, False, {"": False, "AUTO": False, "ON": "no nvcc", "OFF": False}),
    ("win32", "nvcc", True, {"": False, "AUTO": False, "ON": "not Linux", "OFF": False}),
    ("darwin", None, False, {"": False, "AUTO": False, "ON": "not Linux", "OFF": False}),
]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(("platform", "nvcc", "hopper", "answers"), DECISIONS)
def test_torch_is_wanted_where_something_is_compiled(backend, monkeypatch, platform, nvcc, hopper, answers, hook):
    machine(backend, monkeypatch, platform, nvcc, hopper)
    for wanted, answer in answers.items():
        settings = {"cmake.define.LONGLIVE_CUDA": wanted} if wanted else None
        if isinstance(answer, str):
            with pytest.raises(SystemExit, match=f"LONGLIVE_CUDA=ON, but .*{answer}"):
                getattr(backend, hook)(settings)
            continue
        needed = getattr(backend, hook)(settings)
        assert any(name.startswith("torch") for name in needed) is answer, (wanted, needed)
        assert any(name.startswith("pybind11") for name in needed) is answer
        assert answer or needed == [], "nothing is compiled, so neither CMake nor ninja is wanted"


def test_who_says_so(backend, monkeypatch):
    machine(backend, monkeypatch, nvcc="nvcc")
    settings = {"cmake.define.LONGLIVE_CUDA": "OFF"}
    assert backend.decided(None, "wheel") == ({"wheel.cmake": "false"}, [])
    monkeypatch.setenv("LONGLIVE_CUDA", "ON")
    compiled = {"cmake.define.CMAKE_CUDA_COMPILER": "nvcc"}
    assert backend.decided(None, "wheel") == (compiled, backend.BUILT_WITH)
    assert backend.decided(settings, "wheel") == (settings | {"wheel.cmake": "false"}, [])
    monkeypatch.setenv("SKBUILD_CMAKE_DEFINE", "LONGLIVE_CUDA=OFF")
    assert backend.decided(None, "editable") == ({"wheel.cmake": "false"}, [])


def test_a_named_compiler_goes_first(backend, monkeypatch):
    settings = {"cmake.define.CMAKE_CUDA_COMPILER": "/other/nvcc", "cmake.define.LONGLIVE_CUDA": "ON"}
    assert backend.decided(settings, "wheel") == (settings, backend.BUILT_WITH)
    settings["cmake.define.LONGLIVE_CUDA"] = "OFF"
    assert not backend.decided(settings, "wheel")[1]


@pytest.mark.parametrize("wanted", ["on", "1", "YES"])
def test_other_words_are_refused(backend, wanted):
    with pytest.raises(SystemExit, match=f"LONGLIVE_CUDA must be ON, OFF or AUTO, got {wanted}"):
        backend.get_requires_for_build_wheel({"cmake.define.LONGLIVE_CUDA": wanted})


def test_where_nvcc_is_looked_for(monkeypatch, tmp_path):
    module = load()
    home, path = executable(tmp_path / "bin/nvcc"), executable(tmp_path / "path/nvcc")
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert module.find_nvcc() == home
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert module.find_nvcc() == path
    monkeypatch.setenv("CUDACXX", "/named/nvcc")
    assert module.find_nvcc() == "/named/nvcc"


@pytest.mark.parametrize(
    ("script", "there"),
    [
        ("echo 9.0", True),
        ("echo 8.9; echo 9.0", True),
        ("echo 8.9", False),
        ("echo 12.0", False),
        ("echo 9.0; exit 9", False),
        ("", False),
        (None, False),
    ],
)
def test_a_hopper_gpu_is_found_by_nvidia_smi(monkeypatch, tmp_path, script, there):
    module = load()
    if script is not None:
        executable(tmp_path / "nvidia-smi", script)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module.has_hopper() is there


def test_as_a_program_it_says_what_a_build_would_do(tmp_path):
    executable(tmp_path / "nvidia-smi", "echo 8.9")
    nvcc = executable(tmp_path / "nvcc")

    def says(**env: str) -> str:
        env = {**os.environ, "PATH": str(tmp_path), "CUDACXX": nvcc, "LONGLIVE_CUDA": "", **env}
        command = [sys.executable, ROOT / "csrc/build_backend.py"]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        return (done.stdout + done.stderr).strip()

    answers = {wanted: says(LONGLIVE_CUDA=wanted) for wanted in ("", "OFF", "AUTO", "ON", "X")}
    assert answers == {
        "": "OFF",
        "OFF": "OFF",
        "AUTO": "ON",
        "ON": "ON",
        "X": "LONGLIVE_CUDA must be ON, OFF or AUTO, got X",
    }
    executable(tmp_path / "nvidia-smi", "echo 9.0")
    assert says() == "ON"
