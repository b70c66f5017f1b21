"""Wheels that need no compiler, built and tried: ``python tests/build/wheels.py OUT [pure|hopper|try|scope]...``

- pure: Python and Triton for every system, ``longlive_optimized-VERSION-py3-none-any.whl``.
- hopper: with the library for Hopper, ``longlive_optimized-VERSION+hopper.cuXYZ-cpXY-cpXY-linux_x86_64.whl``: built by
  the nvcc of CUDA X.YZ (whose runtime is in it, so the driver must be one for that CUDA), for this interpreter's
  version, against this interpreter's torch, and for torch 2.9 or newer. pip takes it before the pure one.
- try: each wheel of OUT is installed into an environment of its own, with a path that has no compiler, not even while
  it is installed. There the package is imported, doctor looks at the operators, and the built-in model makes a short
  video. ``--python`` says for which Python wheels are tried that take any.
- scope: the same beside what scope pins (SCOPE), torch 2.9.1 among it.

The wheels stay in OUT, the environments go. Built is what git tracks, as it lies in the work tree.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHAT = ("pure", "hopper", "try", "scope")
# Of scope 0.2.4's pyproject.toml, what can be had as wheels from an index; of the others this package needs none.
SCOPE = """torch==2.9.1 torchvision==0.24.1 triton==3.5.1 peft==0.18.1 torchao==0.15.0 kernels>=0.10.4 diffusers>=0.31.0
transformers>=4.49.0 accelerate>=1.1.1 aiortc>=1.13.0 fastapi>=0.116.1 uvicorn>=0.35.0 pluggy>=1.5.0 click>=8.3.1
safetensors>=0.6.2 huggingface_hub>=0.25.0 ftfy>=6.3.1 einops>=0.8.1 omegaconf>=2.3.0"""
# What an environment's interpreter says of itself and of the package. sys.argv: whether the library is in it.
TRIED = """
import importlib.util, shutil, sys
import torch
found = [name for name in ("cc", "gcc", "g++", "c++", "clang", "nvcc", "cmake", "ninja") if shutil.which(name)]
assert not found, f"compilers on the path: {found}"
import longlive_optimized
from longlive_optimized.kernels import native
assert "site-packages" in longlive_optimized.__file__, longlive_optimized.__file__
assert native.load() == (sys.argv[1] == "True"), "the library is there and should not be, or the other way round"
assert not native.load() or hasattr(torch.ops.longlive_C, "ring_attention")
print("longlive-optimized", longlive_optimized.__version__, end=", ")
print("Python", sys.version.split()[0] + ", torch", torch.__version__)
"""
PLAY = ["generate", "--model", "tiny", "--seconds", "1", "--out", "short.mp4", "--prompt"]
PROMPT = "a red circle moves left over a green field"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("what", nargs="*", metavar="|".join(WHAT), help="all of it by default")
    parser.add_argument("--torch", default="torch", help="beside what wheels are tried (torch: the newest there is)")
    parser.add_argument("--python", default=sys.executable, help="interpreter for wheels of every Python")
    options = parser.parse_args()
    what = options.what or WHAT
    if unknown := {*what} - {*WHAT}:
        parser.error(f"{', '.join(unknown)}: must be of {', '.join(WHAT)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for kind in ("pure", "hopper"):
        if kind in what:
            build(options.out, kind)
    for beside in [options.torch.split()] * ("try" in what) + [SCOPE.split()] * ("scope" in what):
        for wheel in sorted(options.out.resolve().glob("longlive_optimized-*.whl"), reverse=True):
            try_(wheel, options.python, beside)


def build(out: Path, kind: str) -> None:
    """The wheel of this kind, made from a copy of the work tree in which nothing lies that git does not track."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "source"), Path(folder, "made")
        copy(source)
        if kind == "hopper":
            version = source / "longlive_optimized/__init__.py"
            local = re.sub(r'^(__version__ = "[^"+]+)"', rf'\1+hopper.{cuda()}"', version.read_text(), flags=re.M)
            version.write_text(local)
        how = ["--no-deps", "--no-build-isolation", "--wheel-dir", made, source]
        run([sys.executable, "-m", "pip", "wheel", "--quiet", *how], LONGLIVE_CUDA={"hopper": "ON"}.get(kind, "OFF"))
        [wheel] = made.glob("*.whl")
        assert ("py3-none-any" in wheel.name) == (kind == "pure"), wheel.name
        shutil.copy(wheel, out)
    megabytes = (out / wheel.name).stat().st_size / 1e6
    print(f"{wheel.name}: {megabytes:.1f} MB, built in {time.monotonic() - began:.0f} s", flush=True)


def copy(target: Path) -> None:
    """Every tracked file of the work tree; links stay links."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in listed.rstrip("\0").split("\0"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name, follow_symlinks=False)


def cuda() -> str:
    """The CUDA of the nvcc that a build takes, as wheels of torch write it: cu130."""
    sys.path.insert(0, str(ROOT / "csrc"))
    from build_backend import compiler

    said = run([compiler("ON"), "--version"]).stdout
    return "cu" + "".join(re.search(r"release (\d+)\.(\d+)", said).groups())


def try_(wheel: Path, python: str, beside: list[str]) -> None:
    """Install a wheel where there is no compiler, together with ``beside``, and use it."""
    began = time.monotonic()
    tag = re.search(r"-cp3(\d+)-", wheel.name)
    python = shutil.which(f"python3.{tag[1]}" if tag and f"-cp3{minor(python)}-" not in wheel.name else python)
    with tempfile.TemporaryDirectory() as folder:
        run([python, "-m", "venv", f"{folder}/env"])
        bare = {"PATH": f"{folder}/env/bin", "HOME": folder, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
        cleared = dict.fromkeys(("CC", "CXX", "CUDACXX", "CUDA_HOME", "CUDA_PATH"), "")
        inside = {"cwd": folder, **bare, **cleared}
        pip = [f"{folder}/env/bin/python", "-m", "pip"]
        run([*pip, "install", "--quiet", "--only-binary=:all:", str(wheel), *beside], **inside)
        installed = time.monotonic() - began
        run([*pip, "check"], **inside)
        said = run([pip[0], "-P", "-c", TRIED, str("+hopper" in wheel.name)], **inside).stdout
        doctor = run([f"{folder}/env/bin/longlive-optimized", "doctor"], **inside).stdout
        assert "rms_norm" in doctor, doctor
        run([f"{folder}/env/bin/longlive-optimized", *PLAY, PROMPT], **inside)
        run([pip[0], "-c", "import av; assert sum(1 for _ in av.open('short.mp4').decode(video=0)) == 16"], **inside)
    used = time.monotonic() - began - installed
    print(f"{wheel.name}: tried beside {' '.join(beside)}\n  {said.strip()}")
    print(f"  installed in {installed:.0f} s, used in {used:.0f} s", flush=True)


def minor(python: str) -> str:
    return run([python, "-c", "import sys; print(sys.version_info.minor)"]).stdout.strip()


def run(command: list, cwd: str | None = None, **env: str) -> subprocess.CompletedProcess:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done


if __name__ == "__main__":
    main()
