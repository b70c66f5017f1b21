"""What an install holds, and that it lives beside other packages. Built here without CUDA, in seconds."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(code: str, *paths: Path) -> subprocess.CompletedProcess:
    """Run code from another folder with ``paths`` first; -S keeps an editable install of this package out."""
    found = [p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "tests")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), *found])}
    return subprocess.run([sys.executable, "-S", "-c", code], cwd="/", env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("scikit_build_core")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, ROOT]
    for name in ("torch", "pybind11"):  # neither may be looked at, nor any program
        (out / f"{name}.py").write_text("raise ImportError('a build without CUDA needs nothing')")
    bare = {**os.environ, "PATH": "", "PYTHONPATH": str(out), "CC": "", "CXX": "", "LONGLIVE_CUDA": "OFF"}
    done = subprocess.run(command, capture_output=True, text=True, env=bare)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def test_wheel_holds_the_package_and_nothing_else(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.split("/")[0] for name in names}
    assert {r for r in roots if not r.endswith(".dist-info")} == {"longlive_optimized"}  # above all: no "kernels"
    expected = {f"longlive_optimized/{p.relative_to(ROOT)}" for p in ROOT.glob("kernels/**/*.py")}
    files = [path for path in ROOT.glob("longlive_optimized/**/*") if path.is_file() and path.suffix != ".pyc"]
    expected |= {str(path.relative_to(ROOT)) for path in files}
    assert expected <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("entry_points.txt") for name in names)


def test_imports_and_computes_from_another_folder(installed):
    code = """
import torch, longlive_optimized
from longlive_optimized.kernels import native
from longlive_optimized.kernels.modulate_norm import modulate_norm
import longlive_optimized.kernels.qk_norm_rope_store
assert not native.load()
modulate_norm(torch.randn(2, 8), torch.zeros(1, 8), torch.zeros(1, 8), 1e-6)
print(longlive_optimized.__file__)
"""
    done = python(code, installed)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed)


def test_no_top_level_kernels(installed):
    # Hugging Face has a package of that name, and hosts that need it must find theirs.
    code = "import importlib.util, longlive_optimized.kernels; print(importlib.util.find_spec('kernels'))"
    done = python(code, installed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None" or str(installed) not in done.stdout


@pytest.mark.parametrize("where", ["installed", "checkout"])
def test_transformers_imports_beside_us(where, request):
    """transformers probes for a package ``kernels``; in a checkout it finds our folder, which must not mind."""
    path = ROOT if where == "checkout" else request.getfixturevalue("installed")
    done = python("import longlive_optimized.kernels; from transformers import UMT5EncoderModel", path)
    assert done.returncode == 0, done.stderr


def test_every_operator_of_the_library_has_its_places():
    schemas = re.findall(r'm\.def\(\s*"(\w+)\(', (ROOT / "csrc/register.cpp").read_text())
    sources = (ROOT / "CMakeLists.txt").read_text()
    assert schemas
    for name in schemas:
        [source] = (f for f in ROOT.glob("csrc/*/*.cu") if f'm.impl("{name}"' in f.read_text())
        assert str(source.relative_to(ROOT)) in sources
        assert any(f"def {name}(" in f.read_text() for f in ROOT.glob("kernels/*.py")), name
        for folder in ("kernels/bench", "tests/kernels"):  # two operators of one kernel may share a file
            assert any(name in f.read_text() for f in (ROOT / folder).glob("*.py")), f"{name} in {folder}"
