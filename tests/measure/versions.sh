#!/usr/bin/env bash
# The suite under other versions; prints rows for the tables in docs/CONTRIBUTING.md.
#   tests/measure/versions.sh ["PYTHON TORCH PYAV"]...   an environment each, and what touches torch or PyAV (COMBINATIONS)
#   tests/measure/versions.sh video ["PYTHON PYAV"]...   files of video alone, without torch, in seconds (VIDEO)
# Everything else is the newest that there is. With CUDA an environment takes 5 GB; with uv on the path they share them.
# Pythons are those on the path, and pyenv's.
# WORK   where environments and logs go (a new folder); an environment is removed when its tests have passed
# TESTS  what runs for a combination with torch, "tests" for all
# Exits with 1 if a test failed, with 2 if something could not be installed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
COMBINATIONS=(
  "3.11 2.9.1 18.1.0" "3.11 2.13.0 18.1.0" "3.11 2.14.1 18.1.0" "3.11 2.15.0 18.1.0" # PyAV 19 needs Python 3.12
  "3.12 2.9.1 18.1.0" "3.12 2.13.0 19.0.2" "3.12 2.14.1 18.1.0" "3.12 2.15.0 19.0.2"
  "3.13 2.9.1 19.0.2" "3.13 2.13.0 18.1.0" "3.13 2.14.1 19.0.2" "3.13 2.15.0 19.0.2"
)
VIDEO=("3.11 14.2.0" "3.13 19.0.2")
VIDEO_TESTS=(tests/cli/test_video.py tests/demo/test_server_recording.py)
WORK=${WORK:-$(mktemp -d)}
TESTS=${TESTS:-tests/build/test_package.py::test_imports_and_computes_from_another_folder tests/build/test_versions.py
  tests/kernels/test_registry.py tests/kernels/test_triton_compile.py tests/kernels/test_rms_norm.py
  tests/kernels/test_x0_renoise.py tests/model/test_conformance.py tests/engine/test_compile.py tests/engine/test_noise.py
  tests/vae/test_conformance.py tests/vae/test_oracle.py tests/text/test_encoder.py tests/text/test_tokenizer.py
  tests/weights/test_archive.py tests/weights/test_load.py tests/demo/test_video_track.py ${VIDEO_TESTS[*]}}
PATH=$(printf '%s:' "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin)$PATH
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PIP_DISABLE_PIP_VERSION_CHECK=1

make_venv() { # VENV PYTHON
  "python$2" -m venv "$1"
}

add() { # VENV WHAT...
  if command -v uv >/dev/null; then
    uv pip install --quiet --python "$1" "${@:2}"
  else
    "$1/bin/python" -m pip install --quiet "${@:2}"
  fi
}

install_all() { # VENV PYTHON TORCH PYAV
  local versions=("torch==$3" "av==$4")
  make_venv "$1" "$2" &&
    add "$1" "${versions[@]}" "scikit-build-core>=0.11" "pybind11>=2.13" "cmake>=3.26" ninja &&
    PATH="$1/bin:$PATH" add "$1" "${versions[@]}" --no-build-isolation --config-settings cmake.define.LONGLIVE_CUDA=OFF \
      --editable ".[test]"
}

install_video() { # VENV PYTHON PYAV
  make_venv "$1" "$2" && add "$1" "av==$3" aiortc ftfy numpy pydantic pytest typer
}

run_all() { # VENV
  # shellcheck disable=SC2086 -- a list
  "$1/bin/python" -P -m pytest -q -p no:cacheprovider $TESTS
}

run_video() { # VENV; the suite's conftest.py wants torch
  PYTHONPATH=$PWD "$1/bin/python" -P -m pytest --noconftest -q -p no:cacheprovider "${VIDEO_TESTS[@]}"
}

try() { # all|video PYTHON VERSION...
  local what=$1 name
  shift
  name=$(IFS=-; echo "$what-$*")
  local venv=$WORK/$name log=$WORK/$name.log result status=0
  if ! "install_$what" "$venv" "$@" >"$log" 2>&1; then
    status=2 result="cannot be installed: $(tail -n 1 "$log")"
  elif "run_$what" "$venv" >>"$log" 2>&1; then
    result=$(tail -n 1 "$log")
    rm -r "$venv"
  else
    status=1 result="$(tail -n 1 "$log"), see $log"
  fi
  printf '| %s ' "$@"
  echo "| $result |"
  return $status
}

what=all
if [[ ${1:-} == video ]]; then
  what=video COMBINATIONS=("${VIDEO[@]}")
  shift
fi
(($#)) && COMBINATIONS=("$@")
failed=0
for combination in "${COMBINATIONS[@]}"; do
  # shellcheck disable=SC2086 -- words
  try $what $combination
  status=$?
  ((status == 0 || failed == 1)) || failed=$status
done
exit $failed
