#!/usr/bin/env bash
# From a fresh checkout to something that runs.
#   ./setup_env.sh        a virtual environment with the package built into it, its server, and what its tests need
#   ./setup_env.sh demo   the same, then a short video of the built-in model in out/, and what it shows of its prompts
#   ./setup_env.sh test   the same, then the test suite in two processes
#   ./setup_env.sh lint   the same, then formatters and the type check
# PYTHON  the interpreter to start from (python3); its own torch is used if it has one of at least 2.9
# TORCH   what to install otherwise (torch==2.13.0)
# VENV    where the environment goes (.venv)
# LONGLIVE_CUDA  whether to compile the kernels for Hopper: ON, OFF, or AUTO, where there is an nvcc; if it is not set,
#                test and lint take AUTO, the others ON where there are an nvcc and a Hopper GPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export PIP_DISABLE_PIP_VERSION_CHECK=1
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} # threads that wait sleep: spinning slows a busy machine down
PYTHON=${PYTHON:-python3} TORCH=${TORCH:-torch==2.13.0} VENV=${VENV:-.venv}
python=$VENV/bin/python

say() { printf '\n== %s (at %d s)\n' "$*" $SECONDS; }

torch_at_least() { # INTERPRETER MINOR: does it have torch 2.MINOR or later?
  "$1" -c "import sys, torch; sys.exit([*map(int, torch.__version__.split('.')[:2])] < [2, $2])" 2>/dev/null
}

make_venv() {
  if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; then
    echo "Python 3.11 to 3.13 is needed, but $PYTHON is $("$PYTHON" --version 2>&1): set PYTHON" >&2
    exit 1
  fi
  if torch_at_least "$PYTHON" 9; then
    say "using the torch of $PYTHON"
    "$PYTHON" -m venv --system-site-packages "$VENV"
    # If PYTHON is in a virtual environment itself, "system" means the one below it: name its packages too, first.
    "$PYTHON" -c 'import site; print(*site.getsitepackages(), sep="\n")' \
      >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/00-started-from.pth"
  else
    say "installing $TORCH"
    "$PYTHON" -m venv "$VENV"
    "$python" -m pip install --quiet "$TORCH" numpy
  fi
}

build() { # EXTRAS
  local how=(--no-build-isolation)
  if [[ $cuda == ON ]] && ! torch_at_least "$python" 10; then
    say "this torch is too old to build against (the result will load on it): a newer one is downloaded for the build"
    how=()
  fi
  PATH="$(realpath "$VENV")/bin:$PATH" "$python" -m pip install --quiet "${how[@]}" --editable ".$1"
}

case ${1:-} in
  "" | demo | lint | test) ;;
  *) echo "usage: $0 [demo|lint|test]" >&2 && exit 2 ;;
esac
say "$VENV: torch (several GB with CUDA), the package, its server and what its tests need; a few minutes"
torch_at_least "$python" 9 || make_venv
"$python" -m pip install --quiet "scikit-build-core>=0.11" "pybind11>=2.13" "cmake>=3.26" ninja
say "$("$python" -c 'import platform, torch
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
print(f"python {platform.python_version()}, torch {torch.__version__}, GPU: {gpu}", end="")')"
if [[ ${1:-} == lint || ${1:-} == test ]]; then export LONGLIVE_CUDA=${LONGLIVE_CUDA:-AUTO}; fi
cuda=$("$python" csrc/build_backend.py)
case $cuda in
  ON) say "building; the kernels for Hopper are compiled, which takes minutes" ;;
  OFF) say "building without the kernels for Hopper: there is no such GPU with an nvcc, or LONGLIVE_CUDA says so" ;;
esac
if [[ ${1:-} == lint ]]; then build "[lint]"; else build "[test]"; fi
say "$VENV takes $(du -sh "$VENV" | cut -f1)"

case ${1:-} in
  demo)
    first="a red circle and a blue square move left over a green field"
    then="4:a yellow triangle, a white cross and a red square drift up over a black night"
    "$VENV/bin/longlive-optimized" generate --model tiny --preset balanced --seconds 8 --seed 0 --enlarge 6 \
      --prompt "$first" --switch "$then" --out out/demo.mp4 --json out/demo.json --force
    "$python" -P -m longlive_optimized.tinyworld.watch out/demo.mp4 "$first" "$then"
    say "more: $VENV/bin/longlive-optimized serve, and $VENV/bin/pytest -q"
    ;;
  lint)
    say "formatters and types"
    from=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))') # has what was installed there before
    PATH="$(realpath "$VENV")/bin:$from:$PATH" "$python" -m pre_commit run --all-files --show-diff-on-failure
    ;;
  test)
    say "the suite"
    "$python" -P -m pytest -q -n 2 --dist worksteal --durations 10
    ;;
  *) say "ready: $VENV/bin/longlive-optimized --help" ;;
esac
