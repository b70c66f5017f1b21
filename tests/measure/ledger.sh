#!/usr/bin/env bash
# Everything that docs/performance.md records of a GPU, in one go: tests/measure/ledger.sh MODEL OUT [PART]...
# MODEL: a folder made by `longlive-optimized make-checkpoint MODEL --config 1.3b --text tiny`. Parts: kernels block
# presets memory vae quality scope overlap; all unless given. One JSON file each in OUT.
set -euo pipefail
model=$1 out=$2
shift 2
measure=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$out"
bench() { longlive-optimized bench "$@" --force; }

kernels() { bench kernels --json "$out/kernels.json"; }
quality() { bench quality --model "$model" --json "$out/quality.json"; }
block() { sized bench block --model "$model" --json "$out/block"; }
presets() { python "$measure/presets.py" "$model" --json "$out/presets.json"; }
memory() { python "$measure/memory.py" "$model" --json "$out/memory.json"; }
vae() { sized bench vae --model "$model" --json "$out/vae"; }
scope() { sized python "$measure/plugin_bench.py" "$model" --json "$out/scope"; }
overlap() { sized python "$measure/overlap.py" "$model" --json "$out/overlap"; }

# The command for both sizes; its last word is what the names of its JSON files begin with.
sized() {
  local command=("${@:1:$#-1}") name=${!#}
  "${command[@]}" "${name}_480.json" --height 480 --width 832
  "${command[@]}" "${name}_320.json" --height 320 --width 576
}

parts=("$@")
((${#parts[@]})) || parts=(kernels block presets memory vae quality scope overlap)
for part in "${parts[@]}"; do
  declare -F "$part" > /dev/null || { echo "unknown part: $part" >&2; exit 2; }
done
for part in "${parts[@]}"; do
  echo "== $part"
  "$part"
done
