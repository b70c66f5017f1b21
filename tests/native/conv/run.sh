#!/bin/bash
# Builds, probes, checks stage by stage, then times; from the repository root, with tests/native/conv/ and csrc/ there.
# Logs in $OUT or /tmp/bringup. `WHAT="probe check real time"` leaves parts out.
out=${OUT:-/tmp/bringup}; what=${WHAT:-probe check real time}
mkdir -p "$out"; export PYTHONPATH=$PWD
nv="nvcc -gencode arch=compute_90a,code=sm_90a -O3 -std=c++20 --expt-relaxed-constexpr -lineinfo -Icsrc"
$nv -o /tmp/probe tests/native/conv/probe.cu > "$out/build_probe.log" 2>&1 &
for b in "plain" "watched -DLL_WATCHDOG" "swapped -DLL_WATCHDOG -DLL_SWAP_OFFSETS"; do
  set -- $b; name=$1; shift
  $nv "$@" -Xcompiler -fPIC -shared -Xptxas -v -o /tmp/conv_$name.so tests/native/conv/entry.cu > "$out/build_$name.log" 2>&1 &
done
wait
grep -hE "error" "$out"/build_*.log; grep -h "C75" "$out/build_plain.log" "$out/build_probe.log"
[[ $what == *probe* ]] && timeout 60 /tmp/probe 2>&1 | tee "$out/probe.log"
check() {  # library, variant
  local log=$out/check_$1_$2.log
  timeout 100 python tests/native/conv/gpu.py /tmp/conv_$1.so check $2 > "$log" 2>&1
  local rc=$?
  sed "s/^/$1, variant $2: /" "$log" | grep -E ": (ok|BAD)"
  [ $rc = 0 ] || { echo "!! $1, variant $2 ended with $rc; last lines:"; tail -5 "$log"; }
}
if [[ $what == *check* ]]; then
  # The watchdog's printf makes ptxas serialise the products: it finds what hangs, the plain build what races.
  check watched 0
  grep -q "^ok  1 one" "$out/check_watched_0.log" || check swapped 0  # the other reading of the offsets
  for variant in 0 1 2; do check plain $variant; done
fi
[[ $what == *real* ]] && timeout 200 python tests/native/conv/gpu.py /tmp/conv_plain.so real ${VARIANT:-0} 2>&1 | tee "$out/real.log"
[[ $what == *time* ]] && timeout 400 python tests/native/conv/gpu.py /tmp/conv_plain.so time ${VARIANTS:-0,1,2} 2>&1 | tee "$out/time.log"
true
