#!/bin/bash
# Builds every configuration side by side, then checks and times them one after the other, the simplest first.
# From the repository root: [RANDOM_CASES=25] [WHAT=check|time|all] [FLAGS=-DLL_WATCHDOG]
# [CONFIGS="176 4 true true;..."] tests/native/bringup/run.sh. Logs and times.txt in $OUT, or /tmp/bringup.
out=${OUT:-/tmp/bringup}
mkdir -p "$out"
# keys of a tile, buffers, overlap of softmax and products, taking turns
all="128 6 false false;128 6 true false;128 6 true true;160 4 true true;176 4 true true;192 4 true true;176 4 false true"
IFS=';' read -ra configs <<< "${CONFIGS:-$all}"
for c in "${configs[@]}"; do
  read -r keys stages overlap turns <<< "$c"
  nvcc -gencode arch=compute_90a,code=sm_90a -O3 -std=c++20 --expt-relaxed-constexpr -lineinfo -Xptxas -v $FLAGS \
    -DTK="$keys" -DST="$stages" -DOV="$overlap" -DTU="$turns" -Icsrc -o "$out/${c// /_}" tests/native/bringup/bringup.cu \
    > "$out/build_${c// /_}.log" 2>&1 &
done
wait
grep -h "C75\|error" "$out"/build_*.log
for c in "${configs[@]}"; do
  timeout -k 5 "${LIMIT:-90}" "$out/${c// /_}" "${RANDOM_CASES:-25}" "${WHAT:-all}" > "$out/run_${c// /_}.log" 2>&1
  status=$?
  grep -v TIME "$out/run_${c// /_}.log" | head -40
  [ $status = 0 ] || echo "!! $c ended with $status"
done
cat "$out"/run_*.log | grep TIME > "$out/times.txt"
cut -d'|' -f1,2,3,4 "$out/times.txt"
